#!/usr/bin/env bash
# TextVQA, dense and pruned, for every family: the scripts in LLaVA_*/scripts/v1_5/ name their folder and default model.
#
#   bash scripts/v1_5/eval/textvqa.sh [MODEL] [DATA] [RATIO]        in a family's folder; LLaVA_HR: eval_full/
#
# Each may stand in the environment instead, and so may the others:
#
# MODEL         checkpoint folder or hub name, original or transformers layout     [the family's embedded model]
# DATA          folder with llava_textvqa_val_v051_ocr.jsonl, TextVQA_0.5.1_val.json and train_images/
#               [playground/data/eval/textvqa of the family if it is there and MODEL is given, else the embedded questions]
# RATIO         share of the visual compute to save, 60 or 0.6                     [60]
# MODEL_BASE    language model of a LoRA or projector-only checkpoint              [none]
# VISION_TOWER  CLIP of a checkpoint in original layout                            [the one it holds or names]
# OUTPUT        folder for answers and recipes           [playground/data/eval/textvqa/answers of the family]
# EXTRA         more of `fitprune eval`'s options, for example EXTRA="--batch-size 16 --overwrite"
# PYTHON        the interpreter                          [.venv of this repository if it is there, else python]
#
# Relative paths are meant from where the command is typed.
set -euo pipefail

family=$1 embedded=$2 # folder of the family, name of its embedded model
shift 2

MODEL=${1:-${MODEL:-$embedded}}
DATA=${2:-${DATA:-}}
RATIO=${3:-${RATIO:-60}}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$family/../.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python
fi
if [ -z "$DATA" ] && [ "$MODEL" != "$embedded" ] && [ -d "$family/playground/data/eval/textvqa/train_images" ]; then
  DATA=$family/playground/data/eval/textvqa
fi

# shellcheck disable=SC2086
exec "$PYTHON" -m fitprune eval --model-path "$MODEL" ${DATA:+--data "$DATA"} --reduction_ratio "$RATIO" \
  ${MODEL_BASE:+--model-base "$MODEL_BASE"} ${VISION_TOWER:+--vision-tower "$VISION_TOWER"} \
  --output "${OUTPUT:-$family/playground/data/eval/textvqa/answers}" ${EXTRA:-}
