"""Deleted tokens that live on in their likest survivors: states are averaged, and the survivor counts as that many keys.

Deletion takes a token's share of all later attention away with it. Where a survivor of the same image has nearly the same values, it can
stand for both: its state becomes the mean of theirs, weighed by how many tokens each stands for (its *size*), and the logarithm
of its size is added to what it scores as a key from then on, which is what that many equal keys would receive. Tokens that nothing is
like enough (`least`, a cosine) are deleted as ever.

Kin: merging for vision transformers (ToMe's proportional attention, https://arxiv.org/abs/2210.09461). Left out: chains, a deleted token
that is merged into another deleted one.

    pytest tests/kernels/test_absorb.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .chunked import room
from .select import take


@dataclass(frozen=True)
class Absorbed:
    """What survivors take over.

    survivors: [B, m'] which of the m carried tokens they are. gone: [B, g] deleted ones. parts: [B, m', g] float32, the weight of a deleted
    token in a survivor's mean; own: [B, m'] that of the survivor itself. size: [B, m'] float32, tokens that each stands for.
    """

    survivors: Tensor
    gone: Tensor
    parts: Tensor
    own: Tensor
    size: Tensor

    def mean(self, states: Tensor) -> Tensor:
        """Survivors' states [B, m', …] from those of all carried tokens [B, m, …]; bit for bit their own where nothing is added."""
        kept = take(states, self.survivors, 1)
        if not states.is_floating_point():
            return kept
        taken = self.parts.sum(1) > 0  # [B, g]; what is not may be anything, even not a number
        given = take(states, self.gone, 1).flatten(2).float().masked_fill(~taken[:, :, None], 0)
        own = self.own.view(*self.own.shape, *[1] * (states.ndim - 2))
        return (kept * own + (self.parts @ given).view(kept.shape)).to(states.dtype)


def reference(value: Tensor, size: Tensor, group: Tensor, marked: Tensor, least: float) -> tuple[list[dict[int, dict[int, float]]], Tensor]:
    """Token by token, slow and obvious; arguments as `absorb`.

    Returns:
        Per row {survivor: {token: weight of its state}} for all tokens that are not marked, and sizes [B, m], 0 where marked.
    """
    weights, sizes = [], size.clone().double()
    for row in range(len(group)):
        vectors = value[row].transpose(0, 1).flatten(1).double()  # [m, G·D]
        members = {token: [token] for token in range(group.shape[1]) if not marked[row, token]}
        for token in marked[row].nonzero().flatten().tolist():
            best, at = -2.0, None
            for other in members:
                if group[row, other] == group[row, token] and group[row, other] > 0:
                    cosine = float(torch.cosine_similarity(vectors[token], vectors[other], dim=0, eps=1e-30))
                    if cosine > best:
                        best, at = cosine, other
            if at is not None and best > least:
                members[at].append(token)
        total = {survivor: sum(float(size[row, one]) for one in tokens) for survivor, tokens in members.items()}
        weights.append({s: {one: float(size[row, one]) / total[s] for one in tokens} for s, tokens in members.items() if total[s]})
        sizes[row] = torch.tensor([total.get(token, 0.0) for token in range(group.shape[1])])
    return weights, sizes


def absorb(
    value: Tensor,
    size: Tensor | None,
    group: Tensor,
    marked: Tensor,
    most: int,
    survivors: Tensor,
    least: float,
    block_bytes: int | None = None,
) -> Absorbed:
    """Finds the survivor that each deleted token is likest to. Nothing waits for the device.

    Args:
        value: [B, G, m, D] of the carried tokens, all heads.
        size: [B, m] how many tokens each stands for; None: itself.
        group: [B, m] the number of the image that a token belongs to, before the deletion; below 1 for others.
        marked: [B, m] bool, tokens that are deleted now; most: how many in a row, at most.
        survivors: [B, m'] which carried tokens go on.
        least: Cosine of the values above which two tokens count as alike.
        block_bytes: Memory for the products of a block, default by device.
    """
    size = torch.ones_like(marked, dtype=torch.float32) if size is None else size
    gone = marked.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # [B, g]
    is_gone, its_group = marked.gather(1, gone), group.gather(1, gone)
    survives = ~marked.gather(1, survivors)  # a rectangle carries deleted ones as well
    host_group = group.gather(1, survivors).masked_fill(~survives, 0)  # [B, m']
    vectors = value.transpose(1, 2).flatten(2)  # [B, m, C]
    hosts = torch.nn.functional.normalize(take(vectors, survivors, 1).float(), dim=2)
    near, alike = [], []
    step = max(1, room(value.device, block_bytes) // (len(value) * max(hosts.shape[1], hosts.shape[2])))
    for start in range(0, gone.shape[1], step):
        guests = torch.nn.functional.normalize(take(vectors, gone[:, start : start + step], 1).float(), dim=2)
        cosine = guests @ hosts.transpose(1, 2)  # [B, rows, m']
        same = (its_group[:, start : start + step, None] == host_group[:, None]) & (host_group > 0)[:, None]
        best = cosine.masked_fill_(~same, -2).max(2)
        near.append(best.indices)
        alike.append(best.values)
    target, taken = torch.cat(near, 1), (torch.cat(alike, 1) > least) & is_gone  # [B, g]
    parts = torch.zeros(*survivors.shape, gone.shape[1], device=value.device)
    parts.scatter_(1, target[:, None], (size.gather(1, gone) * taken)[:, None])
    before = size.gather(1, survivors)
    after = before + parts.sum(2)
    total = after.clamp(min=torch.finfo(torch.float32).tiny)
    return Absorbed(survivors, gone, parts / total[:, :, None], before / total, after)
