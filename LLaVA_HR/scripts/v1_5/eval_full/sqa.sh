#!/usr/bin/env bash
# ScienceQA, dense and pruned, for any LLaVA-HR. With nothing given: embedded-hr, on the embedded counterpart where there is one.
#
#   bash scripts/v1_5/eval_full/sqa.sh [CHECKPOINT] [DATA] [RATIO]        or MODEL=… DATA=… RATIO=… in the environment
#
# As LLaVA-HR's own script: at most 64 tokens, and the first letter of an answer counts without a period behind it (--any-start).
# What else can be said is at the top of the driver, scripts/eval/benchmark.sh of this repository.
set -euo pipefail
family=$(CDPATH='' cd "$(dirname "$0")/../../.." && pwd)
EXTRA="--any-start ${EXTRA:-}" exec bash "$family/../scripts/eval/benchmark.sh" "$family" embedded-hr sqa "$@"
