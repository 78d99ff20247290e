"""POPE's figures: `python llava/eval/eval_pope.py --annotation-dir … --question-file … --result-file …` (benchmarks/pope.py)."""

from fitprune.evaluation.benchmarks.pope import main

if __name__ == "__main__":
    raise SystemExit(main())
