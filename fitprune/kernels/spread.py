"""How much each visual token adds to more relevant ones: relevance times unlikeness, so that what is kept is spread over the image.

Ranking by attention alone keeps several tokens that show the same thing and none of another. Here a token counts by how unlike it
is to the most alike of the tokens of its image that are more relevant:

    v        a token's values of all heads, one vector; u = v / |v|; w = (v - mean v) / |v - mean v|, the mean over the image
    alike    (1 + u·u') / 2 × max(w·w', 0)                                  in [0, 1]; 1 for equal tokens
    score    relevance^θ × (1 - the largest `alike` with a more relevant token of the image)

Of equally relevant tokens the earlier counts as the more relevant. The first factor alone takes identical objects for duplicates in early
layers, the second alone any two tokens that differ from the mean alike. θ weighs relevance against unlikeness; at 0 only its order counts.

One pass, no budget, no loop over tokens: an image's tokens are sorted by relevance, so those before a token are the more relevant, and the
products of all pairs are taken in blocks of rows, each against what stands before its end. Both cosines come from one product: of the
vectors without their mean, to which the mean's part is added again, which also keeps the digits that nearly equal tokens differ in.
Features are taken a few at a time, too: a copy of all values in float32 would be larger than all products. So what is held at a time is
bounded for each row of the batch, whatever the image (`HELD`, `FEATURES`). Heads that lie in other processes add their part to each
product. Nothing waits for the device. `reference` is the same token by token.

Products are in float32 in half precision as well, since PyTorch's half-precision products on a CPU are rounded to what nearly equal tokens
differ in, and batches of them take as long (docs/LOG.md).

Kin: greedy selection by determinants (CDPruner, https://arxiv.org/abs/2506.10967) and by distance (DivPrune,
https://arxiv.org/abs/2503.02175), which select before the language model, one token after the other, for a number that they are given.

    pytest tests/kernels/test_spread.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from .chunked import room
from .select import take

SAME = 1e-5  # of the mean length of v: vectors that differ from the mean by less all count as the mean
ROWS = {"cpu": 128, "cuda": 512}  # of a block, by device: the fewer, the less is computed above the diagonal
HELD = 20 << 20  # bytes of products that are held at a time, for each row of the batch
FEATURES = 6 << 20  # bytes of vectors in float32, the same


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


def unlikeness(
    value: Tensor, relevance: Tensor, group: Tensor, sizes: Sequence[int], *, heads: HeadGroup | None = None, block_bytes: int | None = None
) -> Tensor:
    """One minus the largest `alike` of each token with a more relevant one of its image.

    Args:
        value: [B, G, n, D], all heads, or with `heads` those of this process.
        relevance: [B, n] float32, not negative.
        group: [B, n], the number of the image that a token belongs to (1, 2, …); others count for nothing.
        sizes: How many tokens each image has at most in any row, [image].
        heads: The processes that hold further heads.
        block_bytes: Memory for blocks instead of what the constants above say, for tests.
    Returns:
        [B, n] float32 in [0, 1]; 1 where no image is.
    """
    closest = torch.zeros_like(relevance, dtype=torch.float32)
    limit = _Limits.of(value, block_bytes)
    for image, size in enumerate(sizes, 1):
        mine = group == image
        # members before all others, so that only members are ahead of a member
        order = relevance.masked_fill(~mine, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :size]  # [B, m]
        if size < 2:
            continue
        together = max(1, limit.numbers // (limit.rows * size))  # rows of the batch
        parts = zip(value.split(together), order.split(together), mine.gather(1, order).split(together), strict=True)
        found = [_closest(*part, heads, limit) for part in parts]
        closest = torch.where(mine, torch.zeros_like(closest).scatter_(1, order, torch.cat(found)), closest)
    return 1 - closest


@dataclass(frozen=True)
class _Limits:
    """How much is computed at a time: rows of a block, bytes of products and of vectors for each row of the batch, numbers of a block."""

    rows: int
    held: int
    features: int
    numbers: int

    @classmethod
    def of(cls, value: Tensor, block_bytes: int | None) -> _Limits:
        numbers = room(value.device, block_bytes)
        if block_bytes is not None:
            return cls(max(1, numbers // 64), block_bytes, block_bytes, numbers)
        return cls(ROWS.get(value.device.type, ROWS["cuda"]), HELD, FEATURES, numbers)

    def blocks(self, stop: int) -> list[tuple[int, int]]:
        """The last rows before `stop` whose products with all before them may be held, in blocks (start, stop), ascending."""
        found: list[tuple[int, int]] = []
        left = self.held // 4
        while stop > 0:
            start = (stop - 1) // self.rows * self.rows
            left -= (stop - start) * stop
            if found and left < 0:
                break
            found.insert(0, (start, stop))
            stop = start
        return found


def _closest(value: Tensor, order: Tensor, member: Tensor, heads: HeadGroup | None, limit: _Limits) -> Tensor:
    """[B, m] the largest `alike` of each token with one ahead of it.

    Args:
        value: [B, G, n, D].
        order: [B, m] which of the n tokens, the most relevant first.
        member: [B, m] which of these belong to the image; all others come last, and their results mean nothing.
    """
    (_, groups, _, width), (batch, size) = value.shape, order.shape
    step = max(1, limit.features // (4 * size * width))  # heads at a time, …
    step = -(-groups // -(-groups // step))  # … about as many each time
    places = [value[:, at : at + step].transpose(1, 2) for at in range(0, groups, step)]  # [B, n, heads, D]
    share = member.float() / member.sum(1, keepdim=True).clamp(min=1)  # [B, m]
    rows = min(limit.rows, size)
    later = torch.ones(rows, rows, dtype=torch.bool, device=value.device).triu()  # in a block: itself and those behind
    means: list[Tensor] = []
    found: list[Tensor] = []
    lengths: _Lengths | None = None
    stop = size
    while stop > 0:  # from the last rows, which need all vectors, to the first
        blocks = limit.blocks(stop)
        products = [value.new_empty(batch, last - first, last, dtype=torch.float32) for first, last in blocks]
        sums = value.new_zeros(3, batch, size, dtype=torch.float32)
        for number, place in enumerate(places):
            part = take(place.contiguous(), order[:, :stop], 1).flatten(2).float()  # [B, stop, heads · D]; whole rows of memory are copied
            if lengths is None:
                means.append(share[:, None] @ part)  # [B, 1, heads · D]
            part -= means[number]
            if lengths is None:
                sums[0] += torch.linalg.vector_norm(part, dim=2).square_()  # |c|²
                sums[1] += (part @ means[number].transpose(1, 2))[:, :, 0]  # c·m
                sums[2] += means[number].square().sum(2)  # |m|²
            for product, (first, last) in zip(products, blocks, strict=True):
                product.baddbmm_(part[:, first:last], part[:, :last].transpose(1, 2), beta=float(number > 0))
            del part  # before the next is made
        lengths = lengths or _Lengths.of(sums if heads is None else heads.total(sums), share)
        for first, last in reversed(blocks):
            product = products.pop()  # so that they go as they are used
            product = product if heads is None else heads.total(product)
            found.insert(0, lengths.closest(product, first, later[: last - first, : last - first]))
        stop = blocks[0][0]
    return torch.cat(found, 1)


@dataclass(frozen=True)
class _Lengths:
    """Numbers of each vector, which turn a product c·c' of two of them without their mean into `alike`.

    With a = 1 / |v|, b = 1 / |c| and v·v' = c·c' + c·m + c'·m + |m|², `alike` is a b times
    (c·c' + tiny) · (a'b' c·c' / 2 + left · right), where left and right are three numbers of either vector.
    """

    both: Tensor  # [B, 1, m] a·b
    tiny: Tensor  # [B, 1, 1]
    left: Tensor  # [B, m, 3]
    right: Tensor  # [B, 3, m]

    @classmethod
    def of(cls, sums: Tensor, share: Tensor) -> _Lengths:
        """Of [3, B, m]: |c|², c·m, |m|²; and the share of each vector in the mean, [B, m]."""
        smallest = torch.finfo(torch.float32).tiny
        square, toward, mean = sums
        whole = (square + 2 * toward + mean).clamp(min=0)  # [B, m] |v|²
        tiny = SAME**2 * (share * whole).sum(1, keepdim=True)
        whole, b = whole.clamp(min=smallest), (square + tiny).clamp(min=smallest).rsqrt()
        both = whole.rsqrt() * b
        left = torch.stack([whole.sqrt(), toward + mean, torch.ones_like(whole)], 2) / 2
        return cls(both[:, None], tiny[:, None], left, torch.stack([b, both, toward * both], 1))

    def closest(self, product: Tensor, start: int, later: Tensor) -> Tensor:
        """[B, rows] the largest `alike` of rows from `start` on with those ahead, from products [B, rows, stop], which are overwritten."""
        stop = product.shape[2]
        alike = self.left[:, start:stop] @ self.right[:, :, :stop]
        alike.addcmul_(product, self.both[:, :, :stop], value=0.5).mul_(product.add_(self.tiny))
        alike[:, :, start:].masked_fill_(later, 0)
        return (alike.amax(2) * self.both[:, 0, start:stop]).clamp_(0, 1)
