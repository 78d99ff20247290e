"""Schedules of many shapes that all save the same: what is tried where a model itself says which of them it minds least.

A candidate begins in one layer (nothing goes before), deletes in all layers from there or in a few, and leaves a half by the end, more
of it early or late; then it is made deeper or shallower until it meets the budget. One step in layer 1 is FastV's
(https://arxiv.org/abs/2403.06764), a few steps a quarter of the depth apart are PyramidDrop's (https://arxiv.org/abs/2410.17247), the
even shape from layer 0 deletes the same share everywhere. Layers that cannot delete are passed over. Of deep models the last of the early
layers are left out, so that there are at most 42 candidates whatever the depth: what is tried costs prefills (choose.py).

    python -c "from fitprune.schedule.candidates import *; from fitprune.cost import VICUNA_7B; print(len(candidates(VICUNA_7B, 576, 0.6)))"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cost import CostModel
from ..errors import FitPruneError
from .budget import at_budget

DEEPER = (1 / 4, 1 / 3, 1 / 2)  # parts of the depth to begin at, …
EARLY = range(6)  # … and these layers, …
STARTS = 7  # … as long as there are no more than so many to begin in
POWERS = (0.4, 1.0, 2.0)  # of the depth behind the start: below 1 most goes early, above 1 late
STEPS = (1, 2, 3)  # or a few, evenly apart


def candidates(cost: CostModel, visual_tokens: int, reduction_ratio: float) -> dict[str, list[int]]:
    """Deletions per layer, [layer], by a name that says their shape; no two alike, none that misses the ratio.

    Args:
        visual_tokens: How many enter the first layer.
        reduction_ratio: Visual reduction to meet, a fraction above 0.
    Raises:
        FitPruneError: where no shape reaches the ratio.
    """
    found: dict[str, list[int]] = {}
    refused = None
    for name, shape, steps in _shapes(cost):
        try:
            deletions = at_budget(shape, visual_tokens, cost, reduction_ratio, steps)
        except FitPruneError as error:
            refused = refused or error
            continue
        if deletions not in found.values():
            found[name] = deletions
    if not found:
        raise refused or FitPruneError("no layer of this model can delete visual tokens: there is nothing to fit")
    return found


def _shapes(cost: CostModel) -> Iterator[tuple[str, list[float], Sequence[int]]]:
    """Name, share alive after each layer, and the layers that delete."""
    layers = cost.layers
    starts = (*(round(layers * part) for part in DEEPER), *EARLY)
    tails = dict.fromkeys(tuple(layer for layer in cost.deletable if layer >= one) for one in starts)
    for behind in sorted([tail for tail in tails if tail][:STARTS]):
        start = behind[0]
        for number in STEPS:
            steps = sorted({behind[len(behind) * at // number] for at in range(number)})
            if len(steps) == number:
                name = f"{number} step{'s' * (number > 1)} from layer {start}"
                yield name, [2.0 ** -sum(step <= layer for step in steps) for layer in range(layers)], steps
        for power in POWERS if len(behind) > max(STEPS) else ():
            depth = [sum(one <= layer for one in behind) / len(behind) for layer in range(layers)]
            yield f"falling from layer {start} by the power {power:g}", [2.0 ** -(part**power) for part in depth], behind
