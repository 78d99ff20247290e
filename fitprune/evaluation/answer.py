"""questions → answers file: ask a loaded checkpoint every question, in batches, pruned or not.

Answers are written batch by batch in question order and a rerun continues where the file ends (answers.py). A damaged
picture stops the run with its name; what was answered before stays. Per batch the surviving visual tokens of each
layer are counted from the trace, so that what was really kept is reported, not what the recipe promised.

    python -m fitprune.evaluation.loader --help
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..families import Loaded
from ..families.loaded import read_image
from ..prune import prune
from ..recipe import Recipe
from .answers import AnswersFile, model_id
from .questions import Question

DEFAULTS = {"max_new_tokens": 128, "temperature": 0.0, "top_p": None, "num_beams": 1}  # anything else is noted per line


@dataclass
class AnswerRun:
    """What a run did: `answered` now, `resumed` from before; seconds of generation only.

    `visual_tokens` and `alive` (after each layer) are averages over the questions that have an image.
    """

    path: Path
    answered: int = 0
    resumed: int = 0
    seconds: float = 0.0
    visual_tokens: float = 0.0
    alive: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float | None:
        """Time per question, None where nothing was answered now."""
        return 1000 * self.seconds / self.answered if self.answered else None


def open_picture(question: Question, image_folder: str | Path, pixels: bool = True) -> Image.Image:
    """The picture of a question that has one, from the folder or from the question itself; `pixels` as `read_image`.

    Raises:
        FitPruneError: unreadable picture.
    """
    if question.picture is not None:
        return read_image(str(question.image), pixels, question.picture)
    return read_image(Path(image_folder) / str(question.image), pixels)


def encode_questions(
    loaded: Loaded, questions: Sequence[Question], image_folder: str | Path, padding_side: str = "left"
) -> dict[str, Tensor]:
    """Model inputs of a batch of questions, with their images where they have one.

    Raises:
        FitPruneError: unreadable image.
    """
    asked = (
        (loaded.prompt(q.text, image=bool(q.image)), [open_picture(q, image_folder)] if q.image else [])
        for q in questions
    )
    return loaded.encode(list(asked), padding_side)


def answer(
    loaded: Loaded,
    questions: Sequence[Question],
    image_folder: str | Path,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    score: str = "fitprune",
    batch_size: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    **generation: Any,
) -> AnswerRun:
    """Answers questions into a file.

    Args:
        recipe: What to prune with; None runs the model as it is.
        generation: `max_new_tokens`, `temperature`, `top_p`, `num_beams` as `Loaded.generate`.
    Raises:
        FitPruneError: unreadable image, answers file of another run, recipe for another model.
    """
    settings: dict[str, Any] = {k: v for k, v in generation.items() if v != DEFAULTS.get(k)}
    if loaded.template != loaded.default_template:
        settings["template"] = loaded.template
    if recipe:
        settings |= {"reduction_ratio": recipe.reduction_ratio, "score": score, "recipe": _digest(recipe)}
    run = AnswerRun(Path(path))
    sums: list[float] = []
    attached = prune(loaded.model, recipe, score=score) if recipe else nullcontext()
    with AnswersFile(path, questions, model_id(loaded.name), overwrite, metadata=settings) as file, attached as trace:
        run.resumed = file.done
        left = list(questions[file.done :])
        with tqdm(
            total=len(questions), initial=file.done, desc=f"answering {Path(path).name}", unit="q", disable=not progress
        ) as bar:
            for at in range(0, len(left), batch_size):
                batch = left[at : at + batch_size]
                inputs = encode_questions(loaded, batch, image_folder)
                start = time.perf_counter()
                texts = loaded.generate(inputs, **generation)
                run.seconds += time.perf_counter() - start
                if trace is not None and any(q.image for q in batch):
                    kept = [float(sum(map(len, rows))) for rows in trace.visual]
                    sums = [a + b for a, b in zip(sums or [0.0] * len(kept), kept, strict=True)]
                    run.visual_tokens += sum(trace.visual_tokens)
                file.write(texts)
                run.answered += len(batch)
                bar.update(len(batch))
    if run.answered:
        illustrated = max(sum(bool(question.image) for question in left), 1)
        run.alive = [value / illustrated for value in sums]
        run.visual_tokens /= illustrated
    return run


def _digest(recipe: Recipe) -> str:
    """A few letters that tell schedules apart, so that a run is never continued with another recipe."""
    return hashlib.sha256(repr((recipe.counts, recipe.visual_tokens, recipe.scaling)).encode()).hexdigest()[:12]
