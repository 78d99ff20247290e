#!/usr/bin/env bash
# A benchmark, dense and pruned, for every family: the scripts in LLaVA_*/scripts/v1_5/ name their folder, model and benchmark.
#
#   bash scripts/v1_5/eval/gqa.sh [MODEL] [DATA] [RATIO]        in a family's folder; LLaVA_HR: eval_full/
#   CUDA_VISIBLE_DEVICES=0,1,2 bash scripts/v1_5/eval/gqa.sh …  three processes of torchrun share the questions, a device each
#
# Each may stand in the environment instead, and so may the others:
#
# MODEL         checkpoint folder or hub name, original or transformers layout     [the family's embedded model]
# DATA          the benchmark's folder, docs/evaluation.md lists what is in it
#               [of an embedded model the embedded counterpart, else the benchmark's folder in playground/data/eval of the family]
# RATIO         share of the visual compute to save, 60 or 0.6                     [60]
# BY            how schedules are fitted: "mass drift" puts the recommended method beside the paper's   [mass, the paper's]
# CHUNKS        processes that share the questions     [as many as CUDA_VISIBLE_DEVICES names; 1 for a model over all devices]
# MODEL_BASE    language model of a LoRA or projector-only checkpoint              [none]
# VISION_TOWER  CLIP of a checkpoint in original layout                            [the one it holds or names]
# OUTPUT        folder for answers and recipes           [answers/ in the benchmark's folder of the family's playground]
# EXTRA         more of `fitprune eval`'s options, for example EXTRA="--batch-size 16 --overwrite"
# PYTHON        the interpreter                          [.venv of this repository if it is there, else python]
#
# Relative paths are meant from where the command is typed. A run that was cut off continues when it is started again.
set -euo pipefail

family=$1 embedded=$2 benchmark=$3 # folder of the family, name of its embedded model, what `fitprune eval` calls the benchmark
shift 3

MODEL=${1:-${MODEL:-$embedded}}
DATA=${2:-${DATA:-}}
RATIO=${3:-${RATIO:-60}}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$family/../.venv/bin/python
  [ -x "$PYTHON" ] || PYTHON=python
fi

# shellcheck disable=SC2206
evaluate=(-m fitprune eval --benchmark "$benchmark" --model-path "$MODEL" ${DATA:+--data "$DATA"} --reduction_ratio "$RATIO"
  --playground "$family/playground/data/eval" ${MODEL_BASE:+--model-base "$MODEL_BASE"} ${VISION_TOWER:+--vision-tower "$VISION_TOWER"}
  ${OUTPUT:+--output "$OUTPUT"} ${BY:+--by $BY} ${EXTRA:-})

devices=${CUDA_VISIBLE_DEVICES:-}
IFS=, read -r -a named <<<"${devices// /}"
processes=${CHUNKS:-${#named[@]}}
[ -n "${CHUNKS:-}" ] || [ "$processes" -gt 0 ] || processes=1
case $processes in
'' | 0* | *[!0-9]*) echo "benchmark.sh: CHUNKS=$processes is not a number of processes: give 1 or more" >&2 && exit 2 ;;
1) exec "$PYTHON" "${evaluate[@]}" ;;
esac

[ -z "$devices" ] || export CUDA_VISIBLE_DEVICES=${devices// /}
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))} # torchrun's own choice is 1, with a warning
exec "$PYTHON" -m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node "$processes" "${evaluate[@]}"
