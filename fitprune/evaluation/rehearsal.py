"""The scoring of a benchmark, gone through once before a model is loaded.

Missing truth, labels of another revision or a library that a submission needs would otherwise be found after the last answer.
The rehearsal scores empty answers to the very questions, so a benchmark needs no check of its own for it.

    python -c "from fitprune.evaluation.rehearsal import *; from fitprune.evaluation.benchmarks import find; \\
        from fitprune.embedded import embedded; b = find('pope'); d = embedded().data / b.folder; rehearse(b, d, b.read(d / b.questions))"
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import FitPruneError
from ..questions import Question
from .benchmark import Benchmark


def rehearse(benchmark: Benchmark, data: Path, questions: Sequence[Question]) -> None:
    """Scores empty answers to the questions, and forgets the result.

    Raises:
        FitPruneError: what would be raised when the run is over; files are those of the run, lines those of its questions.
    """
    with TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        lines = ({"question_id": one.question_id, "prompt": one.saved, "text": "", **dict(one.more)} for one in questions)
        answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        try:
            benchmark.score(data, answers, Path(folder) / "upload")
        except FitPruneError as error:
            asked = str(data / benchmark.questions)
            said = str(error).replace(f"answers file {answers}", asked).replace(str(answers), asked)
            raise FitPruneError(f"{benchmark.title} could not be scored afterwards: {said}") from None
