"""MMBench's xlsx file: `python scripts/convert_mmbench_for_submission.py …` (fitprune/evaluation/benchmarks/mmbench.py)."""

from fitprune.evaluation.benchmarks.mmbench import main

if __name__ == "__main__":
    raise SystemExit(main())
