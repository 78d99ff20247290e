"""Received attention in tiles: a hundred queries by a few hundred keys at a time, all heads, sized to stay in cache.

With the log-sum-exp of each query, exp(s - lse) is the attention itself, and exp is monotone. So a tile takes one
matrix product per head, one subtraction, the maximum over heads, and then a single exponential for all heads together;
masks, which heads share, enter after the maximum. Both sums come out of one small product per tile: the rows of
`weights` say which queries are text and which belong to which image. The attention call has the log-sum-exp already
(flash_cpu.py); where it keeps it to itself (eager attention), it is computed here first, in row blocks.

What is saved against `reference.py`: memory (never an S×S map), the tiles above the diagonal, queries that count for
nothing (the text before the image), keys that are not visual, and the repetition of grouped key heads; copies of all keys in float32
(models of other precision: in panels). Measured beside it,
and slower: attention and scores from one pass of plain matrix products, without the fused attention (docs/LOG.md).

The GPU kernel is in triton.py.

    python -m pytest tests/kernels/test_kernels.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from .masks import additive
from .reference import TEXT

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # float32 scores held at a time, by device
QUERIES = 128  # of a tile; its keys follow from the bytes
PANEL_BYTES = 8 << 20  # keys in float32 held at a time, where the model's have another precision


def room(device: torch.device, block_bytes: int | None = None) -> int:
    """How many float32 numbers may be held at a time on a device; `block_bytes`, if given, says it instead."""
    return (block_bytes or BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])) // 4


def received_attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None,
    query_group: Tensor,
    key_group: Tensor,
    *,
    images: int = 1,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    block_bytes: int | None = None,
    logsumexp: Tensor | None = None,
    heads: HeadGroup | None = None,
    itself: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `reference.received_attention`, with hints that the caller knows without asking the device.

    Args:
        scaling: Positive.
        images: The largest number of images in a row.
        rows: Range of queries outside which `query_group` is 0 or before every visual key.
        columns: Range of keys outside which `key_group` is 0.
        block_bytes: Memory for the scores of one tile, default by device.
        logsumexp: [B, H, Q] of the scaled and masked scores, if the attention call gave it.
        heads: The processes that hold further heads, under tensor parallelism: the maxima of each tile are taken over all.
        itself: Whether what a token pays to itself counts.
    Returns:
        cross [B, K], intra [B, K], float32. A query that sees no key at all must have group 0.
    """
    batch, keys = query.shape[0], key.shape[2]
    rows, columns = rows or (0, query.shape[2]), columns or (0, keys)
    names = torch.arange(images + 1, device=query.device)
    names = names.masked_fill(names == 0, TEXT)  # not from a list of the host's, which a graph could not read
    weights = (query_group[:, None, :] == names[None, :, None]).float()  # [B, 1 + images, Q]
    left, right = columns
    total = query.new_zeros(batch, 1 + images, right - left, dtype=torch.float32)
    for row in range(batch):
        seen = None if mask is None else mask[row if mask.shape[0] > 1 else 0][None]
        known = None if logsumexp is None else logsumexp[row]
        one = _BatchRow(query[row], key[row], scaling, seen, known, rows, room(query.device, block_bytes), heads, itself)
        one.add(total[row], weights[row], rows, columns)

    cross = query.new_zeros(batch, keys, dtype=torch.float32)
    intra = torch.zeros_like(cross)
    belongs = key_group[:, left:right]
    cross[:, left:right] = total[:, 0] * (belongs > 0)
    for image in range(1, images + 1):
        intra[:, left:right] += total[:, image] * (belongs == image)
    return cross, intra


