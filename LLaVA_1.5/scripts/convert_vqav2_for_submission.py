"""VQAv2's upload file: `python scripts/convert_vqav2_for_submission.py …` (fitprune/evaluation/benchmarks/vqav2.py)."""

from fitprune.evaluation.benchmarks.vqav2 import main

if __name__ == "__main__":
    raise SystemExit(main())
