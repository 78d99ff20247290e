"""Received attention in row blocks: the map of a few hundred queries at a time, sized to stay in cache.

What is saved against `reference.py`: memory (never an S×S map of all heads), the half of the map above the diagonal
(a block of queries meets only the keys up to its last row), rows that count for nothing (the text before the image),
and the repetition of grouped key heads. Both sums come out of one small matrix product per block: the rows of `weights`
say which queries are text and which belong to which image.

Left out: reusing the attention call's own log-sum-exp, and a GPU kernel (their place is beside this file).

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
) -> tuple[Tensor, Tensor]:
    """As `reference.received_attention`, with three hints that the caller knows without asking the device.

    Args:
        images: The largest number of images in a row.
        rows: Range of queries outside which `query_group` is 0 or before every visual key.
        columns: Range of keys outside which `key_group` is 0.
        block_bytes: Memory for the scores of one block, default by device.
    Returns:
        cross [B, K], intra [B, K], float32.
    """
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    first, last = rows or (0, queries)
    left, right = columns or (0, keys)
    block_bytes = block_bytes or BLOCK_BYTES.get(query.device.type, BLOCK_BYTES["cuda"])
    step = min(max(1, block_bytes // (4 * batch * heads * keys)), max(1, last - first))

    whole = mask is not None and mask.ndim == 4  # any pattern: all keys have to be looked at
    names = torch.tensor([TEXT, *range(1, images + 1)], device=query.device)
    weights = (query_group[:, None, :] == names[None, :, None]).float()  # [B, 1 + images, Q]
    total = query.new_zeros(batch, 1 + images, right - left, dtype=torch.float32)
    grouped = query.view(batch, groups, heads // groups, queries, size)
    transposed = key.transpose(-1, -2)  # [B, G, D, K]
    exact = query.dtype == torch.float32  # then scaling the queries is as good as scaling the scores, and cheaper
    lowest = torch.finfo(torch.float32).min
    above = torch.ones(step, step, dtype=torch.bool, device=query.device).triu_(1)

    for start in range(first, last, step):
        stop = min(start + step, last)
        reach = keys if whole else keys - queries + stop  # causal: later keys get nothing from this block
        width = min(right, reach) - left
        if width <= 0:
            continue
        block = grouped[:, :, :, start:stop].reshape(batch, groups, -1, size)
        logits = ((block * scaling if exact else block) @ transposed[..., :reach]).view(
            batch, heads, stop - start, reach
        )
        if not exact:
            logits = logits.float().mul_(scaling)
        if whole:
            assert mask is not None
            logits += additive(mask[:, :, start:stop], stop - start, keys, query)
        else:
            # Only the last columns of a block can lie above the diagonal.
            diagonal = above[: stop - start, : stop - start]
            logits[..., reach - (stop - start) :].masked_fill_(diagonal, lowest)
            if mask is not None:
                logits.masked_fill_(~mask[:, None, None, :reach].bool(), lowest)
        highest = logits.softmax(dim=-1)[..., left : left + width].amax(dim=1)  # [B, block, width]
        total[..., :width].baddbmm_(weights[:, :, start:stop], highest)

    cross = query.new_zeros(batch, keys, dtype=torch.float32)
    intra = torch.zeros_like(cross)
    belongs = key_group[:, left:right]
    cross[:, left:right] = total[:, 0] * (belongs > 0)
    for image in range(1, images + 1):
        intra[:, left:right] += total[:, image] * (belongs == image)
    return cross, intra
