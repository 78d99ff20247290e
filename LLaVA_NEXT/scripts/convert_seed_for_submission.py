"""SEED-Bench's accuracy and upload file: `python scripts/convert_seed_for_submission.py …` (fitprune/evaluation/benchmarks/seed.py)."""

from fitprune.evaluation.benchmarks.seed import main

if __name__ == "__main__":
    raise SystemExit(main())
