"""ScienceQA's answering script: `python -m llava.eval.model_vqa_science --single-pred-prompt …` (fitprune/evaluation/loader_choices.py)."""

from fitprune.evaluation.loader_choices import science

if __name__ == "__main__":
    raise SystemExit(science())
