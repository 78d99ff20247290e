"""A judge of recipes (`choose.Judge`): how far each moves the dense model's answers to calibration questions.

Each question is answered densely once, greedily; recipes are then led along that answer, and the divergence of their next-token
distributions from the dense one's, in nats, is averaged over its tokens. Several recipes and ratios share the dense answers. What was
judged can be kept in a journal, one JSON line per batch, so that an interrupted fit goes on where it stopped; a torn last line is judged
again.

    fitprune fit --by drift --samples 32
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..distributed.workers import SINGLE, WorkerGroup
from ..errors import FitPruneError
from ..families import VLM
from ..files import file_name, read_journal
from ..prune import prune
from ..questions import Calibration, Question, encode_questions, questions_digest
from ..recipe import Recipe
from .against_dense import greedy_answers, teacher_forced_logits
from .drift import divergence

MOST_TOKENS = 16  # of an answer that are compared


class DriftJudge:
    """Called with a recipe and a range of questions; each process of a run gets all of the figures."""

    def __init__(
        self,
        vlm: VLM,
        calibration: Calibration,
        *,
        max_new_tokens: int = MOST_TOKENS,
        journal: Path | None = None,
        workers: WorkerGroup = SINGLE,
    ) -> None:
        """
        Args:
            journal: A file to keep what was judged in, and to go on from.
        Raises:
            FitPruneError: for questions none of which has an image, unreadable files, and a journal of another model or other questions.
        """
        self.vlm, self.calibration, self.max_new_tokens, self.workers = vlm, calibration, max_new_tokens, workers
        self.questions = [question for question in calibration.questions() if question.visual]
        if not self.questions:
            raise FitPruneError(f"{calibration.question_file} has no question with an image, so nothing moves: give others")
        workers.check_same("calibration questions", questions_digest(self.questions))
        self.size = calibration.together(self.questions)
        self._dense: dict[int, tuple[dict[str, Tensor], Tensor, list[int], Tensor]] = {}  # by the first question of a batch
        self._known: dict[tuple[str, int, int], list[float]] = {}
        self._journal = journal
        if journal is not None:
            about = {"drift": _about(vlm, self.questions, max_new_tokens, self.size)}
            rows = workers.first(lambda: read_journal(journal, about))
            self._known = {(name, start, stop): drifts for name, start, stop, drifts in rows}

    def __len__(self) -> int:
        return len(self.questions)

    def __call__(self, recipe: Recipe, first: int, last: int) -> list[float]:
        """Drift on questions first … last - 1; errors as `prune`."""
        name, size = recipe.digest, self.size
        ranges = [(at, min(at + size, last)) for at in range(first, last, size)]
        missing = [(start, stop) for start, stop in ranges if (name, start, stop) not in self._known]
        drifts = self.workers.in_order(missing, lambda one: one, lambda one: self._drifts(recipe, *one))
        for (start, stop), found in zip(missing, drifts, strict=True):
            self._known[name, start, stop] = found
            if self._journal is not None and self.workers.leads:
                with self._journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([name, start, stop, found]) + "\n")
        return [drift for start, stop in ranges for drift in self._known[name, start, stop]]

    def _drifts(self, recipe: Recipe, start: int, stop: int) -> list[float]:
        inputs, tokens, lengths, dense = self._answered(start, stop)
        with prune(self.vlm.model, recipe):
            logits = teacher_forced_logits(self.vlm.model, inputs, tokens)
        return [float(divergence(dense[row, :count], logits[row, :count]).mean()) for row, count in enumerate(lengths)]

    def _answered(self, start: int, stop: int) -> tuple[dict[str, Tensor], Tensor, list[int], Tensor]:
        """Inputs, answers [B, T] with their lengths, and dense logits [B, T, V] of questions start … stop - 1."""
        if (known := self._dense.get(start)) is None or len(known[2]) != stop - start:
            batch: Sequence[Question] = self.questions[start:stop]
            inputs = encode_questions(self.vlm, batch, self.calibration.image_folder)
            _, tokens, lengths = greedy_answers(self.vlm, inputs, self.max_new_tokens)
            self._dense[start] = known = (inputs, tokens, lengths, teacher_forced_logits(self.vlm.model, inputs, tokens))
        return known


def journal_in(folder: Path, vlm: VLM, calibration: Calibration, max_new_tokens: int = MOST_TOKENS) -> Path:
    """Where a folder keeps what was judged of this model and these questions; others have another name."""
    questions = calibration.questions()
    about = _about(vlm, questions, max_new_tokens, calibration.together(questions))
    return folder / f"{file_name(vlm.name)}.drift-{about[:8]}.jsonl"


def _about(vlm: VLM, questions: Sequence[Question], max_new_tokens: int, size: int) -> str:
    """What a journal is about."""
    model = vlm.name, vlm.template or vlm.prompt("")
    return hashlib.sha256(repr((model, max_new_tokens, size, questions_digest(questions))).encode()).hexdigest()
