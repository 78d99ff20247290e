"""Which recipe a run prunes with, decided in one place for every command.

In this order: the file that was named; a published recipe of this model and ratio; one that an earlier run fitted and kept;
one fitted now. What has to be fitted shares one dense pass over the calibration questions. Each choice says where it came from,
and commands print that.

    python -c "import fitprune; from fitprune.resolve import *; \
        print(resolve(fitprune.load('embedded'), [0.6], Calibration.shipped(8))[0].source)"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .calibrate import observe_questions
from .distributed.workers import SINGLE, WorkerGroup
from .errors import FitPruneError
from .families import VLM
from .fit import fit_all
from .questions import Calibration
from .recipe import Recipe

__all__ = ["Calibration", "Choice", "resolve"]


@dataclass(frozen=True)
class Choice:
    """A recipe to run with (None prunes nothing), what tables call it, and a line that says where it came from."""

    name: str
    recipe: Recipe | None
    source: str


def resolve(
    vlm: VLM,
    ratios: Sequence[float],
    calibration: Calibration,
    *,
    recipe_file: str | Path | None = None,
    keep_at: Callable[[float], str | Path] | None = None,
    refit: bool = False,
    progress: bool = True,
    workers: WorkerGroup = SINGLE,
) -> list[Choice]:
    """The recipe for each ratio, in their order, each once; a recipe that was named stands for all of them.

    Args:
        ratios: Reduction ratios as fractions; 0 means no pruning.
        calibration: What is fitted on where there is no recipe yet.
        keep_at: Where the recipe fitted for a ratio is kept, and looked for: one of the same model, ratio and number of samples.
        refit: Fit anew although one is kept.
        workers: The processes of the run: the first one reads, fits and keeps, all observe and get the same recipes.
    Raises:
        FitPruneError: unreadable recipe, recipe for another model, ratio out of reach, nothing to fit on.
    """
    if recipe_file is not None:

        def named() -> list[Choice | None]:
            recipe = Recipe.load(recipe_file)
            recipe.check_model(vlm.cost)
            stem = Path(recipe_file).name.removesuffix(".json")
            return [Choice(f"recipe {stem}", recipe, f"recipe from {recipe_file}")]

        found = workers.first(named, _packed, _unpacked)
        return [choice for choice in found if choice]
    ratios = list(dict.fromkeys(ratios))

    def known() -> list[Choice | None]:
        return [_known(vlm, ratio, calibration, keep_at and keep_at(ratio), refit) for ratio in ratios]

    found = workers.first(known, _packed, _unpacked)
    missing = [ratio for ratio, choice in zip(ratios, found, strict=True) if choice is None]
    if not missing:
        return [choice for choice in found if choice]
    stats = observe_questions(vlm, calibration, progress, workers)

    def fitted() -> list[Choice | None]:
        chosen: list[Choice | None] = []
        for ratio, recipe in fit_all(stats, None, missing).items():
            source = f"recipe fitted now on {recipe.samples} samples of {calibration.question_file}"
            if keep_at is not None:
                recipe.save(keep_at(ratio))
                source += f", saved as {keep_at(ratio)}"
            chosen.append(Choice(_percent(ratio), recipe, source))
        return chosen

    now = workers.first(fitted, _packed, _unpacked)
    made = iter(now)
    return [choice for before in found if (choice := before or next(made))]


def _known(vlm: VLM, ratio: float, calibration: Calibration, kept: str | Path | None, refit: bool) -> Choice | None:
    """What need not be fitted: nothing at all, a published recipe, or one that was kept."""
    if ratio == 0:
        return Choice(_percent(ratio), None, "no pruning (reduction ratio 0)")
    try:
        recipe = Recipe.published(vlm.name, ratio)
        recipe.check_model(vlm.cost)
        saved = f"which saves {recipe.achieved or 0:.1%}"
        return Choice(_percent(ratio), recipe, f"published recipe of {recipe.model} for {ratio:.0%}, {saved}")
    except FitPruneError:
        pass  # nothing published for this model and ratio
    if kept is not None and Path(kept).exists() and not refit:
        try:
            recipe = Recipe.load(kept)
            recipe.check_model(vlm.cost)
            asked = (ratio, vlm.name, len(calibration.questions()))
            if (recipe.reduction_ratio, recipe.model, recipe.samples) == asked:
                return Choice(_percent(ratio), recipe, f"recipe fitted earlier on {recipe.samples} samples, {kept}")
        except FitPruneError:
            pass  # torn, or another model's: it is ours to make again
    return None


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.6g}%"


def _packed(choices: list[Choice | None]) -> bytes:
    """Choices for the other processes of a run."""
    rows = [one and (one.name, one.recipe and one.recipe.to_bytes().decode(), one.source) for one in choices]
    return json.dumps(rows).encode()


def _unpacked(data: bytes) -> list[Choice | None]:
    return [row and Choice(row[0], None if row[1] is None else Recipe.from_bytes(row[1].encode()), row[2]) for row in json.loads(data)]
