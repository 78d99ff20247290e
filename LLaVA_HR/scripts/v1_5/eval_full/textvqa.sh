#!/usr/bin/env bash
# TextVQA, dense and pruned, for any LLaVA-HR. With nothing given: embedded-hr, on the embedded counterpart where there is one.
#
#   bash scripts/v1_5/eval_full/textvqa.sh [CHECKPOINT] [DATA] [RATIO]        or MODEL=… DATA=… RATIO=… in the environment
#
# What else can be said is at the top of the driver, scripts/eval/benchmark.sh of this repository.
set -euo pipefail
family=$(CDPATH='' cd "$(dirname "$0")/../../.." && pwd)
exec bash "$family/../scripts/eval/benchmark.sh" "$family" embedded-hr textvqa "$@"
