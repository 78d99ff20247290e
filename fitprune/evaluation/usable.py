"""Questions whose pictures can be used, found out before a run: one torn photo among thousands must not stop an hour's work.

Each picture and video is read once, before the model runs, and measured as the model wants it, which costs some milliseconds. A question
whose picture is missing, damaged, too large or of a shape that the model refuses is set aside with a line; `--strict` stops at the first
instead. None is left out of a score without a word: `fitprune eval` answers it with nothing, which counts as wrong (its answer line says
"skipped" in `metadata`); where no score is made (fit, report) it is left out and counted.

    fitprune report --question-file questions.jsonl --image-folder photos --strict
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..distributed.workers import SINGLE, WorkerGroup
from ..errors import FitPruneError, first_line
from ..questions import Calibration, Question, prompt_of, shown
from .layout import placed

if TYPE_CHECKING:
    from ..families import VLM

LISTED = 10  # skipped questions that are named
EMPTY = "answered with nothing"  # how skipped questions count
WRONG = f"{EMPTY}, which counts as wrong"


def screen(
    vlm: VLM,
    questions: Sequence[Question],
    image_folder: str | Path,
    strict: bool = False,
    workers: WorkerGroup = SINGLE,
    whole: bool = True,
) -> list[Question]:
    """The same questions, those whose pictures cannot be used with the reason in `unusable`; lines about them are printed.

    Args:
        strict: Raise at the first one. workers: Processes that share the run: what one of them cannot read is skipped by all.
        whole: Whether these are all questions of a run, not a chunk that may be made of few pictures.
    Raises:
        FitPruneError: for the first one where strict, and if of the whole no picture at all can be used.
    """
    read: set[tuple[str | None, str | None]] = set()  # what was decoded already: of further questions only sizes are read
    reasons: dict[str, str] = {}  # by place
    for place, question in enumerate(questions):
        if not question.visual:
            continue
        key = question.image, question.video
        try:
            vlm.token_ids(prompt_of(vlm, question), shown(question, image_folder, question.content is not None or key not in read))
            read.add(key)
        except FitPruneError as error:
            if strict and workers.size == 1:
                raise
            reasons[str(place)] = first_line(error)
    for others in workers.gather(json.dumps(reasons).encode()):
        reasons = {**json.loads(others), **reasons}
    found = [replace(one, unusable=reasons[str(place)]) if str(place) in reasons else one for place, one in enumerate(questions)]
    skipped = [question for question in found if question.unusable]
    if skipped and strict:
        raise FitPruneError(skipped[0].unusable)
    if whole and skipped and not any(question.visual for question in found):
        raise FitPruneError(f"no picture of these questions can be used, beginning with: {skipped[0].unusable}")
    if workers.leads:
        for question in skipped[:LISTED]:
            print(f"skipped: question {question.question_id}: {question.unusable}")
        if len(skipped) > LISTED:
            print(f"skipped: {len(skipped) - LISTED} more")
    return found


def screened(vlm: VLM, calibration: Calibration, strict: bool = False, workers: WorkerGroup = SINGLE) -> Calibration:
    """The same calibration without the questions whose pictures cannot be used; they are looked at when the first question is asked for.

    Each process looks by itself, as not all of them ask; that they observe the same questions is checked later.
    """
    known: list[list[Question]] = []

    def read(_: Path) -> list[Question]:
        if not known:
            folder, alone = Path(calibration.image_folder), WorkerGroup(workers.rank)
            chosen, notes = placed(calibration.questions(), folder, folder, refuse="nothing")
            if workers.leads and notes:
                print(*notes, sep="\n")
            known.append([question for question in screen(vlm, chosen, calibration.image_folder, strict, alone) if question.visual])
            if workers.leads and len(known[0]) < len(chosen):
                print(f"{len(chosen) - len(known[0])} of {len(chosen)} calibration questions skipped: fitted on the others")
        return known[0]

    return replace(calibration, read=read)


def skipped_line(questions: Sequence[Question], counted: str) -> str:
    """How many questions were skipped, for the end of a command, and how they count; "" for none."""
    count = sum(bool(question.unusable) for question in questions)
    return f"skipped: {count} of {len(questions)} questions, whose pictures cannot be used (named above): {counted}" if count else ""
