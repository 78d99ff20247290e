"""Ablations of a sweep: one choice of FitPrune's at a time, the rest as it is; and how far apart the recipes are.

Three choices: `samples`, how many calibration questions the fit sees; `criterion`, which tokens the fit lets go
(`schedule.validation.CRITERIA`); `score`, what ranks tokens at run time. Each value becomes a method by name (methods.py), so that it is
answered, scored and drawn like any other, at the same cost. Statistics are taken once, for the largest number of samples;
fewer samples are evenly spaced ones of these. They are the questions that `--samples` would have taken if their number divides
the largest or every question was observed; else some are neighbours of those.

Recipes are compared by the share of the visual tokens that go in another layer, or stay where the other lets them go: the
total variation distance of the two distributions over layers. Fitting is cheap, so every smaller number of samples is also
drawn at random, again and again, to see how much the recipe depends on which samples they are. Draws come from the samples
observed, so near their number they overlap and differ by less than new samples would.

Left out: several choices varied together (name such methods: `--methods "cross samples=16 criterion=self"`), and answers for
every draw.

    fitprune sweep --ablate samples=4,16 criterion=cross,self --ratios 60 --benchmarks textvqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import FitPruneError
from ..recipe import Recipe
from ..schedule.validation import CRITERIA
from ..scores import SCORES
from ..tables import format_counts, markdown
from .methods import Made, fitted

if TYPE_CHECKING:
    from ..stats import AttentionStats

BASE = "fitprune"  # the method whose choices are varied
DRAWS = 20  # random sets of samples for each smaller number of them
CHOICES = {"criterion": CRITERIA, "score": tuple(SCORES)}  # "samples" takes numbers

Axis = tuple[str, list[str]]  # a choice and its values
Tried = Mapping[tuple[str, float], Made | FitPruneError]  # as methods.recipes gives


@dataclass(frozen=True)
class Difference:
    """How a method's recipe differs from the base's at the same ratio.

    Attributes:
        alive: Tokens alive after each layer, [layer].
        moved: Share of the visual tokens that go in another layer than by the base's recipe, or only in one of them.
        draws: The same of recipes from random sets of as many samples; empty where all samples are used.
    """

    method: str
    ratio: float
    alive: list[int]
    moved: float
    draws: list[float]


def axis(text: str) -> Axis:
    """argparse type of a choice with its values: `samples=4,16`."""
    name, _, listed = text.partition("=")
    values = [value for value in map(str.strip, listed.split(",")) if value]
    known = CHOICES.get(name, values if name == "samples" else ())
    if not values or any(value not in known for value in values):
        raise argparse.ArgumentTypeError(
            f"{text}: give samples=NUMBER,NUMBER, criterion= and some of {','.join(CRITERIA)}, or score= and some of {','.join(SCORES)}"
        )
    if name == "samples" and not all(value.isdecimal() and int(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text}: samples are whole numbers of at least 1")
    return name, [str(int(value)) for value in values] if name == "samples" else values


def most_samples(axes: Iterable[Axis], least: int) -> int:
    """The largest number of samples asked for, at least `least`."""
    return max([least, *(int(value) for name, values in axes if name == "samples" for value in values)])


def panels(axes: Sequence[Axis], samples: int) -> dict[str, dict[str, str]]:
    """By choice, the method of each value, in the order given and with the base's own value behind if it was not among them.

    Args:
        samples: How many are observed, which is what the base is fitted on.
    """
    own = {"samples": str(samples), "criterion": CRITERIA[0], "score": BASE}
    found: dict[str, dict[str, str]] = {}
    for name, values in axes:
        for value in [*values, own[name]]:
            method = BASE if value == own[name] else value if name == "score" else f"{BASE} {name}={value}"
            found.setdefault(name, {}).setdefault(value, method)
    return found


def methods(axes: Sequence[Axis], samples: int) -> list[str]:
    """The base and the methods of all values, each once; `samples` as `panels`."""
    return list(dict.fromkeys([BASE, *(one for panel in panels(axes, samples).values() for one in panel.values())]))


def differences(stats: AttentionStats, axes: Sequence[Axis], made: Tried) -> list[Difference]:
    """How far the recipes of an ablation are from the base's, ratio by ratio; methods without a recipe are left out.

    Args:
        stats: What the recipes were fitted on.
        made: Recipes by method and ratio, among them all of `methods`.
    """
    tokens = int(stats.visual_tokens.max())
    named = [name for name in methods(axes, stats.samples) if name not in SCORES or name == BASE]
    full = {ratio: got[0] for (name, ratio), got in made.items() if name == BASE and isinstance(got, tuple)}
    drawn = {name: _draws(stats, int(count), list(full)) for name in named if (count := name.partition("samples=")[2])}
    found = []
    for ratio, base in full.items():
        for name in named:
            if not isinstance(got := made[name, ratio], tuple):
                continue
            others = [schedule_distance(one[ratio], base, tokens) for one in drawn.get(name, []) if ratio in one]
            found.append(Difference(name, ratio, got[0].alive(tokens), schedule_distance(got[0], base, tokens), others))
    return found


def schedule_distance(one: Recipe, other: Recipe, visual_tokens: int) -> float:
    """Share of an image's tokens that go in another layer, or that only one recipe lets go; 0 for equal ones, at most 1."""
    gone = [recipe.deletions(visual_tokens) for recipe in (one, other)]
    stay = [visual_tokens - sum(counts) for counts in gone]
    apart = sum(abs(a - b) for a, b in zip(*gone, strict=True)) + abs(stay[0] - stay[1])
    return apart / (2 * visual_tokens)


def _draws(stats: AttentionStats, count: int, ratios: Sequence[float]) -> list[dict[float, Recipe]]:
    """Recipes by ratio from random sets of so many samples, the same sets every time."""
    import torch

    random = torch.Generator().manual_seed(count)
    found = []
    for _ in range(DRAWS if ratios else 0):
        rows = torch.randperm(stats.samples, generator=random)[:count].tolist()
        made = fitted(stats.rows(rows), ratios)
        found.append({ratio: one for ratio, one in made.items() if isinstance(one, Recipe)})
    return found


def recipes_compared(found: Sequence[Difference]) -> list[str]:
    """The differences as lines of a table; none without any."""
    if not found:
        return []
    head = ["method", "ratio", "tokens alive after each layer", f"differs from {BASE}", "random draws: mean (most)"]
    rows = [head]
    for one in found:
        draws = f"{sum(one.draws) / len(one.draws):.1%} ({max(one.draws):.1%})" if one.draws else "-"
        differs = "-" if one.method == BASE else f"{one.moved:.1%}"
        rows.append([one.method, f"{100 * one.ratio:.6g}%", format_counts(one.alive), differs, draws])
    share = f"share of the visual tokens that go in another layer than by {BASE}'s recipe, or by one of the two only"
    return ["## Recipes", "", *markdown(rows), "", f"Differs: {share}; draws: of {DRAWS} random sets of as many samples.", ""]
