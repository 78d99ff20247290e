"""Which schedule a model minds least: candidates that save the same, judged by what pruning does to the model's own answers.

The paper judges a schedule by the attention that deleted tokens received (fit.py). Here a *judge* says how far a recipe moves the dense
model's next-token distributions along its answers to calibration questions (drift, in nats per token; `studies.judge`). Trying every
candidate on every question would take tens of thousands of prefills, so they are halved: all on a few questions, the better ones on
more, the best with the other settings of the score, the last on all. How many prefills that takes is known beforehand (`forecast`): of 128
questions at most 2352, whatever the model's depth.

Means of drift are uncertain, so candidates are compared question by question. Those that cannot be told from the best within one standard
error count as equals, and of equals the one with the fewest steps is taken, which is the quickest to run; those within two are named.
Left out: a search over all integer schedules, and a table of what single layers cost, which does not add up (docs/LOG.md).

    pytest tests/test_choose.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from statistics import fmean, stdev
from typing import NoReturn, Protocol

from tqdm import tqdm

from .errors import FitPruneError
from .recipe import Recipe
from .schedule.candidates import candidates
from .schedule.validation import SPREAD
from .tables import duration

FEWEST = 8  # questions, below which nothing can be said
FIRST, SECOND = 3 / 16, 3 / 8  # share of the questions that all candidates, and the better ones, are judged on; the last on all
BETTER = 1 / 4  # share of the candidates that go into the second round
WITH_SCORES = 4  # candidates that are tried with the other scores, after the second round
LAST = 6  # that go into the last


class Judge(Protocol):
    """What says how far a recipe moves the dense model's answers to questions."""

    def __len__(self) -> int:
        """How many questions there are."""

    def __call__(self, recipe: Recipe, first: int, last: int) -> Sequence[float]:
        """The drift on each of the questions first … last - 1, in nats per token of the answer."""


@dataclass(frozen=True)
class Chosen:
    """The recipe, with its drift; names of the candidates that could not be told from it; how many prefills that took."""

    recipe: Recipe
    equals: tuple[str, ...]
    prefills: int

    def __str__(self) -> str:
        """What a command says of it."""
        near = "; ".join(self.equals) or "nothing else"
        return f"{self.recipe.source} after {self.prefills} pruned prefills; within two standard errors of the best: {near}"


def choose(fitted: Recipe, judge: Judge, scores: Sequence[str] = SPREAD, progress: bool = True) -> Chosen:
    """The candidate of least drift at a fitted recipe's ratio, that recipe among them.

    Args:
        fitted: The paper's, which says ratio, tokens and cost.
        judge: See `Judge`; asked about ever more questions of the best.
        scores: How tokens are ranked: the first with every candidate, the others with the best.
    Raises:
        FitPruneError: for fewer than `FEWEST` questions, and a recipe without a ratio or a cost model.
    """
    questions = len(judge)
    check_enough(questions)
    shapes = _shapes(fitted)
    plan = _Halving(len(shapes), len(scores), questions)
    with tqdm(total=plan.prefills, desc=f"choosing for {fitted.reduction_ratio:.0%}", unit="prefill", disable=not progress) as bar:
        trial = _Trial(judge, bar)
        names = [trial.enter(shape, recipe, scores[0]) for shape, recipe in shapes.items()]
        names = trial.round(names, plan.first)[: plan.better]
        names = trial.round(names, plan.second)
        for name in names[: plan.best]:
            shape = trial.shape[name]
            names += trial.round([trial.enter(shape, shapes[shape], score) for score in scores[1:]], plan.second)
        names = trial.round(trial.round(names, plan.second)[:LAST], questions)
    leader = trial.drifts[names[0]]
    equal = [name for name in names if _beyond(trial.drifts[name], leader) <= 1]
    taken = min(equal, key=lambda name: sum(map(bool, trial.recipes[name].counts)))  # of as many steps, the one of least drift
    found = trial.drifts[taken]
    recipe = replace(
        trial.recipes[taken],
        source=f"chosen by drift ({trial.shape[taken]})",
        drift=fmean(found),
        drift_error=_error(found),
        samples=questions,
    )
    near = tuple(name for name in names if name != taken and _beyond(trial.drifts[name], leader) <= 2)
    return Chosen(recipe, near, trial.prefills)


def choose_all(fitted: Mapping[float, Recipe], judge: Judge, scores: Sequence[str] = SPREAD, progress: bool = True) -> dict[float, Chosen]:
    """`choose` for each of several ratios; at 0 the fitted recipe, which deletes nothing, is what is chosen."""
    return {ratio: choose(recipe, judge, scores, progress) if ratio else Chosen(recipe, (), 0) for ratio, recipe in fitted.items()}


