"""ScienceQA's accuracy: `python llava/eval/eval_science_qa.py --base-dir …` (fitprune/evaluation/benchmarks/sqa.py)."""

from fitprune.evaluation.benchmarks.sqa import main

if __name__ == "__main__":
    raise SystemExit(main())
