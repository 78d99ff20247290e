"""Predictions for GQA's tool: `python scripts/convert_gqa_for_eval.py --src … --dst …` (fitprune/evaluation/benchmarks/gqa.py)."""

from fitprune.evaluation.benchmarks.gqa import convert_main

if __name__ == "__main__":
    raise SystemExit(convert_main())
