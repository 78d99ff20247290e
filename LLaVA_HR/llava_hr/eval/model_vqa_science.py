"""ScienceQA's script: `python -m llava_hr.eval.model_vqa_science --single-pred-prompt …` (fitprune/evaluation/loader_choices.py)."""

from fitprune.evaluation.benchmarks.sqa import AS_LLAVA_HR
from fitprune.evaluation.loader_choices import science

if __name__ == "__main__":
    raise SystemExit(science(model="embedded-hr", benchmark=AS_LLAVA_HR))
