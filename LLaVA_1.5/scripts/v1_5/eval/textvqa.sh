#!/usr/bin/env bash
# TextVQA, dense and pruned, for any LLaVA-1.5. With nothing given: the embedded model on the embedded questions.
#
#   bash scripts/v1_5/eval/textvqa.sh [MODEL] [DATA] [RATIO]        or MODEL=… DATA=… RATIO=… in the environment
#
# MODEL  checkpoint folder or hub name in transformers layout           [embedded]
# DATA   folder with llava_textvqa_val_v051_ocr.jsonl, TextVQA_0.5.1_val.json and train_images/
#        [LLaVA_1.5/playground/data/eval/textvqa if it is there and MODEL is not the embedded one, else the embedded questions]
# RATIO  share of the visual compute to save, 60 or 0.6                 [60]
# OUTPUT folder for answers and recipes                                 [LLaVA_1.5/playground/data/eval/textvqa/answers]
# More of `fitprune eval`'s options follow in EXTRA, for example EXTRA="--batch-size 16 --overwrite".
# Relative paths are meant from where the command is typed.
set -euo pipefail
here=$(cd "$(dirname "$0")/../../.." && pwd)

MODEL=${1:-${MODEL:-embedded}}
DATA=${2:-${DATA:-}}
RATIO=${3:-${RATIO:-60}}
OUTPUT=${OUTPUT:-$here/playground/data/eval/textvqa/answers}
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$here/../.venv/bin/python" ]; then PYTHON=$here/../.venv/bin/python; else PYTHON=python; fi
fi
if [ -z "$DATA" ] && [ "$MODEL" != embedded ] && [ -d "$here/playground/data/eval/textvqa/train_images" ]; then
  DATA=$here/playground/data/eval/textvqa
fi

# shellcheck disable=SC2086
exec "$PYTHON" -m fitprune eval --model-path "$MODEL" ${DATA:+--data "$DATA"} --reduction_ratio "$RATIO" \
  --output "$OUTPUT" ${EXTRA:-}
