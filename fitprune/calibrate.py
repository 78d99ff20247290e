"""From a checkpoint and a handful of its questions to a recipe; and which recipe a run should use.

Fitting needs pictures and questions, no answers: `questions_for_calibration` takes evenly spaced ones, so that a file
sorted by kind is covered. `choose` is the one place that decides what a run prunes with: the file that was named,
else a published recipe, else one fitted earlier for this run, else one fitted now.

    fitprune fit --model-path embedded --reduction-ratio 0.6
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .embedded import embedded
from .errors import FitPruneError
from .evaluation.answer import encode_questions
from .evaluation.questions import Question, read_questions, told_apart
from .families import Loaded
from .fit import fit
from .observe import observe
from .ranks import ALONE, Ranks
from .recipe import Recipe
from .stats import AttentionStats

SAMPLES = 128  # calibration questions taken unless told otherwise


@dataclass(frozen=True)
class Calibration:
    """Where calibration questions come from, how many are taken, how many are run at a time, how the file is read."""

    question_file: str | Path
    image_folder: str | Path
    samples: int = SAMPLES
    batch_size: int = 8
    read: Callable[[Path], list[Question]] = read_questions

    @classmethod
    def shipped(cls, samples: int = SAMPLES, batch_size: int = 8) -> Calibration:
        """The embedded set, for embedded models."""
        return cls(embedded().calibration, embedded().calibration_images, samples, batch_size)

    @classmethod
    def nothing(cls, what: str) -> Calibration:
        """Where nothing may be fitted on: asked for questions it raises a FitPruneError that says what to do instead."""

        def refuse(path: Path) -> list[Question]:
            raise FitPruneError(what)

        return cls("", "", read=refuse)

    def questions(self) -> list[Question]:
        """Evenly spaced questions that have an image.

        Raises:
            FitPruneError: if there is none, or fewer than one sample is asked for.
        """
        if self.samples < 1:
            raise FitPruneError(f"cannot fit on {self.samples} samples: give at least 1")
        illustrated = [question for question in self.read(Path(self.question_file)) if question.image]
        if not illustrated:
            raise FitPruneError(f"{self.question_file} has no question with an image to fit on")
        count = min(self.samples, len(illustrated))
        return [illustrated[index * len(illustrated) // count] for index in range(count)]


def observe_questions(
    loaded: Loaded, calibration: Calibration | None = None, progress: bool = True, ranks: Ranks = ALONE
) -> AttentionStats:
    """Statistics of a loaded checkpoint on calibration questions, default the embedded ones; `ranks` and errors as `observe`."""
    calibration = calibration or Calibration.shipped()
    questions = calibration.questions()
    size = calibration.batch_size
    ranks.agree("calibration questions", told_apart(questions))
    batches = [questions[at : at + size] for at in range(0, len(questions), size)]

    def prepare(batch: Sequence[Question]) -> dict[str, Tensor]:
        return encode_questions(loaded, batch, calibration.image_folder, "right")

    return observe(loaded.model, batches, name=loaded.name, progress=progress, prepare=prepare, ranks=ranks)


def choose(
    loaded: Loaded,
    ratio: float,
    calibration: Calibration,
    *,
    recipe_file: str | Path | None = None,
    keep_at: str | Path | None = None,
    refit: bool = False,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> tuple[Recipe | None, str]:
    """The recipe for a run, and a line that says where it came from.

    Args:
        ratio: Reduction ratio as a fraction; 0 without a file means no pruning (None).
        recipe_file: A recipe to use whatever the ratio.
        keep_at: Where a recipe fitted here is kept, and looked for: one of the same model, ratio and number of samples.
        refit: Fit anew although one is kept.
        ranks: The processes of the run: the first one reads, fits and keeps, all observe and get the same recipe.
    Raises:
        FitPruneError: unreadable recipe, recipe for another model, nothing to fit on.
    """
    if ratio == 0 and recipe_file is None:
        return None, "no pruning (reduction ratio 0)"

    def fitted(stats: AttentionStats) -> tuple[Recipe, str]:
        recipe = fit(stats, reduction_ratio=ratio)
        where = ""
        if keep_at is not None:
            recipe.save(keep_at)
            where = f", saved as {keep_at}"
        return recipe, f"recipe fitted now on {recipe.samples} samples of {calibration.question_file}{where}"

    found = ranks.first(lambda: _known(loaded, ratio, calibration, recipe_file, keep_at, refit), packed, unpacked)
    if found is None:
        stats = observe_questions(loaded, calibration, progress, ranks)
        found = ranks.first(lambda: fitted(stats), packed, unpacked)
        assert found is not None
    return found


def _known(
    loaded: Loaded,
    ratio: float,
    calibration: Calibration,
    recipe_file: str | Path | None,
    keep_at: str | Path | None,
    refit: bool,
) -> tuple[Recipe, str] | None:
    """A recipe that need not be fitted: named, published or kept; arguments and errors as `choose`."""
    if recipe_file is not None:
        recipe = Recipe.load(recipe_file)
        recipe.check_model(loaded.cost)
        return recipe, f"recipe from {recipe_file}"
    try:
        recipe = Recipe.published(loaded.name, ratio)
        recipe.check_model(loaded.cost)
        return recipe, f"published recipe of {recipe.model} for {ratio:.0%}, which saves {recipe.achieved or 0:.1%}"
    except FitPruneError:
        pass  # nothing published for this model and ratio: fit one
    if keep_at is not None and Path(keep_at).exists() and not refit:
        try:
            recipe = Recipe.load(keep_at)
            recipe.check_model(loaded.cost)
            asked = (ratio, loaded.name, len(calibration.questions()))
            if (recipe.reduction_ratio, recipe.model, recipe.samples) == asked:
                return recipe, f"recipe fitted earlier on {recipe.samples} samples, {keep_at}"
        except FitPruneError:
            pass  # torn, or another model's: it is ours to make again
    return None


def packed(found: tuple[Recipe, str] | None) -> bytes:
    """A recipe and where it came from, for the other processes of a run."""
    return b"" if found is None else json.dumps(found[1]).encode() + b"\n" + found[0].to_bytes()


def unpacked(data: bytes) -> tuple[Recipe, str] | None:
    """What `packed` made."""
    source, _, recipe = data.partition(b"\n")
    return (Recipe.from_bytes(recipe), json.loads(source)) if data else None


def file_name(model: str, ratio: float | None = None, *more: str) -> str:
    """A readable file name stem such as `llava-1.5-7b-hf-r60`."""
    stem = [part for part in str(model).replace("\\", "/").split("/") if part][-1]
    return "-".join([stem, *([] if ratio is None else [f"r{round(ratio * 100, 4):g}"]), *more])


def spread(values: Sequence[float]) -> str:
    """`12, 11, …` with at most one decimal, for tables."""
    return " ".join(f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}" for value in values)
