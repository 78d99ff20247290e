"""Received attention in row blocks: the map of a few hundred queries at a time, sized to stay in cache.

What is saved against `reference.py`: memory (never an S×S map of all heads), the half of the map above the diagonal
(a block of queries meets only the keys up to its last row), rows that count for nothing (the text before the image),
and the repetition of grouped key heads. Both sums come out of one small matrix product per block: the rows of `weights`
say which queries are text and which belong to which image.

With the log-sum-exp of each query (flash_cpu.py) a block needs no softmax: exp(s - lse) is the attention, and exp is
monotone, so the maximum over heads is taken first and one exponential serves all heads. Only visual keys are met.

The GPU kernel is in triton.py.

    python -m pytest tests/test_kernels.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import TEXT, additive

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # float32 scores held at a time, by device


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
) -> tuple[Tensor, Tensor]:
    """As `reference.received_attention`, with hints that the caller knows without asking the device.

    Args:
        images: The largest number of images in a row.
        rows: Range of queries outside which `query_group` is 0 or before every visual key.
        columns: Range of keys outside which `key_group` is 0.
        block_bytes: Memory for the scores of one block, default by device.
        logsumexp: [B, H, Q] of the scaled scores, if the attention call gave it (causal, mask None): no softmax then.
    Returns:
        cross [B, K], intra [B, K], float32.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    first, last = rows or (0, queries)
    left, right = columns or (0, keys)
    block_bytes = block_bytes or BLOCK_BYTES.get(query.device.type, BLOCK_BYTES["cuda"])
    step = min(max(1, block_bytes // (4 * batch * heads * keys)), max(1, last - first))

    whole = mask is not None and mask.ndim == 4  # any pattern: all keys have to be looked at
    names = torch.tensor([TEXT, *range(1, images + 1)], device=query.device)
    weights = (query_group[:, None, :] == names[None, :, None]).float()  # [B, 1 + images, Q]
    total = query.new_zeros(batch, 1 + images, right - left, dtype=torch.float32)
    above = torch.ones(step, step, dtype=torch.bool, device=query.device).triu_(1)  # of a block's last columns
    strongest = _Strongest(query, key, scaling, mask, logsumexp, left, above)
    for start in range(first, last, step):
        stop = min(start + step, last)
        reach = keys if whole else keys - queries + stop  # causal: later keys get nothing from this block
        width = min(right, reach) - left
        if width > 0:
            total[..., :width].baddbmm_(weights[:, :, start:stop], strongest.block(start, stop, reach, width))

    cross = query.new_zeros(batch, keys, dtype=torch.float32)
    intra = torch.zeros_like(cross)
    belongs = key_group[:, left:right]
    cross[:, left:right] = total[:, 0] * (belongs > 0)
    for image in range(1, images + 1):
        intra[:, left:right] += total[:, image] * (belongs == image)
    return cross, intra


class _Strongest:
    """The maximum over heads of the attention of a block of queries."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        mask: Tensor | None,
        logsumexp: Tensor | None,
        left: int,
        above: Tensor,
    ) -> None:
        batch, heads, queries, size = query.shape
        groups = key.shape[1]
        self.query, self.mask, self.scaling, self.left, self.above = query, mask, scaling, left, above
        self.exact = (
            query.dtype == torch.float32
        )  # then scaling the queries is as good as scaling the scores, and cheaper
        self.grouped = query.view(batch, groups, heads // groups, queries, size)
        self.transposed = key.transpose(-1, -2)  # [B, G, D, K]
        self.logsumexp = logsumexp

    def block(self, start: int, stop: int, reach: int, width: int) -> Tensor:
        """Queries start … stop against keys left … left + width (normalised over all keys before `reach`): [B, rows, width]."""
        rows, left = stop - start, self.left
        if self.logsumexp is not None:
            scores = self._scores(start, stop, left, left + width).sub_(self.logsumexp[:, :, start:stop, None])
            highest = scores.amax(dim=1)
            met, beyond = (
                max(left - (reach - rows), 0),
                left + width - (reach - rows),
            )  # of the diagonal block's columns
            if beyond > met:
                highest[..., met - beyond :].masked_fill_(self.above[:rows, met:beyond], -torch.inf)
            return highest.exp_()
        lowest = torch.finfo(torch.float32).min
        scores = self._scores(start, stop, 0, reach)
        if self.mask is not None and self.mask.ndim == 4:
            scores += additive(self.mask[:, :, start:stop], rows, reach, self.query)
        else:
            scores[..., reach - rows :].masked_fill_(self.above[:rows, :rows], lowest)
            if self.mask is not None:
                scores.masked_fill_(~self.mask[:, None, None, :reach].bool(), lowest)
        return scores.softmax(dim=-1)[..., left : left + width].amax(dim=1)

    def _scores(self, start: int, stop: int, left: int, right: int) -> Tensor:
        """Scaled dot products [B, H, rows, right - left], float32."""
        batch, groups, repeats, _, size = self.grouped.shape
        block = self.grouped[:, :, :, start:stop].reshape(batch, groups, -1, size)
        scores = (block * self.scaling if self.exact else block) @ self.transposed[..., left:right]
        scores = scores.view(batch, groups * repeats, stop - start, right - left)
        return scores if self.exact else scores.float().mul_(self.scaling)
