"""What a layer's attention saw, as scores read it: received attention and the last token's row, each computed once, when asked for.

python -c "from fitprune.kernels.attended import Attended; help(Attended)"
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from . import TEXT, received_attention
from .chunked import logsumexp
from .masks import additive, causal
from .select import take

FEW = 0.02  # attention that `others` adds to what a token receives


@dataclass
class Attended:
    """One layer's attention during a prefill, as scores see it. B rows, n tokens of this forward, K keys with the cache.

    query [B, H, n, D] and key [B, G, K, D] carry rotary embeddings, value [B, G, K, D'] is what they weigh; token_group [B, n] is
    `TEXT`, 0 (padding) or the number of the image that a token belongs to; `images` the largest such number; `visual` a range that
    holds all visual tokens; `seed` what a random score draws from; `logsumexp` [B, H, n] of the scaled scores, where the attention
    call gave it. Under tensor parallelism H and G are the heads of this process, and `heads` knows the others:
    `received`, `from_last`, `others` and `values` are those of all heads in any case.
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

    @cached_property
    def received(self) -> tuple[Tensor, Tensor]:
        """Sums of attention received (cross [B, n], intra [B, n]) by the tokens of this forward, float32."""
        past = self.key.shape[2] - self.query.shape[2]
        key_group = torch.nn.functional.pad(self.token_group.clamp(min=0), (past, 0))
        cross, intra = received_attention(
            self.query,
            self.key,
            self.scaling,
            self.mask,
            self.token_group,
            key_group,
            images=self.images,
            rows=(0 if self.mask is not None and self.mask.ndim == 4 else self.visual[0], self.query.shape[2]),
            columns=(past + self.visual[0], past + self.visual[1]),
            logsumexp=self.logsumexp,
            heads=self.heads,
        )
        return cross[:, past:], intra[:, past:]

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
        if self.mask is not None and self.mask.ndim == 4:
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
        if self.logsumexp is None:
            self.logsumexp = logsumexp(self.query, self.key, self.scaling, self.mask, self.visual)
        return (self.received[1] - self._from_itself).clamp(min=0).add(FEW) / self._viewers.clamp(min=1)

    @cached_property
    def values(self) -> Tensor:
        """[B, G, n, D'] the values of this forward's tokens, of all heads."""
        own = self.value[:, :, self.value.shape[2] - self.query.shape[2] :]
        return own if self.heads is None else self.heads.gather(own)

    @property
    def _from_itself(self) -> Tensor:
        """[B, n] the strongest attention over heads that a visual token pays to itself; 0 elsewhere."""
        assert self.logsumexp is not None
        (_, heads, n, _), (groups, keys) = self.query.shape, self.key.shape[1:3]
        left, right = self.visual
        past = keys - n
        query = self.query[:, :, left:right].float().unflatten(1, (groups, heads // groups))
        key = self.key[:, :, None, past + left : past + right].float()
        scores = (query * key).sum(-1).flatten(1, 2) * self.scaling  # [B, H, m]
        if self.mask is not None and self.mask.is_floating_point():
            scores = scores + self.mask.diagonal(past, 2, 3)[..., left:right].float()
        paid = (scores - self.logsumexp[:, :, left:right]).amax(1).clamp(max=0).exp()
        paid = torch.nn.functional.pad(paid if self.heads is None else self.heads.maximum(paid.contiguous()), (left, n - right))
        return paid * (self.token_group > 0)

    @property
    def _viewers(self) -> Tensor:
        """[B, n] how many other tokens of its image see a visual token."""
        left, right = self.visual
        group = self.token_group[:, left:right]
        same = (group[:, :, None] == group[:, None]) & (group > 0)[:, None]  # [B, m, m], queries by keys
        if self.mask is not None and self.mask.ndim == 4:
            past = self.key.shape[2] - self.query.shape[2]
            mask = self.mask[:, :, left:right, past + left : past + right]
            seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(1)
        else:
            place = torch.arange(right - left, device=group.device)
            seen = (place <= place[:, None])[None]
        count = (same & seen).sum(1) - (group > 0).long()
        return torch.nn.functional.pad(count, (left, self.query.shape[2] - right)).clamp(min=0)

    @property
    def text_follows(self) -> Tensor:
        """[B, n] bool: whether any text comes after the token (without it, cross-attention says nothing)."""
        return (self.token_group == TEXT).flip(1).cumsum(1).flip(1) > 0
