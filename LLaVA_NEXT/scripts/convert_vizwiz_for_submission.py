"""VizWiz's upload file: `python scripts/convert_vizwiz_for_submission.py …` (fitprune/evaluation/benchmarks/vizwiz.py)."""

from fitprune.evaluation.benchmarks.vizwiz import main

if __name__ == "__main__":
    raise SystemExit(main())
