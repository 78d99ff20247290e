"""The authors' answering script: `python -m llava_hr.eval.model_vqa_loader --reduction_ratio 60 …` (fitprune/evaluation/loader.py)."""

from fitprune.evaluation.loader import main

if __name__ == "__main__":
    raise SystemExit(main(model="embedded-hr"))
