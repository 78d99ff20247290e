"""Received attention in tiles: a hundred queries by a few hundred keys at a time, all heads, sized to stay in cache.

With the log-sum-exp of each query, exp(s - lse) is the attention itself, and exp is monotone. So a tile takes one
matrix product per head, one subtraction, the maximum over heads, and then a single exponential for all heads together;
masks, which heads share, enter after the maximum. Both sums come out of one small product per tile: the rows of
`weights` say which queries are text and which belong to which image. The attention call has the log-sum-exp already
(flash_cpu.py); where it keeps it to itself (eager attention), it is computed here first, in row blocks.

What is saved against `reference.py`: memory (never an S×S map), the tiles above the diagonal, queries that count for
nothing (the text before the image), keys that are not visual, and the repetition of grouped key heads. Measured beside it,
and slower: attention and scores from one pass of plain matrix products, without the fused attention (docs/LOG.md).

The GPU kernel is in triton.py.

    python -m pytest tests/kernels/test_kernels.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from .masks import additive
from .reference import TEXT

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # float32 scores held at a time, by device
QUERIES = 128  # of a tile; its keys follow from the bytes


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
    Returns:
        cross [B, K], intra [B, K], float32. A query that sees no key at all must have group 0.
    """
    batch, keys = query.shape[0], key.shape[2]
    rows, columns = rows or (0, query.shape[2]), columns or (0, keys)
    names = torch.tensor([TEXT, *range(1, images + 1)], device=query.device)
    weights = (query_group[:, None, :] == names[None, :, None]).float()  # [B, 1 + images, Q]
    left, right = columns
    total = query.new_zeros(batch, 1 + images, right - left, dtype=torch.float32)
    for row in range(batch):
        seen = None if mask is None else mask[row if mask.shape[0] > 1 else 0][None]
        known = None if logsumexp is None else logsumexp[row]
        one = _BatchRow(query[row].float(), key[row].float(), scaling, seen, known, rows, room(query.device, block_bytes), heads)
        one.add(total[row], weights[row], rows, columns)

    cross = query.new_zeros(batch, keys, dtype=torch.float32)
    intra = torch.zeros_like(cross)
    belongs = key_group[:, left:right]
    cross[:, left:right] = total[:, 0] * (belongs > 0)
    for image in range(1, images + 1):
        intra[:, left:right] += total[:, image] * (belongs == image)
    return cross, intra


def logsumexp(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, rows: tuple[int, int], block_bytes: int | None = None
) -> Tensor:
    """[B, H, Q] the log-sum-exp of the scaled, masked scores of queries in `rows`, zero elsewhere; arguments as `received_attention`."""
    held, found = room(query.device, block_bytes), []
    for row in range(query.shape[0]):
        seen = None if mask is None else mask[row if mask.shape[0] > 1 else 0][None]
        found.append(_BatchRow(query[row].float(), key[row].float(), scaling, seen, None, rows, held, None).level * scaling)
    return torch.stack(found)


class _BatchRow:
    """One row of a batch: query [H, Q, D] and key [G, K, D], float32; mask [1, 1, Q, K], [1, K] or None."""

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
    ) -> None:
        self.query, self.scaling, self.mask, self.room, self.heads = query, scaling, mask, room, heads
        self.transposed = key.transpose(1, 2)  # [G, D, K]
        self.past = key.shape[1] - query.shape[1]
        self.pattern = mask is not None and mask.ndim == 4  # anything may be seen: every key has to be looked at
        self.share = query.shape[0] // key.shape[0]  # query heads of a key head
        # The scores stay unscaled until the heads are gone, so the log-sum-exp comes down to them: no copy of the queries.
        self.level = (self._logsumexp(*rows) if logsumexp is None else logsumexp) / scaling

    def add(self, total: Tensor, weights: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """Adds weights [n, Q] times the strongest attention of each query to total [n, right - left]."""
        left, right = columns
        heads, width = self.query.shape[0], max(1, self.room // (self.query.shape[0] * QUERIES))
        scores = self.query.new_empty(heads * QUERIES * min(width, right - left))  # reused: fresh memory costs page faults
        for start in range(rows[0], rows[1], QUERIES):
            stop = min(start + QUERIES, rows[1])
            reach = right if self.pattern else min(right, self.past + stop)
            for near in range(left, reach, width):
                far = min(near + width, reach)
                strongest = self._strongest(start, stop, near, far, scores)
                total[:, near - left : far - left].addmm_(weights[:, start:stop], strongest)

    def _strongest(self, start: int, stop: int, near: int, far: int, scores: Tensor) -> Tensor:
        """The maximum over heads of the attention of a tile, [stop - start, far - near]."""
        heads, count = self.query.shape[0], stop - start
        scores = scores[: heads * count * (far - near)].view(heads, count, far - near)
        torch.bmm(self._block(start, stop), self.transposed[:, :, near:far], out=self._grouped(scores))
        strongest = scores.sub_(self.level[:, start:stop, None]).amax(dim=0).mul_(self.scaling)
        strongest = self._hide(strongest, start, stop, near, far).exp_()
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
        keys = self.transposed.shape[2]
        found = self.query.new_zeros(heads, queries)
        step = max(1, self.room // (heads * keys))
        for start in range(first, last, step):
            stop = min(start + step, last)
            reach = keys if self.pattern else self.past + stop
            scores = self._block(start, stop) @ self.transposed[:, :, :reach]
            scores = scores.view(heads, stop - start, reach).mul_(self.scaling)
            found[:, start:stop] = self._hide(scores, start, stop, 0, reach).logsumexp(dim=-1)
        return found

    def _block(self, start: int, stop: int) -> Tensor:
        """Queries start … stop of all heads, those that share a key head one below the other: [G, share · rows, D]."""
        return self._grouped(self.query[:, start:stop])

    def _grouped(self, tile: Tensor) -> Tensor:
        return tile if self.share == 1 else tile.reshape(self.transposed.shape[0], -1, tile.shape[-1])
