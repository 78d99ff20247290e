"""What a layer's attention saw, as scores read it: received attention and the last token's row, each computed once, when asked for.

python -c "from fitprune.kernels.attended import Attended; help(Attended)"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from . import TEXT, received_attention
from .chunked import room
from .masks import additive, causal
from .select import take
from .spread import unlikeness

FEW = 0.02  # attention that `others` adds to what a token receives


@dataclass
class Attended:
    """One layer's attention during a prefill, as scores see it. B rows, n tokens of this forward, K keys with the cache.

    query [B, H, n, D] and key [B, G, K, D] carry rotary embeddings, value [B, G, K, D'] is what they weigh; token_group [B, n] is
    `TEXT`, 0 (padding) or the number of the image that a token belongs to; `images` the largest such number; `visual` a range that
    holds all visual tokens; `seed` what a random score draws from; `logsumexp` [B, H, n] of the scaled scores, where the attention
    call gave it; `sizes` how many tokens each image has at most in any row, where the host knows that. Under tensor parallelism H and
    G are the heads of this process, and `heads` knows the others: `received`, `from_last`, `others`, `values` and `unlikeness` are those
    of all heads in any case.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None
    token_group: Tensor
    images: int
    visual: tuple[int, int]
    layer: int
    seed: int = 0
    logsumexp: Tensor | None = None
    heads: HeadGroup | None = None
    sizes: Sequence[int] | None = None

    @cached_property
    def received(self) -> tuple[Tensor, Tensor]:
        """Sums of attention received (cross [B, n], intra [B, n]) by the tokens of this forward, float32."""
        return self._received(self.token_group, (0 if self._pattern else self.visual[0], self.query.shape[2]), itself=True)

    @cached_property
    def from_last(self) -> Tensor:
        """[B, H, n] attention that the last token of each row pays, in each head, to the tokens of this forward, float32.

        The last token is the last real one: padding and deleted tokens, on either side, are passed over. Only its row of the
        map is computed, over all K keys (so `logsumexp` has nothing to save).
        """
        (batch, heads, n, size), (groups, keys) = self.query.shape, self.key.shape[1:3]
        position, past = torch.arange(keys, device=self.query.device), keys - n
        last = torch.where(self.token_group != 0, position[:n], 0).amax(dim=1, keepdim=True)  # [B, 1]
        query = take(self.query, last, 2).reshape(batch, groups, heads // groups, size)  # the heads of a key head
        logits = (query @ self.key.transpose(-1, -2)).float().mul_(self.scaling).view(batch, heads, 1, keys)
        if self.mask is not None and self._pattern:
            logits += additive(take(self.mask, last, 2), 1, keys, self.query)
        else:
            seen = causal(past + last, position[None], self.mask)  # [B, 1, 1, K]
            logits.masked_fill_(~seen, torch.finfo(torch.float32).min)
        attention = logits.softmax(dim=-1)[:, :, 0, past:]
        return attention if self.heads is None else self.heads.gather(attention)

    @cached_property
    def others(self) -> Tensor:
        """[B, n] attention that a visual token receives from an average other token of its image that can see it, float32.

        The paper's self factor without its two biases: that a token attends to itself, and that early ones are seen by more. `FEW` keeps
        what only a handful see from counting much.
        """
        _, intra = self._received(self.token_group.clamp(min=0), self.visual, itself=False)  # the text asks nothing
        return (intra + FEW) / self._viewers.clamp(min=1)

    @cached_property
    def values(self) -> Tensor:
        """[B, G, n, D'] the values of this forward's tokens, of all heads."""
        own = self.value[:, :, self.value.shape[2] - self.query.shape[2] :]
        return own if self.heads is None else self.heads.gather(own)

    def unlikeness(self, relevance: Tensor) -> Tensor:
        """[B, n] how unlike a visual token's values are to those of the more relevant tokens of its image (`kernels.spread`); 1 elsewhere.

        relevance: [B, n] float32, not negative.
        """
        left, right = self.visual
        past, n = self.key.shape[2] - self.query.shape[2], self.query.shape[2]
        value = self.value[:, :, past + left : past + right]
        sizes = self.sizes if self.sizes is not None else [right - left] * self.images
        found = unlikeness(value, relevance[:, left:right], self.token_group[:, left:right], sizes, heads=self.heads)
        return torch.nn.functional.pad(found, (left, n - right), value=1)

    @property
    def text_follows(self) -> Tensor:
        """[B, n] bool: whether any text comes after the token (without it, cross-attention says nothing)."""
        return (self.token_group == TEXT).flip(1).cumsum(1).flip(1) > 0

    def _received(self, query_group: Tensor, rows: tuple[int, int], itself: bool) -> tuple[Tensor, Tensor]:
        """Attention received from queries of these groups [B, n], which lie in these rows."""
        past = self.key.shape[2] - self.query.shape[2]
        cross, intra = received_attention(
            self.query,
            self.key,
            self.scaling,
            self.mask,
            query_group,
            torch.nn.functional.pad(self.token_group.clamp(min=0), (past, 0)),
            images=self.images,
            rows=rows,
            columns=(past + self.visual[0], past + self.visual[1]),
            logsumexp=self.logsumexp,
            heads=self.heads,
            itself=itself,
        )
        return cross[:, past:], intra[:, past:]

    @property
    def _pattern(self) -> bool:
        """Whether the mask says for each query what it sees, which need not be all that is before it."""
        return self.mask is not None and self.mask.ndim == 4

    @property
    def _viewers(self) -> Tensor:
        """[B, n] how many other tokens of its image see a visual token."""
        left, right = self.visual
        group = self.token_group[:, left:right]  # [B, m]
        if self._pattern:
            count = self._seen_by_mask(group)
        else:  # those behind it
            images = torch.arange(1, self.images + 1, device=group.device)
            member = group[:, None] == images[:, None]  # [B, I, m]
            count = ((member.flip(2).cumsum(2).flip(2) - 1) * member).sum(1)
        return torch.nn.functional.pad(count, (left, self.query.shape[2] - right))

    def _seen_by_mask(self, group: Tensor) -> Tensor:
        """[B, m] `_viewers` of the visual range by the mask, a few queries at a time."""
        assert self.mask is not None
        (left, right), past = self.visual, self.key.shape[2] - self.query.shape[2]
        count = torch.zeros_like(group)
        step = max(1, room(group.device) // (8 * max(1, group.numel())))  # sums widen what they add
        for start in range(0, right - left, step):
            stop = min(start + step, right - left)
            seen = self.mask[:, :, left + start : left + stop, past + left : past + right]
            seen = (seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2).any(1)
            seen = seen & (group[:, start:stop, None] == group[:, None]) & (group > 0)[:, None]  # [B, rows, m]
            seen.diagonal(start, 1, 2).fill_(False)
            count += seen.sum(1)
        return count
