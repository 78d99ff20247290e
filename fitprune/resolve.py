"""Which recipe a run prunes with, decided in one place for every command.

In this order: the file that was named; a published recipe of this model and ratio; one that an earlier run fitted and kept;
one fitted now. What has to be fitted shares one dense pass over the calibration questions. Each choice says where it came from,
and commands print that.

A ratio can be met in two ways (`schedule.validation.WAYS`): by mass, the paper's, or by drift, where many schedules are tried on
the model (choose.py), which takes long, is said beforehand, and of which nothing is published. Recipes of the two are kept apart. A
recipe that is published or fitted by mass names no score and is run with the paper's, unless a command asks for another one here
(`recipe.RECOMMENDED`, in report and serve); a file that was named, and what was chosen by drift, keep their own.

    python -c "import fitprune; from fitprune.resolve import *; \
        print(resolve(fitprune.load('embedded'), [0.6], Calibration.shipped(8))[0].source)"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .calibrate import observe_timed
from .choose import Judge, check_enough, choose, forecast
from .distributed.workers import SINGLE, WorkerGroup
from .errors import FitPruneError
from .families import VLM
from .fit import fit_all
from .questions import Calibration
from .recipe import Recipe
from .schedule.validation import WAYS

__all__ = ["Calibration", "Choice", "resolve"]

MASS, DRIFT = WAYS
DONE = {MASS: "fitted", DRIFT: "chosen by drift"}


@dataclass(frozen=True)
class Choice:
    """A recipe to run with (None prunes nothing), what tables call it, and a line that says where it came from."""

    name: str
    recipe: Recipe | None
    source: str

    @property
    def by(self) -> str:
        """The way in which it was fitted."""
        return MASS if self.recipe is None or self.recipe.drift is None else DRIFT


def resolve(
    vlm: VLM,
    ratios: Sequence[float],
    calibration: Calibration,
    *,
    recipe_file: str | Path | None = None,
    by: Sequence[str] = (MASS,),
    judge: Callable[[], Judge] | None = None,
    score: str | None = None,
    keep_at: Callable[[float, str], str | Path] | None = None,
    refit: bool = False,
    progress: bool = True,
    workers: WorkerGroup = SINGLE,
) -> list[Choice]:
    """The recipe for each ratio and way, in their order, each once; a recipe that was named stands for all of them.

    Args:
        ratios: Reduction ratios as fractions; 0 means no pruning.
        calibration: What is fitted on where there is no recipe yet.
        by: Some of `WAYS`.
        judge: Makes what judges schedules, where one has to be chosen by drift: `studies.judge.DriftJudge`.
        score: What found and fitted recipes are ranked by, if they name no score.
        keep_at: Where the recipe for a ratio and way is kept, and looked for: one of the same model, ratio, way and number of samples.
        refit: Fit anew although one is kept.
        workers: The processes of the run: the first one reads, fits and keeps, all observe and get the same recipes.
    Raises:
        FitPruneError: unreadable recipe, recipe for another model, ratio out of reach, nothing to fit on, nothing to judge with.
    """
    if recipe_file is not None:

        def named() -> list[Choice | None]:
            recipe = Recipe.load(recipe_file)
            recipe.check_model(vlm.cost)
            stem = Path(recipe_file).name.removesuffix(".json")
            return [Choice(f"recipe {stem}", recipe, f"recipe from {recipe_file}")]

        return [choice for choice in workers.first(named, _packed, _unpacked) if choice]
    if DRIFT in by and judge is None:
        raise FitPruneError("a judge= is needed to choose by drift")
    wanted = [(ratio, way) for ratio in dict.fromkeys(ratios) for way in dict.fromkeys(by if ratio else (MASS,))]

    def at(ratio: float, way: str) -> str | Path | None:
        return keep_at and keep_at(ratio, way)

    def known() -> list[Choice | None]:
        return [_known(vlm, ratio, way, calibration, at(ratio, way), refit) for ratio, way in wanted]

    found = dict(zip(wanted, workers.first(known, _packed, _unpacked), strict=True))
    if missing := [one for one in wanted if found[one] is None]:
        found |= _fitted(vlm, missing, calibration, judge, at, progress, workers)
    return [_ranked(choice, score) for choice in found.values() if choice]


def _known(vlm: VLM, ratio: float, way: str, calibration: Calibration, kept: str | Path | None, refit: bool) -> Choice | None:
    """What need not be fitted: nothing at all, a published recipe, or one that was kept."""
    name = _name(ratio, way)
    if ratio == 0:
        return Choice(name, None, "no pruning (reduction ratio 0)")
    try:
        if way == MASS:
            recipe = Recipe.published(vlm.name, ratio)
            recipe.check_model(vlm.cost)
            saved = f"which saves {recipe.achieved or 0:.1%}"
            return Choice(name, recipe, f"published recipe of {recipe.model} for {ratio:.0%}, {saved}")
    except FitPruneError:
        pass  # nothing published for this model and ratio
    if kept is not None and Path(kept).exists() and not refit:
        try:
            recipe = Recipe.load(kept)
            recipe.check_model(vlm.cost)
            asked = (ratio, vlm.name, len(calibration.questions()), way == DRIFT, way == DRIFT, None)
            found = recipe.reduction_ratio, recipe.model, recipe.samples, recipe.drift is not None, recipe.score is not None, recipe.absorb
            if found == asked:
                return Choice(name, recipe, f"recipe {DONE[way]} earlier on {recipe.samples} samples, {kept}")
        except FitPruneError:
            pass  # torn, or another model's: it is ours to make again
    return None


def _fitted(
    vlm: VLM,
    missing: Sequence[tuple[float, str]],
    calibration: Calibration,
    judge: Callable[[], Judge] | None,
    at: Callable[[float, str], str | Path | None],
    progress: bool,
    workers: WorkerGroup,
) -> dict[tuple[float, str], Choice | None]:
    """What is fitted and chosen now, by ratio and way; each is kept as soon as it is there."""
    if judge is not None and any(way == DRIFT for _, way in missing):
        check_enough(len(calibration.questions()))
    stats, seconds = observe_timed(vlm, calibration, progress, workers)
    ratios = list(dict.fromkeys(ratio for ratio, _ in missing))

    def made(ratio: float, way: str, recipe: Recipe) -> list[Choice | None]:
        source = f"recipe {DONE[way]} now on {recipe.samples} samples of {calibration.question_file}"
        if (ratio, way) in missing and (path := at(ratio, way)) is not None:
            recipe.save(path)
            source += f", saved as {path}"
        return [Choice(_name(ratio, way), recipe, source)]

    def by_mass() -> list[Choice | None]:
        return [choice for ratio, recipe in fit_all(stats, None, ratios).items() for choice in made(ratio, MASS, recipe)]

    fitted = dict(zip(ratios, workers.first(by_mass, _packed, _unpacked), strict=True))
    found = {(ratio, MASS): choice for ratio, choice in fitted.items()}
    starts = {ratio: one.recipe for ratio, one in fitted.items() if (ratio, DRIFT) in missing and one and one.recipe}
    if starts and judge is not None:
        judging = judge()
        if workers.leads:
            print(forecast(starts, len(judging), seconds=seconds), flush=True)
        for ratio, start in starts.items():
            chosen = choose(start, judging, progress=progress and workers.leads)
            (found[ratio, DRIFT],) = workers.first(partial(made, ratio, DRIFT, chosen.recipe), _packed, _unpacked)
            if workers.leads:
                print(chosen, end="\n\n")
    return {one: found[one] for one in missing}


def _ranked(choice: Choice, score: str | None) -> Choice:
    """With the score that is asked for, if its recipe names none; its source says which it names."""
    if choice.recipe is None or not (named := choice.recipe.score or score):
        return choice
    return replace(choice, recipe=replace(choice.recipe, score=named), source=f"{choice.source}, ranked by {named}")


def _name(ratio: float, way: str) -> str:
    return f"{100 * ratio:.6g}%{' by drift' if way == DRIFT else ''}"


def _packed(choices: Iterable[Choice | None]) -> bytes:
    """Choices for the other processes of a run."""
    rows = [one and (one.name, one.recipe and one.recipe.to_bytes().decode(), one.source) for one in choices]
    return json.dumps(rows).encode()


def _unpacked(data: bytes) -> list[Choice | None]:
    return [row and Choice(row[0], None if row[1] is None else Recipe.from_bytes(row[1].encode()), row[2]) for row in json.loads(data)]