class _BatchRow:
    """One row of a batch: query [H, Q, D] and key [G, K, D]; mask [1, 1, Q, K], [1, K] or None. Computes in float32."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        mask: Tensor | None,
        logsumexp: Tensor | None,
        rows: tuple[int, int],
        room: int,
        heads: HeadGroup | None,
        itself: bool,
    ) -> None:
        self.query, self.key, self.scaling, self.mask, self.room = query, key, scaling, mask, room
        self.heads, self.itself = heads, itself
        self.past = key.shape[1] - query.shape[1]
        self.pattern = mask is not None and mask.ndim == 4  # anything may be seen: every key has to be looked at
        self.share = query.shape[0] // key.shape[0]  # query heads of a key head
        # The scores stay unscaled until the heads are gone, so the log-sum-exp comes down to them: no copy of the queries.
        self.level = (self._logsumexp(*rows) if logsumexp is None else logsumexp) / scaling

    def add(self, total: Tensor, weights: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Adds weights [n, Q] times the strongest attention of each query to total [n, right - left]."""
        left, right = columns
        heads, width = self.query.shape[0], max(1, self.room // (self.query.shape[0] * QUERIES))
        # reused: fresh memory costs page faults
        scores = self.query.new_empty(heads * QUERIES * min(width, right - left), dtype=torch.float32)
        for low, high, keys in self._panels(left, right):
            for start in range(rows[0], rows[1], QUERIES):
                stop = min(start + QUERIES, rows[1])
                reach = high if self.pattern else min(high, self.past + stop)
                if reach <= low:
                    continue
                queries = self._block(start, stop)
                for near in range(low, reach, width):
                    far = min(near + width, reach)
                    strongest = self._strongest(queries, keys[:, :, near - low : far - low], start, stop, near, far, scores)
                    total[:, near - left : far - left].addmm_(weights[:, start:stop], strongest)

    def _strongest(self, queries: Tensor, keys: Tensor, start: int, stop: int, near: int, far: int, scores: Tensor) -> Tensor:
        """The maximum over heads of the attention of a tile, [stop - start, far - near]."""
        heads, count = self.query.shape[0], stop - start
        scores = scores[: heads * count * (far - near)].view(heads, count, far - near)
        torch.bmm(queries, keys, out=self._grouped(scores))
        strongest = scores.sub_(self.level[:, start:stop, None]).amax(dim=0).mul_(self.scaling)
        strongest = self._hide(strongest, start, stop, near, far).exp_()
        if not self.itself:
            strongest.diagonal(self.past + start - near).zero_()
        return strongest if self.heads is None else self.heads.maximum(strongest)

    def _hide(self, scores: Tensor, start: int, stop: int, near: int, far: int) -> Tensor:
        """Scores [stop - start, far - near] or [H, …] of a tile, in place: what a query does not see goes to -inf."""
        if self.pattern:
            assert self.mask is not None
            scores += additive(self.mask[:, :, start:stop, near:far], stop - start, far - near, scores)[0, 0]
        elif far - 1 > self.past + start:
            position = torch.arange(max(stop + self.past, far), device=scores.device)
            scores.masked_fill_(position[near:far] > position[start + self.past : stop + self.past, None], -torch.inf)
        if self.mask is None:
            return scores
        if not self.pattern:
            scores.masked_fill_(~self.mask[0, near:far].bool(), -torch.inf)
        return scores.clamp_(max=0) if scores.ndim == 2 else scores  # a query that sees nothing must not overflow

    def _logsumexp(self, first: int, last: int) -> Tensor:
        """[H, Q] log-sum-exp of the scaled, masked scores of queries first … last; zero elsewhere."""
        heads, queries, _ = self.query.shape
        found = self.query.new_zeros(heads, queries, dtype=torch.float32)
        found[:, first:last] = -torch.inf
        for low, high, keys in self._panels(0, self.key.shape[1]):
            step = max(1, self.room // (heads * (high - low)))
            for start in range(first, last, step):
                stop = min(start + step, last)
                reach = high if self.pattern else min(high, self.past + stop)
                if reach <= low:
                    continue
                scores = self._block(start, stop) @ keys[:, :, : reach - low]
                scores = scores.view(heads, stop - start, reach - low).mul_(self.scaling)
                here = self._hide(scores, start, stop, low, reach).logsumexp(dim=-1)
                found[:, start:stop] = torch.logaddexp(found[:, start:stop], here)
        return found

    def _panels(self, left: int, right: int) -> Iterator[tuple[int, int, Tensor]]:
        """Keys left … right as [G, D, keys] in float32, with where they begin and end: all at once where they are float32 already."""
        groups, _, size = self.key.shape
        width = right - left if self.key.dtype == torch.float32 else PANEL_BYTES // (4 * groups * size)
        for low in range(left, right, max(1, width)):
            high = min(low + max(1, width), right)
            yield low, high, self.key[:, low:high].float().transpose(1, 2)

    def _block(self, start: int, stop: int) -> Tensor:
        """Queries start … stop of all heads, those that share a key head one below the other: [G, share · rows, D]."""
        return self._grouped(self.query[:, start:stop].float())

    def _grouped(self, tile: Tensor) -> Tensor:
        return tile if self.share == 1 else tile.reshape(self.key.shape[0], -1, tile.shape[-1])
