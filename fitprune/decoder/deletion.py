"""What a recipe makes of one prefill: the state that deletes, and the policy that makes such states.

Counts and shapes of all layers are fixed here before the first layer runs, from the recipe and the images' places, so
no layer synchronises with the host: that is what lets a whole prefill be recorded (graphs.py).

    pytest tests/test_prune.py
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import FitPruneError, UnsupportedError
from ..kernels.absorb import absorb
from ..kernels.attended import Attended
from ..kernels.select import ALIVE, DELETED, compact, lowest, most, padded_counts
from ..recipe import Recipe
from ..scores import Score, ranks
from ..trace import Steps, Trace
from .state import Prefill, PrefillState
from .visual_tokens import tokens_of


class DeletionState(PrefillState):
    """A prefill whose deletions a recipe has fixed: every count and shape is known before the first layer."""

    def __init__(self, policy: DeletionPolicy, call: Prefill) -> None:
        super().__init__(call)
        self.policy = policy
        recipe, layers = policy.recipe, policy.layers
        per_image = [[recipe.deletions(tokens_of(image), layers) for image in row] for row in self.spans]
        self.counts = [[[image[layer] for image in row] for row in per_image] for layer in range(layers)]
        for layer, reason in policy.forbidden.items():
            if any(any(row) for row in self.counts[layer]):
                allowed = ", ".join(str(one) for one in range(layers) if one not in policy.forbidden)
                raise UnsupportedError(
                    f"the recipe deletes in layer {layer}, which {reason}: let it delete in layers {allowed or 'none'} only"
                )
        if recipe.absorb is not None and call.flash:
            raise UnsupportedError(
                "in this recipe survivors stand for several tokens (absorb), which flash attention has no mask for: load the model with "
                "attn_implementation='sdpa', or fit a recipe without"
            )
        alike = all(rows.count(rows[0]) == len(rows) for rows in self.counts)  # then a layer's counts are one number each
        counts = [padded_counts(rows) for rows in self.counts]
        self.quotas = None if alike else torch.tensor(counts, device=self.status.device)  # [L, B, I]
        self.steps: Steps = []
        self._sizes: list[list[int]] = []
        left = [[tokens_of(image) for image in row] for row in self.spans]
        for rows in self.counts:
            self._sizes.append(most(left))
            left = [[has - gone for has, gone in zip(*row, strict=True)] for row in zip(left, rows, strict=True)]
        self._plan((self.host_status == ALIVE).sum(1).tolist())

    def _plan(self, carried: list[int]) -> None:
        """Fixes how many columns each layer carries on, for rows that begin with so many that are to be carried."""
        self.lengths, self.ragged = [], []
        for counts in self.counts:
            carried = [left - sum(row) for left, row in zip(carried, counts, strict=True)]
            if any(left <= 0 and sum(row) for left, row in zip(carried, counts, strict=True)):
                raise FitPruneError(
                    "a row of the batch has no text and the recipe deletes all of its visual tokens, so nothing is left: "
                    "add text to the prompt, or use a recipe that keeps a token"
                )
            self.lengths.append(max(carried))
            self.ragged.append(len(set(carried)) > 1)
        if self.call.recurrent and self.call.past and any(self.ragged):
            raise UnsupportedError(
                "rows of this later turn lose unlike numbers of tokens, and linear attention, whose state is not empty any more, "
                "would take what fills them up for tokens: ask one row at a time"
            )

    def needs_scores(self, layer: int) -> bool:
        return any(any(row) for row in self.counts[layer])

    def image_sizes(self, layer: int) -> list[int]:
        return self._sizes[layer]

    def select_survivors(self, seen: Attended) -> Tensor:
        layer = seen.layer
        seen.seed = self.policy.seed
        quotas = None if self.quotas is None else self.quotas[layer].to(self.status.device)  # which may be another one
        marked = lowest(ranks(self.policy.score, seen), self.token_group, self.counts[layer], quotas)
        group = self.token_group
        self.status = self.status.masked_fill(marked, DELETED)
        self.token_group = group.masked_fill(marked, 0)
        self.pad_slots = self.ragged[layer]
        survivors = compact(self.status, self.lengths[layer], pads_first=bool(self.call.recurrent))
        if (least := self.policy.recipe.absorb) is not None:
            most = max(map(sum, self.counts[layer]))
            self.absorbed = absorb(seen.values, self.size, group, marked, most, survivors, least)
        return survivors

    def carry_on(self, survivors: Tensor | None) -> None:
        super().carry_on(survivors)
        self.steps.append((self.token_index, None if self.token_index is None else self.status))


class DeletionPolicy:
    """What does not change from one forward to the next while a recipe is attached."""

    def __init__(self, recipe: Recipe, layers: int, score: Score, seed: int, forbidden: Mapping[int, str] | None = None) -> None:
        """
        Args:
            forbidden: Layers where nothing can be deleted, and why (`forbidden_layers`).
        """
        self.recipe, self.layers, self.score, self.seed = recipe, layers, score, seed
        self.forbidden = forbidden or {}
        self.trace = Trace()

    def begin(self, call: Prefill) -> PrefillState:
        state = DeletionState(self, call)
        state.steps = self.trace.clear(state.past, state.host_status, state.host_group)
        return state
