"""What a recipe makes of one prefill: the frame that deletes, and the session that makes such frames.

Counts and shapes of all layers are fixed here before the first layer runs, from the recipe and the images' places, so
no layer has a word with the host: that is what lets a whole prefill be recorded (graphs.py).

    pytest tests/test_prune.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attach import Prefill
from .errors import FitPruneError
from .frame import Frame
from .recipe import Recipe
from .scores import Attended, Score
from .select import ALIVE, DELETED, PADDING, compact, lowest, padded_counts
from .trace import Steps, Trace


class PruneFrame(Frame):
    """A prefill whose deletions a recipe has fixed: every count and shape is known before the first layer."""

    def __init__(self, session: Pruning, *args: Any) -> None:
        super().__init__(*args)
        self.session = session
        recipe, layers = session.recipe, session.layers
        per_image = [[recipe.deletions(end - start, layers) for start, end in row] for row in self.spans]
        self.counts = [[[image[layer] for image in row] for row in per_image] for layer in range(layers)]
        alike = all(
            rows.count(rows[0]) == len(rows) for rows in self.counts
        )  # then a layer's counts are one number each
        counts = [padded_counts(rows) for rows in self.counts]
        self.quotas = None if alike else torch.tensor(counts, device=self.status.device)  # [L, B, I]
        self.steps: Steps = []
        self._plan((self.host_group != 0).sum(1).tolist())

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

    def listens(self, layer: int) -> bool:
        return any(any(row) for row in self.counts[layer])

    def choose(self, seen: Attended) -> Tensor:
        layer = self.layer
        seen.seed = self.session.seed
        quotas = None if self.quotas is None else self.quotas[layer].to(self.status.device)  # which may be another one
        score = self.session.score(seen).float()
        score = score if seen.heads is None else seen.heads.agree(score.contiguous())
        marked = lowest(score, self.token_group, self.counts[layer], quotas)
        self.status = self.status.masked_fill(marked, DELETED)
        self.token_group = self.token_group.masked_fill(marked, 0)
        self.fillers = self.ragged[layer]
        return compact(self.status, self.lengths[layer])

    def cut(self, hidden: Tensor) -> Tensor:
        hidden = super().cut(hidden)
        self.steps.append((self.columns, None if self.columns is None else self.status))
        return hidden


class Pruning:
    """The session behind `prune`: what does not change from one forward to the next."""

    def __init__(self, recipe: Recipe, layers: int, score: Score, seed: int) -> None:
        self.recipe, self.layers, self.score, self.seed = recipe, layers, score, seed
        self.trace = Trace()

    def begin(self, call: Prefill) -> Frame:
        frame = PruneFrame(self, *call.parts)
        frame.steps = self.trace.clear(frame.past, torch.where(frame.host_group == 0, PADDING, ALIVE), frame.host_group)
        return frame
