"""MM-Vet's upload file: `python scripts/convert_mmvet_for_eval.py …` (fitprune/evaluation/benchmarks/mmvet.py)."""

from fitprune.evaluation.benchmarks.mmvet import main

if __name__ == "__main__":
    raise SystemExit(main())
