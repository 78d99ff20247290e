"""From how many visual tokens on a pruned prefill is faster than a dense one on this device.

Pruning costs something however few tokens there are: scoring, sorting and gathering in every layer that deletes. Below some length
that is more than what is saved. The same recipe, scaled, is tried at lengths that double until it pays, then by bisection; it *pays*
where three quarters of the rounds are faster, so that noise alone does not.

    fitprune bench --break-even --layers 8 --skip vision decode
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import FitPruneError
from ..prune import prune
from ..recipe import Recipe
from .clock import alternate, faster
from .models import Workload, twin

START = 16  # visual tokens: where the search begins
FURTHER = 2  # the search ends at this many times the shape's own visual tokens


def break_even(work: Workload, recipe: Recipe, rounds: int) -> dict[str, Any]:
    """The visual `tokens` from which pruning pays against plain dense, None if it does not up to the `limit`.

    `tried`: [visual tokens, speed-up, its lower quartile] each.
    """
    tried: list[list[float]] = []

    def pays(visual: int) -> bool:
        if not deletes(recipe, visual, work.shape.cost.layers):
            return False
        here = work.resized(visual)
        model = twin(work.model)
        variants = {"dense": lambda: here.prefill(work.model), "pruned": lambda: here.prefill(model)}
        with prune(model, recipe, visual_mask=here.visual_mask):
            alternate(variants, 1, work.device)  # warm
            times = alternate(variants, rounds, work.device)
        gain = faster(times["dense"], times["pruned"])
        tried.append([visual, gain.median, gain.low])
        return gain.low > 1

    limit = FURTHER * work.shape.visual
    tokens = smallest_that_pays(pays, limit, min(START, limit))
    return {"tokens": tokens, "limit": limit, "tried": sorted(tried)}


def deletes(recipe: Recipe, visual: int, layers: int) -> bool:
    """Whether the recipe deletes any of so few visual tokens; one whose budget is out of reach there does not."""
    try:
        return any(recipe.deletions(visual, layers))
    except FitPruneError:
        return False


def smallest_that_pays(pays: Callable[[int], bool], limit: int, start: int, within: float = 0.1) -> int | None:
    """The smallest number for which `pays`, to within that share of itself; None if there is none up to `limit`.

    Assumes that what pays for one number pays for all larger ones. Numbers below `start` are not tried: it may pay there, too.
    """
    low, high = 0, start
    while not pays(high):
        if high >= limit:
            return None
        low, high = high, min(2 * high, limit)
    while low and high - low > max(1, within * high):
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high
