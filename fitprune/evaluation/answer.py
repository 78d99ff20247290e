"""questions → answers file: ask a loaded checkpoint every question, in batches, pruned or not.

Answers are written batch by batch in question order and a rerun continues where the file ends (answers.py). A question that was found
unusable (usable.py) is answered with nothing; any other damaged image stops the run with its name, and what was answered stays. Per
batch the surviving visual tokens of each layer are counted from the trace, so that what was really kept is reported, not what the
recipe promised.

    python -m fitprune.evaluation.loader --help
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from ..arguments import DEFAULTS
from ..cost import CostModel
from ..distributed.workers import SINGLE, WorkerGroup, detect_lost_peer
from ..families import VLM
from ..prune import prune
from ..questions import Question, encode_questions, questions_digest
from ..recipe import Recipe
from .answers import AnswersFile, model_id


class Reduction(Protocol):
    """What lets fewer visual tokens enter the decoder, in the place of a recipe (studies/before.py)."""

    @property
    def timed(self) -> bool:
        """Whether the time it takes means anything."""

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its answers from others'."""

    def keep(self, visual_tokens: int, cost: CostModel) -> int:
        """How many tokens of so many enter the decoder, at most."""

    def applied(self, vlm: VLM) -> AbstractContextManager[VLM]:
        """The model to ask, inside the `with` block."""


@dataclass
class AnswerRun:
    """What a run did: `answered` now, `skipped` now, `resumed` from before; seconds of generation only.

    `visual_tokens` and `alive` (after each layer) are averages over the questions that have an image or a video.
    """

    path: Path
    answered: int = 0
    resumed: int = 0
    seconds: float = 0.0
    visual_tokens: float = 0.0
    alive: list[float] = field(default_factory=list)
    skipped: int = 0

    @property
    def milliseconds(self) -> float | None:
        """Time per question, None where nothing was answered now."""
        return 1000 * self.seconds / self.answered if self.answered else None


def warm_up(vlm: VLM, questions: Sequence[Question], image_folder: str | Path, workers: WorkerGroup = SINGLE) -> None:
    """One token for a batch of questions: the first forward of a process pays for what no other does; errors as `answer`."""
    inputs = workers.ready(partial(encode_questions, vlm, image_folder=image_folder), questions)
    with detect_lost_peer():
        vlm.generate(inputs, max_new_tokens=1)


def answer(
    vlm: VLM,
    questions: Sequence[Question],
    image_folder: str | Path,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    score: str | None = None,
    before: Reduction | None = None,
    batch_size: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    workers: WorkerGroup = SINGLE,
    **generation: Any,
) -> AnswerRun:
    """Answers questions into a file.

    Args:
        recipe: What to prune with; None runs the model as it is. score: As `prune` takes it.
        before: What shrinks images before the decoder, instead of a recipe.
        workers: The processes that share the batches; the first one alone needs the file, all get the figures.
        generation: `max_new_tokens`, `temperature`, `top_p`, `num_beams` as `VLM.generate`.
    Raises:
        FitPruneError: unreadable image, answers file of another run, recipe for another model.
    """
    settings: dict[str, Any] = {k: v for k, v in generation.items() if v != DEFAULTS.get(k)}
    if vlm.template != vlm.default_template:
        settings["template"] = vlm.template
    if recipe:
        settings |= {"reduction_ratio": recipe.reduction_ratio, "score": recipe.ranked_by(score), "recipe": _digest(recipe)}
        settings |= {} if recipe.absorb is None else {"absorb": recipe.absorb}
    if before:
        settings |= before.settings
    run = AnswerRun(Path(path))
    sums: list[float] = []

    with ExitStack() as stack:
        trace = stack.enter_context(prune(vlm.model, recipe, score=score)) if recipe else None
        asked = stack.enter_context(before.applied(vlm)) if before else vlm
        files: list[AnswersFile] = []  # of the first process

        def opened() -> int:
            files.append(AnswersFile(path, questions, model_id(vlm.name), overwrite, metadata=settings))
            stack.enter_context(files[0])
            if files[0].mended:
                print(f"{path}: {files[0].mended} questions were skipped earlier whose pictures can be used now: --overwrite asks them")
            return files[0].done

        def ask(inputs: dict[str, Tensor]) -> dict[str, Any]:
            start = time.perf_counter()
            texts = asked.generate(inputs, **generation)
            seconds = time.perf_counter() - start
            seen = trace is not None and vlm.count_visual(inputs["input_ids"]) > 0
            kept = [float(sum(map(len, rows))) for rows in trace.visual] if trace and seen else []
            visual = sum(trace.visual_tokens) if trace and seen else 0
            return {"texts": texts, "seconds": seconds, "kept": kept, "visual": visual}

        workers.check_same("questions", questions_digest(questions))
        workers.check_same("options", repr((batch_size, settings)).encode())
        run.resumed = workers.first(opened)
        left = list(questions[run.resumed :])
        run.skipped = sum(bool(question.unusable) for question in left)
        asked_of = [question for question in left if not question.unusable]
        batches = [asked_of[at : at + batch_size] for at in range(0, len(asked_of), batch_size)]

        def write(texts: Sequence[str]) -> None:
            """Answers to the next questions that are asked, after those that are skipped on the way."""
            for file in files:
                lines: list[str | None] = []
                for text in texts:
                    lines += [None] * _skipped(file.questions[file.done + len(lines) :])
                    lines.append(text)
                file.write(lines + [None] * _skipped(file.questions[file.done + len(lines) :]))

        write([])
        bar = stack.enter_context(
            tqdm(
                total=len(questions), initial=run.resumed, desc=f"answering {run.path.name}", unit="q",
                disable=not (progress and workers.leads),
            )
        )  # fmt: skip
        for found in workers.in_order(batches, partial(encode_questions, asked, image_folder=image_folder), ask):
            write(found["texts"])
            if kept := found["kept"]:
                sums = [a + b for a, b in zip(sums or [0.0] * len(kept), kept, strict=True)]
            run.visual_tokens += found["visual"]
            run.seconds += found["seconds"]
            run.answered += len(found["texts"])
            bar.update(len(found["texts"]))
    if run.answered:
        illustrated = max(sum(question.visual for question in left), 1)
        run.alive = [value / illustrated for value in sums]
        run.visual_tokens /= illustrated
    return run


def _skipped(questions: Sequence[Question]) -> int:
    """How many questions are skipped before the first that is asked."""
    return next((number for number, question in enumerate(questions) if not question.unusable), len(questions))


def _digest(recipe: Recipe) -> str:
    """A few letters that tell schedules apart, so that a run is never continued with another recipe."""
    return hashlib.sha256(repr((recipe.counts, recipe.visual_tokens, recipe.scaling)).encode()).hexdigest()[:12]
