#!/usr/bin/env bash
# A benchmark, dense and pruned, for every family: the scripts in LLaVA_*/scripts/v1_5/ name their folder, model and benchmark.
#
#   bash scripts/v1_5/eval/gqa.sh [MODEL] [DATA] [RATIO]        in a family's folder; LLaVA_HR: eval_full/
#   CUDA_VISIBLE_DEVICES=0,1,2 bash scripts/v1_5/eval/gqa.sh …  the questions shared by three processes, a device each
#
# Each may stand in the environment instead, and so may the others:
#
# MODEL         checkpoint folder or hub name, original or transformers layout     [the family's embedded model]
# DATA          the benchmark's folder, docs/evaluation.md lists what is in it
#               [of an embedded model the embedded counterpart, else the benchmark's folder in playground/data/eval of the family]
# RATIO         share of the visual compute to save, 60 or 0.6                     [60]
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
evaluate=("$PYTHON" -m fitprune eval --benchmark "$benchmark" --model-path "$MODEL" ${DATA:+--data "$DATA"} --reduction_ratio "$RATIO"
  --playground "$family/playground/data/eval" ${MODEL_BASE:+--model-base "$MODEL_BASE"} ${VISION_TOWER:+--vision-tower "$VISION_TOWER"}
  ${OUTPUT:+--output "$OUTPUT"} ${EXTRA:-})

named=${CUDA_VISIBLE_DEVICES:-}
IFS=, read -r -a devices <<<"${named// /}"
chunks=${CHUNKS:-${#devices[@]}}
[ -n "${CHUNKS:-}" ] || [ "$chunks" -gt 0 ] || chunks=1
case $chunks in
'' | 0* | *[!0-9]*) echo "benchmark.sh: CHUNKS=$chunks is not a number of processes: give 1 or more" >&2 && exit 2 ;;
1) exec "${evaluate[@]}" ;;
esac

"${evaluate[@]}" --num-chunks "$chunks" --fit-only # looks for all files, and no two processes fit the same recipe

logs=$(mktemp -d)
pids=()
stop() { # what still runs; its answers stay
  for pid in ${pids[@]+"${pids[@]}"}; do [ -z "$pid" ] || kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null
  rm -rf "$logs"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for ((k = 0; k < chunks; k++)); do
  device=()
  [ ${#devices[@]} -eq 0 ] || device=(env "CUDA_VISIBLE_DEVICES=${devices[k % ${#devices[@]}]}")
  if [ $k -eq 0 ]; then exec 3>&2; else exec 3>"$logs/$k"; fi # the first shows how far it is
  ${device[@]+"${device[@]}"} "${evaluate[@]}" --num-chunks "$chunks" --chunk-idx "$k" >/dev/null 2>&3 3>&- &
  pids[k]=$!
done

exec 3>&-
left=$chunks
while [ "$left" -gt 0 ]; do
  sleep 0.2
  for ((k = 0; k < chunks; k++)); do
    if [ -z "${pids[k]}" ] || kill -0 "${pids[k]}" 2>/dev/null; then continue; fi
    status=0
    wait "${pids[k]}" || status=$?
    pids[k]='' left=$((left - 1))
    if [ $status -ne 0 ]; then
      [ $k -eq 0 ] || tr '\r' '\n' <"$logs/$k" | grep -v '%|' | tail -n 20 >&2 || true # without progress bars
      echo "benchmark.sh: process $k of $chunks failed, the others are stopped: run the same command again to continue" >&2
      exit $status
    fi
  done
done

"${evaluate[@]}" --num-chunks "$chunks"
