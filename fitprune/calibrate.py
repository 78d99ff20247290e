"""From a checkpoint and a handful of its questions to statistics: observed now, or kept by an earlier run.

Under torchrun or `accelerate launch` the processes share the questions: each observes some batches, all exchange what they
saw (distributed/workers.py) and hold the same statistics in the end. `observe` itself knows nothing of that.

    fitprune fit --model-path embedded --reduction-ratio 0.6
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from .distributed.workers import SINGLE, WorkerGroup
from .errors import FitPruneError
from .families import VLM
from .observe import Observer
from .questions import Calibration, Question, encode_questions, questions_digest
from .stats import AttentionStats

__all__ = ["Calibration", "kept_statistics", "observe_questions", "observe_timed"]


def observe_questions(
    vlm: VLM, calibration: Calibration | None = None, progress: bool = True, workers: WorkerGroup = SINGLE
) -> AttentionStats:
    """Statistics of a checkpoint on calibration questions, default the embedded ones; the same in every process.

    Raises:
        FitPruneError: as `observe`, and for processes that were given different questions.
    """
    calibration = calibration or Calibration.shipped()
    questions = calibration.questions()
    workers.check_same("calibration questions", questions_digest(questions))
    size = calibration.together(questions)
    batches = [questions[at : at + size] for at in range(0, len(questions), size)]

    def prepare(batch: Sequence[Question]) -> dict[str, Tensor]:
        return encode_questions(vlm, batch, calibration.image_folder, "right")

    with Observer(vlm.model, vlm.name) as observer:
        parts = workers.in_order(batches, prepare, observer, AttentionStats.to_bytes, AttentionStats.from_bytes)
        shown = tqdm(parts, desc="observing", unit="batch", total=len(batches), disable=not (progress and workers.leads))
        return AttentionStats.concatenate(list(shown))


def observe_timed(vlm: VLM, calibration: Calibration, progress: bool = True, workers: WorkerGroup = SINGLE) -> tuple[AttentionStats, float]:
    """`observe_questions`, and the seconds that a question took on this machine: what a prefill costs here, roughly."""
    start = time.monotonic()
    stats = observe_questions(vlm, calibration, progress, workers)
    return stats, (time.monotonic() - start) / stats.samples


def kept_statistics(
    vlm: VLM, calibration: Calibration, folder: Path, anew: bool = False, workers: WorkerGroup = SINGLE
) -> AttentionStats | None:
    """The statistics that `folder` keeps for this model and calibration set, else observed now and kept there.

    Returns:
        None in processes that do not lead, if they were kept.
    Raises:
        FitPruneError: as `observe_questions`.
    """
    asked = [(str(q.question_id), str(q.image), q.text, *([q.video] if q.video else [])) for q in calibration.questions()]
    about = (vlm.name, vlm.template or vlm.prompt(""), str(Path(calibration.image_folder).absolute()), asked)
    path = folder / f"statistics-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.safetensors"
    known: list[AttentionStats] = []

    def kept() -> bool:
        if path.exists() and not anew:
            try:
                stats = AttentionStats.load(path)
                if stats.cost == vlm.cost and stats.samples == len(asked):
                    print(f"statistics of {stats.samples} samples from an earlier run, {path}")
                    known.append(stats)
            except FitPruneError:
                pass  # torn: they are ours to take again
        return bool(known)

    if workers.first(kept):
        return known[0] if known else None
    stats = observe_questions(vlm, calibration, workers=workers)

    def keep() -> None:
        stats.save(path)
        print(f"statistics of {stats.samples} samples of {calibration.question_file}, kept as {path}")

    workers.first(keep)
    return stats
