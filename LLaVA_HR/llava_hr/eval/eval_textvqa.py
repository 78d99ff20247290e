"""TextVQA's accuracy: `python -m llava_hr.eval.eval_textvqa --annotation-file … --result-file …` (fitprune/evaluation/textvqa.py)."""

from fitprune.evaluation.textvqa import main

if __name__ == "__main__":
    raise SystemExit(main())
