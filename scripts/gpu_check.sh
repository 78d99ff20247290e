#!/usr/bin/env bash
# Test and time FitPrune on a GPU, in nine minutes at most, from a fresh copy: gpu_check.json, gpu_check.md and gpu_check.log in a folder.
#
#   bash scripts/gpu_check.sh OUT                       (default runs/gpu_check; scripts/gpu_check.py says what is in it)
#   bash scripts/gpu_check.sh OUT --rehearse            on a CPU, with tiny shapes
#   PYTHON=/path/to/python3 bash scripts/gpu_check.sh   another Python than `python3`, one that has torch
set -euo pipefail

cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
