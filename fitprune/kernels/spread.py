"""How much each visual token adds to more relevant ones: relevance times unlikeness, so that what is kept is spread over the image.

Ranking by attention alone keeps several tokens that show the same thing and none of another. Here a token counts by how unlike it
is to the most alike of the tokens of its image that are more relevant:

    v        a token's values of all heads, one vector; u = v / |v|; w = (v - mean v) / |v - mean v|, the mean over the image
    alike    (1 + u·u') / 2 × max(w·w', 0)                                  in [0, 1]; 1 for equal tokens
    score    relevance^θ × (1 - the largest `alike` with a more relevant token of the image)

Of equally relevant tokens the earlier counts as the more relevant. The first factor alone takes identical objects for duplicates in early
layers, the second alone any two tokens that differ from the mean alike. θ weighs relevance against unlikeness; at 0 only its order counts.

One pass, no budget, no loop over tokens: tokens are sorted by relevance, so those before a token are the more relevant, and the products of
all pairs are taken in blocks of rows, each against what stands before its end. Both cosines come from one product: of the vectors
without their mean, to which the mean's part is added again, which also keeps the digits that nearly equal tokens differ in.
Nothing waits for the device. `reference` is the same token by token.

Kin: greedy selection by determinants (CDPruner, https://arxiv.org/abs/2506.10967) and by distance (DivPrune,
https://arxiv.org/abs/2503.02175), which select before the language model, one token after the other, for a number that they are given.

    pytest tests/kernels/test_spread.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunked import room
from .select import take

SAME = 1e-5  # of the mean length of v: vectors that differ from the mean by less all count as the mean


def reference(value: Tensor, relevance: Tensor, group: Tensor, theta: float) -> Tensor:
    """The formula token by token, slow and obvious; arguments as `unlikeness`, returns [B, n] with 0 where no image is."""
    score = torch.zeros_like(relevance)
    for row in range(len(group)):
        for image in set(group[row][group[row] > 0].tolist()):
            places = (group[row] == image).nonzero().flatten().tolist()
            vectors = value[row].transpose(0, 1).flatten(1).double()[places]  # [m, G·D]
            centred = vectors - vectors.mean(0)
            tiny = SAME**2 * vectors.square().sum(1).mean()
            for i, at in enumerate(places):
                closest = 0.0
                for j, other in enumerate(places):
                    ahead = relevance[row, other] > relevance[row, at] or (relevance[row, other] == relevance[row, at] and j < i)
                    if not ahead:
                        continue
                    whole = vectors[i] @ vectors[j] / (vectors[i].norm() * vectors[j].norm())
                    apart = (centred[i] @ centred[j] + tiny) / (
                        (centred[i].square().sum() + tiny) * (centred[j].square().sum() + tiny)
                    ).sqrt()
                    closest = max(closest, float((1 + whole) / 2 * apart.clamp(min=0)))
                score[row, at] = relevance[row, at] ** theta * (1 - closest)
    return score


def unlikeness(value: Tensor, relevance: Tensor, group: Tensor, images: int, block_bytes: int | None = None) -> Tensor:
    """One minus the largest `alike` of each token with a more relevant one of its image.

    Args:
        value: [B, G, n, D], all heads.
        relevance: [B, n], not negative.
        group: [B, n], the number of the image that a token belongs to (1, 2, …); others count for nothing.
        images: The largest such number.
        block_bytes: Memory for the products of a block, default by device.
    Returns:
        [B, n] float32 in [0, 1]; 1 where no image is.
    """
    batch, _, n, _ = value.shape
    order = relevance.masked_fill(group <= 0, -torch.inf).argsort(dim=1, descending=True, stable=True)  # [B, n]
    group = group.gather(1, order)
    centred = take(value.transpose(1, 2).flatten(2), order, 1).float()  # [B, n, C], once the mean is taken off
    member = (group[:, None] == torch.arange(1, images + 1, device=group.device)[None, :, None]).float()  # [B, I, n]
    count = member.sum(2).clamp(min=1)  # [B, I]
    mean = member @ centred / count[:, :, None]  # [B, I, C]
    for image in range(images):
        centred.addcmul_(member[:, image, :, None], mean[:, image, None], value=-1)  # in place: vectors are long
    own = (group - 1).clamp(min=0)  # [B, n] into I
    length = mean.square().sum(2).gather(1, own)  # [B, n] |m|²
    toward = (centred @ mean.transpose(1, 2)).gather(2, own[:, :, None])[:, :, 0]  # [B, n] c·m
    square = torch.linalg.vector_norm(centred, dim=2).square()  # [B, n] |c|²
    whole = (square + 2 * toward + length).clamp(min=0)  # [B, n] |v|²
    tiny = (SAME**2 * (member @ whole[:, :, None])[..., 0] / count).gather(1, own)  # [B, n]
    smallest = torch.finfo(torch.float32).tiny
    by_whole, by_centred = whole.clamp(min=smallest).rsqrt(), (square + tiny).clamp(min=smallest).rsqrt()

    closest = torch.zeros_like(relevance, dtype=torch.float32)
    step = max(1, room(value.device, block_bytes) // (batch * n))
    place = torch.arange(n, device=group.device)
    for start in range(0, n, step):
        stop = min(start + step, n)
        product = centred[:, start:stop] @ centred[:, :stop].transpose(1, 2)  # [B, rows, stop]
        full = product + toward[:, start:stop, None] + toward[:, None, :stop] + length[:, start:stop, None]
        full = full * by_whole[:, start:stop, None] * by_whole[:, None, :stop]
        apart = (product + tiny[:, start:stop, None]) * by_centred[:, start:stop, None] * by_centred[:, None, :stop]
        alike = (1 + full) / 2 * apart.clamp_(min=0)
        ahead = (place[:stop] < place[start:stop, None]) & (group[:, None, :stop] == group[:, start:stop, None])
        closest[:, start:stop] = alike.masked_fill_(~ahead, 0).amax(2)
    closest = closest.masked_fill(group <= 0, 0).clamp(max=1)
    return 1 - torch.zeros_like(closest).scatter_(1, order, closest)
