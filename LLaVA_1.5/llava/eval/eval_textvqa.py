"""TextVQA's accuracy: `python -m llava.eval.eval_textvqa --annotation-file … --result-file …` (its benchmark's module)."""

from fitprune.evaluation.benchmarks.textvqa import main

if __name__ == "__main__":
    raise SystemExit(main())
