"""TextVQA: questions about words in pictures; how many of the ten people who were asked gave the model's answer.

The scorer and the script `eval_textvqa` are `evaluation/textvqa.py`; this is its place among the benchmarks.

    fitprune eval --benchmark textvqa --data playground/data/eval/textvqa
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..benchmark import Benchmark, Result
from ..textvqa import evaluate, lines

ANNOTATIONS = "TextVQA_0.5.1_val.json"


def score(data: Path, answers: Path, out: Path, annotations: str = ANNOTATIONS) -> Result:
    """Scores an answers file; writes nothing.

    Raises:
        FitPruneError: as `evaluate`.
    """
    scored = evaluate(data / annotations, answers)
    details = {"samples": float(scored.samples), "accuracy": scored.accuracy}
    return Result(scored.accuracy, details, lines(answers, scored), scored.per_answer)


def scored_with(annotations: Path) -> Benchmark:
    """TextVQA with another annotation file, wherever that lies."""
    path = str(annotations.absolute())
    return replace(BENCHMARK, needs=(path,), score=partial(score, annotations=path))


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    folder="textvqa",
    questions="llava_textvqa_val_v051_ocr.jsonl",
    images="train_images",
    metric="accuracy, %",
    needs=(ANNOTATIONS,),
    score=score,
)
