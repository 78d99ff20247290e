"""ScienceQA's accuracy: `python llava_hr/eval/eval_science_qa.py --base-dir …` (fitprune/evaluation/benchmarks/sqa.py: its own reading)."""

from fitprune.evaluation.benchmarks.sqa import main

if __name__ == "__main__":
    raise SystemExit(main(any_start=True))
