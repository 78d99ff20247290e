"""What a benchmark is: a question file, an image folder and a way to score an answers file.

Each benchmark is one file in `benchmarks/` that sets `BENCHMARK`; it is found there by name, and `fitprune eval --benchmark`,
the shell scripts' driver and the tables take it from there. Files have the layout of LLaVA's `playground/data/eval`.

    python -c "from fitprune.evaluation.benchmarks import BENCHMARKS; print(*BENCHMARKS)"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FitPruneError
from ..questions import Question, as_stored, read_questions

PLAYGROUND = "playground/data/eval"  # where LLaVA's scripts look for benchmarks


@dataclass(frozen=True)
class Result:
    """What scoring an answers file gave.

    Attributes:
        headline: The number that papers report, None where a server computes it.
        details: Further figures by name, in the order of the official tool.
        report: What the official tool prints, line for line.
        per_answer: What each answer is worth, 0 to 1, in the order of the answers file; None where that says nothing.
        written: Files made for a server or an official tool.
    """

    headline: float | None
    details: dict[str, float] = field(default_factory=dict)
    report: str = ""
    per_answer: list[float] | None = None
    written: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, by the files in its folder.

    Attributes:
        name: What commands and scripts call it: "gqa".
        title: Its name in tables: "GQA".
        folder: Its folder under `playground/data/eval`.
        questions: Its question file, inside that folder.
        images: Its image folder, inside that folder.
        metric: What `Result.headline` is: "accuracy, %"; for a benchmark that a server scores what is written instead.
        needs: Files and folders inside the folder that scoring reads, looked for before a run begins.
        score: (benchmark folder, answers file, folder for what is written) → Result.
        read: How the question file is read.
        max_new_tokens: The longest answer, unless the command line says otherwise.
        group: How many questions in a row are scored together (MME: the two about an image).
    """

    name: str
    title: str
    folder: str
    questions: str
    images: str
    metric: str
    needs: tuple[str, ...]
    score: Callable[[Path, Path, Path], Result]
    read: Callable[[Path], list[Question]] = read_questions
    max_new_tokens: int = 128
    group: int = 1

    def asked(self, path: Path) -> list[Question]:
        """The questions of a file, with pictures as LLaVA's loader reads them."""
        return as_stored(self.read)(path)

    def first(self, questions: Sequence[Question], limit: int | None) -> list[Question]:
        """About so many of the questions, the first ones, with none that needs another left alone; None for all."""
        return list(questions if limit is None else questions[: max(limit // self.group, 1) * self.group])

    def check(self, data: Path) -> None:
        """Looks for the files that a run and its scoring need; pictures are `layout.placed`'s.

        Raises:
            FitPruneError: naming the first that is missing.
        """
        for name in (self.questions, *self.needs):
            if not (data / name).exists():
                raise FitPruneError(f"{self.title} needs {data / name}, which does not exist: docs/evaluation.md says where to get it")
