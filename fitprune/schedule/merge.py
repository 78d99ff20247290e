"""Fewer steps within the same budget: small deletions are folded together where a step costs more than it saves.

A *step* is a layer that deletes. It scores, sorts and gathers, which takes time even if one token goes, and fitted
recipes have many such layers. What a step costs is measured (`fitprune bench`) in *token-layers*: as many tokens could go
through one decoder layer in that time. What it saves is what waiting would cost: its deletions times the layers until
the next step, or to the end. While some step saves less than it costs, the one that saves least is folded.

Folding removes a step and spreads its deletions over the steps on either side, so that survivors between them are the
mean of what they were over those layers: the same token-layers. The first step has none before it and joins the next.
What that and rounding change is made up for over the whole schedule, in its own shape, until the budget is met
(`schedule.scale_to_budget`, `schedule.round_to_budget`). So every schedule on the way saves what the first did; a higher cost of a
step only goes further on the same way, and what has been merged stays as it is.

Left out: the best set of steps by dynamic programming. With the budget kept, fewer steps are always faster, so what is
best depends on how far the curve may go from the fitted one, and nothing here says so.

    python -c "from fitprune import Recipe; print(Recipe.published('llava-v1.5-7b', 0.6).merge_steps(100))"
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..cost import CostModel, alive_after
from .budget import at_budget, expand_steps


def savings(deletions: Sequence[int]) -> dict[int, int]:
    """Token-layers that each step saves against waiting for the next one, by layer, for deletions per layer, [layer]."""
    steps = [layer for layer, gone in enumerate(deletions) if gone]
    return {step: deletions[step] * (after - step) for step, after in pairwise([*steps, len(deletions)])}


def merge(deletions: Sequence[int], visual_tokens: int, step_cost: float, cost: CostModel) -> list[int]:
    """Deletions with fewer steps that save as much visual compute.

    Args:
        deletions: Visual tokens deleted in each layer, [layer].
        visual_tokens: How many enter the first layer.
        step_cost: Token-layers that take as long as one step.
        cost: The model's cost, of as many layers.
    Returns:
        Deletions per layer, [layer], in some of the layers that had any. Each step saves at least `step_cost`, or the
        budget could not be met without it. One token more from any step to the next would miss the budget (unless
        nothing was folded).
    """
    alive = alive_after(deletions, visual_tokens)
    budget = cost.visual_reduction_of_alive(alive, visual_tokens)

    def dispensable(step: int, steps: Sequence[int]) -> bool:
        """Whether the other steps could meet the budget at all, by deleting everything."""
        if not (others := [other for other in steps if other != step]):
            return False
        most = [visual_tokens] * others[0] + [0] * (cost.layers - others[0])
        return cost.visual_reduction_of_alive(most, visual_tokens) >= budget

    merged = list(deletions)
    while saved := savings(merged):
        weak = [step for step in saved if saved[step] < step_cost and dispensable(step, list(saved))]
        if not weak:
            break
        least = min(weak, key=lambda step: saved[step])
        merged = _at(alive, visual_tokens, [step for step in saved if step != least], cost, budget)
    return merged


def _at(alive: Sequence[int], visual_tokens: int, steps: Sequence[int], cost: CostModel, budget: float) -> list[int]:
    """Deletions per layer, [layer], at these steps only: means of the survivors in between, the budget met."""
    means = [sum(alive[step:after]) / (after - step) for step, after in pairwise([*steps, cost.layers])]
    fractions = [mean / visual_tokens for mean in expand_steps(means, steps, visual_tokens, cost.layers)]
    return at_budget(fractions, visual_tokens, cost, budget, steps)
