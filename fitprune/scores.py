"""How a visual token is ranked: the token with the lowest score is deleted first.

A score is one function from `Attended` (what a layer's attention saw) to one number per token. The paper's is the
product of the attention received from the text and from the image (section 3.2). Comparison methods differ in their
schedule (another `Recipe`) or in their score (another function here), not in machinery: method = schedule × score.
A new one is a function and a line in `SCORES`; it pays for attention only if it asks for `received` (blocks of the map)
or `from_last` (one row of it).

    python -c "from fitprune.scores import SCORES; print(*SCORES)"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import FitPruneError
from .heads import Heads
from .kernels import TEXT, received_attention
from .kernels.reference import additive
from .select import take


@dataclass
class Attended:
    """One layer's attention during a prefill, as scores see it. B rows, n tokens of this forward, K keys with the cache.

    query [B, H, n, D] and key [B, G, K, D] carry rotary embeddings; token_group [B, n] is `TEXT`, 0 (padding) or the
    number of the image that a token belongs to; `images` the largest such number; `visual` a range that holds all
    visual tokens; `seed` what a random score draws from; `logsumexp` [B, H, n] of the scaled scores, where the attention
    call gave it. Under tensor parallelism H and G are the heads of this process, and `heads` knows the others:
    `received` and `from_last` are those of all heads in any case.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None
    token_group: Tensor
    images: int
    visual: tuple[int, int]
    layer: int
    seed: int = 0
    logsumexp: Tensor | None = None
    heads: Heads | None = None

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
            rows=(self.visual[0], self.query.shape[2]),
            columns=(past + self.visual[0], past + self.visual[1]),
            logsumexp=self.logsumexp,
            heads=self.heads,
        )
        return cross[:, past:], intra[:, past:]

    @cached_property
    def from_last(self) -> Tensor:
        """[B, H, n] attention that the last token of each row pays, in each head, to the tokens of this forward, float32.

        The last token is the last real one: padding and fillers, on either side, are passed over. Only its row of the
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
            later = position > past + last  # [B, K] keys that the last token does not see
            later = later if self.mask is None else later | ~self.mask.bool()
            logits.masked_fill_(later[:, None, None], torch.finfo(torch.float32).min)
        attention = logits.softmax(dim=-1)[:, :, 0, past:]
        return attention if self.heads is None else self.heads.gather(attention)

    @property
    def text_follows(self) -> Tensor:
        """[B, n] bool: whether any text comes after the token (without it, cross-attention says nothing)."""
        return (self.token_group == TEXT).flip(1).cumsum(1).flip(1) > 0


Score = Callable[[Attended], Tensor]  # → [B, n], compared within one image of one row only


def product(seen: Attended) -> Tensor:
    """The paper's: attention received from the text × attention received from the image.

    For an image that no text follows the first factor is left out; else every token would score zero and position
    alone would decide.
    """
    cross, intra = seen.received
    return torch.where(seen.text_follows, cross * intra, intra)


def cross(seen: Attended) -> Tensor:
    """Attention received from the text after the image only."""
    return seen.received[0]


def intra(seen: Attended) -> Tensor:
    """Attention received from the image's own tokens only."""
    return seen.received[1]


def last(seen: Attended) -> Tensor:
    """FastV's: attention received from the last token of the prompt, averaged over heads.

    As its released code ranks (https://arxiv.org/abs/2403.06764; the paper's text averages over all asking tokens).
    """
    return seen.from_last.mean(dim=1)


def random(seen: Attended) -> Tensor:
    """No information at all: the control that every method has to beat at equal FLOPs. Same seed, same tokens."""
    generator = torch.Generator().manual_seed(seen.seed * 1_000_003 + seen.layer)
    return torch.rand(seen.token_group.shape, generator=generator).to(seen.token_group.device)


SCORES: dict[str, Score] = {"fitprune": product, "cross": cross, "self": intra, "last": last, "random": random}


def find_score(score: str | Score) -> Score:
    """A score by name, or the function itself.

    Raises:
        FitPruneError: for a name that is not in `SCORES`.
    """
    if callable(score):
        return score
    if score not in SCORES:
        raise FitPruneError(f"unknown score {score!r}: use one of {', '.join(SCORES)}, or pass a function")
    return SCORES[score]
