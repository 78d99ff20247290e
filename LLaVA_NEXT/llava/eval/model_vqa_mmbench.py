"""MMBench's answering script: `python -m llava.eval.model_vqa_mmbench --lang en …` (fitprune/evaluation/loader_choices.py)."""

from fitprune.evaluation.loader_choices import for_mmbench

if __name__ == "__main__":
    raise SystemExit(for_mmbench(model="embedded-next"))
