"""From a real-valued curve of surviving tokens to whole tokens that meet a budget exactly.

Fitting, and scaling a fitted recipe to another image size, both end with a curve such as 512.3, 498.7, … tokens alive
after each layer. Flooring every layer (as the released code does) misses the budget by up to some percentage points:
their "20%" recipe saves 15.4%. Here two small steps remain after flooring: give tokens back, or take them, one at a
time where the curve is furthest from its integer, until the budget holds and one more token would break it.

Left out: searching for the best of all integer schedules. The curve is an average over samples that is uncertain by far
more than one token.

    python -c "from fitprune.schedule.budget import *; from fitprune.cost import VICUNA_7B as c; \
        print(round_to_budget(scale_to_budget([0.9] * 16 + [0.5] * 16, 576, c, 0.6), 576, c, 0.6))"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TypeVar

from ..cost import CostModel, alive_after, deletions_of
from ..errors import FitPruneError

Count = TypeVar("Count", int, float)  # whole tokens, or an average of them


def smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest float in (low, high] for which `holds`, by bisection; `holds(high)` is taken for granted."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def unreachable(reduction_ratio: float, visual_tokens: int, reachable: float, cost: CostModel) -> FitPruneError:
    """The error for a budget that no schedule of the kind asked for can meet; it says which layers may delete, if not all."""
    some = cost.deletable if len(cost.deletable) < cost.layers else ()
    where = f", as only layer{'s' * (len(some) > 1)} {', '.join(map(str, some))} can delete" if some else ""
    return FitPruneError(
        f"a reduction ratio of {reduction_ratio:g} cannot be reached with {visual_tokens} visual tokens{where}: "
        f"ask for at most {math.floor(reachable * 1e4) / 1e4:g}"
    )


def scale_to_budget(fractions: Sequence[float], visual_tokens: int, cost: CostModel, reduction_ratio: float) -> list[float]:
    """The curve n·f^p, with the one exponent p that meets the budget: the same shape, deeper (p > 1) or shallower.

    Layers with f = 1 stay whole. A fraction of less than half a token counts as half a token, so that a schedule that
    ends with nothing can become shallower too.

    Args:
        fractions: Share of the visual tokens alive after each layer, [layer], never rising.
        visual_tokens: n, the count to scale to.
        reduction_ratio: Visual reduction to meet, a fraction in [0, 1).
    Returns:
        Tokens alive after each layer, [layer], real-valued, whose visual reduction is the ratio up to rounding noise.
    Raises:
        FitPruneError: when not even p → ∞ meets the budget; names the largest ratio that does.
    """
    if not visual_tokens or not reduction_ratio:
        return [float(visual_tokens)] * len(fractions)
    shape = [max(fraction, 0.5 / visual_tokens) for fraction in fractions]

    def curve(log_p: float) -> list[float]:
        return [visual_tokens * fraction ** (2.0**log_p) for fraction in shape]

    def saved(log_p: float) -> float:
        return cost.visual_reduction_of_alive(curve(log_p), visual_tokens)

    if saved(64) < reduction_ratio:
        raise unreachable(reduction_ratio, visual_tokens, saved(64), cost)
    return curve(smallest(lambda log_p: saved(log_p) >= reduction_ratio, -64, 64))


def expand_steps(values: Sequence[Count], steps: Sequence[int], visual_tokens: Count, layers: int) -> list[Count]:
    """A curve that changes only at steps: the tokens that enter, then from each step on its value, [layer]."""
    lengths = [after - step for step, after in pairwise([*steps, layers])]
    return [visual_tokens] * (layers - sum(lengths)) + [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]


def round_to_budget(
    alive: Sequence[float], visual_tokens: int, cost: CostModel, reduction_ratio: float, steps: Sequence[int] | None = None
) -> list[int]:
    """Whole tokens alive after each layer that meet the budget, nearest to a real-valued curve that about meets it.

    Args:
        alive: Real-valued tokens alive after each layer, [layer], never rising.
        visual_tokens: How many enter the first layer.
        reduction_ratio: Visual reduction to meet, a fraction in [0, 1).
        steps: The only layers that may delete, ascending; from one to the next the curve is level. None: all that can.
    Returns:
        Integers, [layer], never rising. Their visual reduction is at least the ratio, and there is a layer in which
        one more token would miss it (unless nothing is deleted at all). With `steps` they fall nowhere else, and one
        more token from any of the steps to the next, where there is one, would miss it.
    Raises:
        FitPruneError: when the first layer's attention, or what comes before the first step, alone costs more than the
            budget; names the largest ratio. So does a model without a layer that can delete.
    """
    starts = list(cost.deletable) if steps is None else list(steps)
    ends = [*starts[1:], cost.layers]
    curve = [alive[start] for start in starts]  # [step], as is `whole`
    whole = [min(visual_tokens, max(0, math.floor(value + 1e-9))) for value in curve]
    dense = sum(cost.visual_macs([visual_tokens] * cost.layers, visual_tokens))
    spent = sum(cost.visual_macs(expand_steps(whole, starts, visual_tokens, cost.layers), visual_tokens))
    last = len(starts) - 1
    entering, pair, leaving = (
        [0, *accumulate(getattr(layer, part) for layer in cost.per_layer)] for part in ("entering", "pair", "leaving")
    )  # sums over the layers before each, [layer + 1]

    def price(step: int, count: int) -> float:
        """What the count-th token alive from this step to the next costs: the rest of these layers, attention one on."""
        first, end = starts[step], ends[step]
        own, pairs = (sums[min(end, cost.layers - 1) + 1] - sums[first + 1] for sums in (entering, pair))
        return leaving[end] - leaving[first] + own + pairs * (2 * count - 1)

    def meets(macs: float) -> bool:
        return not dense or 1 - macs / dense >= reduction_ratio

    def remainder(step: int) -> float:
        return curve[step] - whole[step]

    while not meets(spent):
        above = [step for step in range(last + 1) if whole[step] > (whole[step + 1] if step < last else 0)]
        if not above:
            raise unreachable(reduction_ratio, visual_tokens, 1 - spent / dense, cost)
        step = min(above, key=remainder)
        spent -= price(step, whole[step])
        whole[step] -= 1
    while below := [step for step in range(last + 1) if whole[step] < (whole[step - 1] if step else visual_tokens)]:
        if steps is not None or cost.each:  # stretches differ in price: what does not fit in one may fit in another
            below = [step for step in below if meets(spent + price(step, whole[step] + 1))] or below
        step = max(below, key=remainder)
        more = spent + price(step, whole[step] + 1)
        if not meets(more):
            break
        spent = more
        whole[step] += 1
    return expand_steps(whole, starts, visual_tokens, cost.layers)


def at_budget(fractions: Sequence[float], visual_tokens: int, cost: CostModel, reduction_ratio: float, steps: Sequence[int]) -> list[int]:
    """Deletions per layer, [layer], of a shape made deeper or shallower until it meets the budget, in whole tokens and at these steps only.

    Arguments and errors as `scale_to_budget` and `round_to_budget`.
    """
    curve = scale_to_budget(fractions, visual_tokens, cost, reduction_ratio)
    return deletions_of(round_to_budget(curve, visual_tokens, cost, reduction_ratio, steps), visual_tokens)


@lru_cache(maxsize=256)
def rescaled(deletions: tuple[int, ...], reference: int, visual_tokens: int, cost: CostModel, reduction_ratio: float) -> tuple[int, ...]:
    """Deletions per layer, [layer], made at a reference count, at another: the same steps and shape, the budget met.

    Every prefill asks and few counts occur, hence the cache.

    Raises:
        FitPruneError: as `scale_to_budget`.
    """
    fractions = [count / reference for count in alive_after(deletions, reference)]
    steps = [layer for layer, gone in enumerate(deletions) if gone]
    return tuple(at_budget(fractions, visual_tokens, cost, reduction_ratio, steps))