def most_prefills(fitted: Recipe, questions: int, scores: Sequence[str] = SPREAD) -> int:
    """How many pruned prefills `choose` takes, less those that a judge knows already.

    Raises:
        FitPruneError: as `choose`.
    """
    check_enough(questions)
    return _Halving(len(_shapes(fitted)), len(scores), questions).prefills


def check_enough(questions: int) -> None:
    """Refuses (FitPruneError) fewer than `FEWEST` questions."""
    if questions < FEWEST:
        raise FitPruneError(f"{questions} questions cannot tell schedules apart: give at least {FEWEST}, or fit by mass (--by mass)")


def forecast(fitted: Mapping[float, Recipe], questions: int, scores: Sequence[str] = SPREAD, seconds: float | None = None) -> str:
    """What choosing will take, in words, before it starts; errors as `choose`.

    Args:
        fitted: The recipes to begin with, by ratio; of 0 nothing is chosen.
        seconds: What a prefill takes, if that is known.
    """
    takes = {ratio: most_prefills(recipe, questions, scores) for ratio, recipe in fitted.items() if ratio}
    if not takes:
        return "by drift: nothing to choose at ratio 0"
    counts = [f"{count}{'' if at else ' pruned prefills'} for {100 * ratio:.6g}%" for at, (ratio, count) in enumerate(takes.items())]
    about = f", about {duration(seconds * sum(takes.values()))} at the speed of observing" if seconds else ""
    return f"by drift: at most {', '.join(counts)}{about} (fewer --samples need fewer; --by mass, the paper's way, needs none)"


def _shapes(fitted: Recipe) -> dict[str, Recipe]:
    """What is tried, by what is said of its shape."""
    if fitted.cost is None or not fitted.reduction_ratio:
        raise FitPruneError("a schedule is chosen at a reduction ratio above 0 and for a cost model: fit one first")
    found = {"as the paper fits it": fitted}
    for name, deletions in candidates(fitted.cost, fitted.visual_tokens, fitted.reduction_ratio).items():
        if tuple(deletions) == fitted.counts:
            continue
        achieved = fitted.cost.visual_reduction(deletions, fitted.visual_tokens)
        found[name] = replace(fitted, counts=tuple(deletions), achieved=achieved, alpha=None)
    return found


@dataclass(frozen=True)
class _Halving:
    """How many candidates are judged on how many questions, round by round."""

    shapes: int
    scores: int
    questions: int

    @property
    def first(self) -> int:
        return max(FEWEST, ceil(self.questions * FIRST))

    @property
    def second(self) -> int:
        return max(FEWEST, ceil(self.questions * SECOND))

    @property
    def better(self) -> int:
        return ceil(self.shapes * BETTER)

    @property
    def best(self) -> int:
        return min(WITH_SCORES, self.better)

    @property
    def prefills(self) -> int:
        more = self.best * (self.scores - 1)
        last = min(LAST, self.better + more)
        deeper = self.better * (self.second - self.first) + more * self.second
        return self.shapes * self.first + deeper + last * (self.questions - self.second)


class _Trial:
    """Candidates, by a name that says shape and score, and what the judge said of them so far."""

    def __init__(self, judge: Judge, bar: tqdm[NoReturn]) -> None:
        self.judge, self.bar, self.prefills = judge, bar, 0
        self.recipes: dict[str, Recipe] = {}
        self.shape: dict[str, str] = {}
        self.drifts: dict[str, list[float]] = {}

    def enter(self, shape: str, recipe: Recipe, score: str) -> str:
        """A candidate's name."""
        name = f"{shape}, {score}"
        self.recipes[name], self.shape[name], self.drifts[name] = replace(recipe, score=score), shape, []
        return name

    def round(self, names: Sequence[str], questions: int) -> list[str]:
        """Has candidates judged on so many questions; their names, the least drift first."""
        for name in names:
            known = self.drifts[name]
            new = list(self.judge(self.recipes[name], len(known), questions)) if len(known) < questions else []
            known += new
            self.prefills += len(new)
            self.bar.update(len(new))
        return sorted(names, key=lambda name: fmean(self.drifts[name]))


def _error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values))


def _beyond(drifts: Sequence[float], least: Sequence[float]) -> float:
    """How many standard errors a candidate's drift is above another's, question by question."""
    differences = [mine - other for mine, other in zip(drifts, least, strict=True)]
    mean, error = fmean(differences), _error(differences)
    return mean / error if error else inf if mean > 0 else 0.0
