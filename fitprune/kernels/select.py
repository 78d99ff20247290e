"""Which tokens a layer deletes, given scores and counts: a few small sorts, no synchronisation with the host.

The recipe fixes every count before the forward starts, so every shape is known in advance and nothing here waits for
the device. Rows of a batch may delete different numbers; the rectangle is kept by *pad slots*, tokens that are still
carried but masked as keys: padding first (the latest), then deleted tokens. Survivors stay in their order.

    pytest tests/kernels/test_select.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIVE, PADDING, DELETED = 0, 1, 2  # what a column of a row holds


def lowest(score: Tensor, group: Tensor, counts: Sequence[Sequence[int]], quotas: Tensor | None = None) -> Tensor:
    """Marks the tokens of lowest score, image by image; ties go by position, the earlier first.

    Args:
        score: [B, n] float; NaN ranks as infinity does, last.
        group: [B, n] int, the number of the image a token belongs to (1, 2, …), anything else is never marked.
        counts: `counts[row][image - 1]` = how many tokens of that image to mark (images may be missing at the end).
        quotas: The same [B, images] on the score's device, missing images 0; made from `counts` if not given.
    Returns:
        [B, n] bool
    """
    marked = torch.zeros_like(group, dtype=torch.bool)
    score = score.nan_to_num(nan=torch.inf).clamp(max=torch.finfo(score.dtype).max)  # below what is not of the image
    padded = padded_counts(counts)
    for image, wanted in enumerate(zip(*padded, strict=True), 1):
        most = max(wanted)
        if most == 0:
            continue
        masked = torch.where(group == image, score, torch.inf)
        order = masked.argsort(dim=1, stable=True)[:, :most]  # [B, most]
        if len(set(wanted)) == 1:
            marked.scatter_(1, order, True)
        else:
            quotas = torch.tensor(padded, device=score.device) if quotas is None else quotas
            chosen = torch.arange(most, device=score.device) < quotas[:, image - 1, None]
            marked |= torch.zeros_like(marked).scatter_(1, order, chosen)
    return marked


def padded_counts(counts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of counts, filled up with zeros to the same length."""
    images = max(map(len, counts), default=0)
    return [[*row, *[0] * (images - len(row))] for row in counts]


def most(counts: Sequence[Sequence[int]]) -> list[int]:
    """The largest count of each image in any row, [image]; arguments as `lowest`."""
    return [max(column) for column in zip(*padded_counts(counts), strict=True)]


def compact(status: Tensor, length: int, pads_first: bool = False) -> Tensor:
    """The columns that are carried on: all that are alive, filled up to `length` with pad slots.

    Args:
        status: [B, n] of `ALIVE`, `PADDING`, `DELETED`.
        length: How many columns to keep; no row may have more alive.
        pads_first: Pad slots go ahead of the others, where linear attention starts, whose state they leave as it is.
    Returns:
        [B, length] indices into n, ascending, but for pad slots that go first.
    """
    n = status.shape[1]
    position = torch.arange(n, device=status.device)
    within = torch.where(status == ALIVE, position, n - 1 - position)
    order = (status.long() * n + within).argsort(dim=1)[:, :length]
    if not pads_first:
        return order.sort(dim=1).values
    alive = status.gather(1, order) == ALIVE
    return order.gather(1, (order + n * alive.long()).argsort(dim=1))


def take(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """Picks columns per row: tensor [B, …] at `dim`, index [B, m]. Whole rows of memory are copied where that is possible."""
    if index.shape[0] == 1 and tensor.shape[0] == 1:
        return tensor.index_select(dim, index[0])
    if dim == 1 and tensor.ndim > 2 and tensor.shape[0] == index.shape[0] and tensor.is_contiguous():
        start = torch.arange(index.shape[0], device=index.device)[:, None] * tensor.shape[1]
        picked = tensor.flatten(0, 1).index_select(0, (index + start).flatten())
        return picked.view(*index.shape, *tensor.shape[2:])
    shape = [1] * tensor.ndim
    shape[0], shape[dim] = index.shape
    sizes = [*tensor.shape]
    sizes[0], sizes[dim] = index.shape
    return tensor.expand(index.shape[0], *tensor.shape[1:]).gather(dim, index.view(shape).expand(sizes))
