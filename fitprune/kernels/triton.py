"""Received attention on a GPU: the map exists only one tile at a time, in registers.

Two kernels, no atomics, so the same input gives the same bits every time:

    _normalise   the log-sum-exp of every query that counts (not run where the attention call gave it)
    _receive     one program per (row, block of visual keys, share of the queries): for each tile of queries × keys it
                 goes through the heads, keeps the maximum of s - lse, takes one exponential for all heads together and
                 adds the tile to both sums; shares are added up at the end

Masks are the same for all heads, so they enter once per tile, after the heads. A tile in which no pair counts (above the
diagonal, padding, only text before the image, queries of another image) is left before any head is read; the device finds
that out itself. Grouped key heads are read where they are. Extra memory: the log-sum-exp and a few numbers per key.

The host never waits and no shape depends on data, so a call can be part of a CUDA graph, once a call outside of it has
compiled the kernels. Tiles come from a table, since measuring at run time cannot be captured. Without a GPU, Triton's
interpreter runs the same source: set TRITON_INTERPRET=1 before triton is imported. Left out: heads larger than 256;
splitting heads over programs, which would need the maxima of whole tiles in memory.

    python -m pytest tests/kernels/test_triton.py
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl
from triton.language import tensor

from ..errors import FitPruneError
from .reference import TEXT

TYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
PROGRAMS = 264  # worth having at once: two for each of the 132 multiprocessors of the GPUs this was written for
NO_MASK, KEYS, PATTERN, NUMBERS = map(tl.constexpr, range(4))  # none; bool [B, K]; bool, float [B, 1, Q, K]
ASKS = tl.constexpr(TEXT)
FAR = tl.constexpr(1 << 30)  # above every number of an image
LOWEST = tl.constexpr(-1e30)  # a float mask's "not at all", in whatever type it was written
LOG2_E = tl.constexpr(1.4426950408889634)
_SIZES = ["queries", "keys", "first", "last", "left", "right", "batch"]  # not compiled for anew when they change


@dataclass(frozen=True)
class Tile:
    """How much one program holds: queries × keys of the map, with so many warps and loads under way."""

    queries: int
    keys: int
    warps: int
    stages: int

    def shared(self, size: int, width: int, mapped: bool = False) -> int:
        """Bytes of shared memory, at most, for heads of `size` numbers of `width` bytes; more with a 4-D mask."""
        return self.stages * (self.queries + self.keys) * size * width + mapped * (self.queries * self.keys * 4 + 2048)


# (head size as a power of two, bytes per number) → tiles, the first for much work. A device takes the first that fits its
# shared memory and gives it enough programs, else the last. Chosen so that the compiler keeps them in registers (sm_90,
# offline); not yet measured on a GPU, where this table is the thing to tune.
TILES: dict[tuple[int, int], tuple[Tile, ...]] = {
    (64, 2): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3)),
    (128, 2): (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 3), Tile(64, 32, 4, 2)),
    (256, 2): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 32, 4, 2)),
    (64, 4): (Tile(64, 64, 8, 2), Tile(32, 32, 4, 2)),
    (128, 4): (Tile(32, 32, 4, 2),),
    (256, 4): (Tile(16, 16, 4, 2),),
}


def applies(query: Tensor) -> bool:
    """Whether these kernels compute what is asked for, and compiled ones: a CUDA tensor of a known type and head size."""
    return query.is_cuda and query.dtype in TYPES and query.shape[-1] <= LARGEST_HEAD


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
    logsumexp: Tensor | None = None,
    itself: bool = True,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.received_attention`, with hints that the caller knows without asking the device.

    A query that sees no key at all gives nothing (a softmax would spread it evenly).

    Args:
        mask: None, bool [B, K] or [B or 1, 1, Q, K] as there. Where a 4-D mask is no more than causal and padding,
            the [B, K] form saves reading it: `mask[:, 0, -1]`, a view.
        images: Not needed here; part of the contract.
        rows: Range of queries outside which `query_group` is 0 or before every visual key.
        columns: Range of keys outside which `key_group` is 0.
        logsumexp: [B, H, Q or more] natural logarithm, of the scaled and masked scores, from the attention call: saves
            the first kernel.
        itself: Whether what a token pays to itself counts.
        tile: For tests and tuning; by default from `TILES`.
    Returns:
        cross [B, K], intra [B, K], float32.
    Raises:
        FitPruneError: for a type or head size outside `applies`, or a row of the batch beyond 32-bit addresses.
    """
    batch, heads, queries, size = query.shape
    groups, keys = _check(query, key)
    first, last = rows or (0, queries)
    left, right = columns or (0, keys)
    if batch == 0 or last <= first or right <= left:
        return query.new_zeros(batch, keys, dtype=torch.float32), query.new_zeros(batch, keys, dtype=torch.float32)
    query, key = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key))
    query_group, key_group = query_group.contiguous(), key_group.contiguous()
    kind, mask, strides = _mask(mask, query)
    padded, work = max(16, triton.next_power_of_2(size)), (batch, last - first, right - left)
    tile = tile or choose(*work, padded, query.element_size(), _shared(query.device), kind.value >= PATTERN.value)
    row_blocks, column_blocks = triton.cdiv(last - first, tile.queries), triton.cdiv(right - left, tile.keys)
    shares = min(row_blocks, triton.cdiv(PROGRAMS, batch * column_blocks))  # of the queries
    fixed = {
        "HEADS": heads, "SHARE": heads // groups, "SIZE": size, "PADDED": padded, "MASK": kind.value,
        "ROWS": tile.queries, "COLUMNS": tile.keys, "WIDEN": not query.is_cuda,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    inputs = query, key, mask, *query.stride()[:3], *key.stride()[:3], *strides
    scale = scaling * LOG2_E.value  # exponentials and logarithms are of 2 inside
    sums = query.new_zeros(shares, 2, batch, keys, dtype=torch.float32)
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():  # a model may live on several
        if logsumexp is None:
            logsumexp = query.new_empty(batch, heads, queries, dtype=torch.float32)
            grid = row_blocks, heads, batch
            _normalise[grid](*inputs, query_group, logsumexp, scale, queries, keys, first, last, **fixed)
        _receive[(column_blocks, shares, batch)](
            *inputs, query_group, key_group, logsumexp, *logsumexp.stride(), sums, scale,
            queries, keys, first, last, left, right, batch, ITSELF=itself, **fixed,
        )  # fmt: skip
    cross, intra = (sums[0] if shares == 1 else sums.sum(0)).unbind(0)
    return cross, intra


def choose(batch: int, rows: int, columns: int, size: int, width: int, shared: int, mapped: bool = False) -> Tile:
    """The tile for a map of rows × columns: from the table, by shapes and the device's shared memory only."""
    known = TILES[max(size, 64), width]
    fitting = [tile for tile in known if tile.shared(size, width, mapped) <= shared] or [known[-1]]
    for tile in fitting:
        if batch * triton.cdiv(rows, tile.queries) * triton.cdiv(columns, tile.keys) >= PROGRAMS:
            return tile
    return fitting[-1]


def _check(query: Tensor, key: Tensor) -> tuple[int, int]:
    """The numbers of key heads and keys, unless the kernels cannot read these tensors: FitPruneError."""
    size, instead = query.shape[-1], "use fitprune.kernels.chunked"
    if query.dtype not in TYPES or key.dtype != query.dtype or size > LARGEST_HEAD:
        kinds = f"{query.dtype} and {key.dtype}, heads of {size}"
        raise FitPruneError(f"the Triton kernel takes 16 or 32-bit floats, heads up to {LARGEST_HEAD}, not {kinds}; {instead}")
    for part in (query, key):
        if sum((n - 1) * step for n, step in zip(part.shape[1:], part.stride()[1:], strict=True)) >> 31:
            raise FitPruneError(f"the Triton kernel addresses 2^31 numbers per row of the batch at most; {instead}")
    return key.shape[1], key.shape[2]


def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a program may have; PyTorch keeps the properties on the host."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return int(getattr(properties, "shared_memory_per_block_optin", 99 << 10))  # else what all have that know bfloat16


def _mask(mask: Tensor | None, query: Tensor) -> tuple[tl.constexpr, Tensor, tuple[int, int, int]]:
    """The kind of mask, a tensor to point at, and its strides (row, query, key): 0 where it is the same for all."""
    if mask is None:
        return NO_MASK, query, (0, 0, 0)
    if mask.ndim == 2:
        mask = mask.bool().view(torch.uint8)
        return KEYS, mask, (mask.stride(0), 0, mask.stride(1))
    mask = mask.expand(query.shape[0], -1, -1, -1)
    strides = mask.stride(0), mask.stride(2), mask.stride(3)
    return (PATTERN, mask.view(torch.uint8), strides) if mask.dtype == torch.bool else (NUMBERS, mask, strides)


# ---- on the device -----------------------------------------------------------------------------------------------------
# Names: a row is a query, a column a key; `*_b`, `*_h`, `*_s` are strides of batch, head and sequence.


@triton.jit
def _bias(
    mask: tensor, mask_q: tensor, mask_k: tensor, row: tensor, column: tensor, queries: tensor, keys: tensor,
    MASK: tl.constexpr,
) -> tensor:  # fmt: skip
    """What is added to a tile's scores in units of log 2, [rows, columns]: -inf where a query does not see a key."""
    seen = (row < queries)[:, None] & (column < keys)[None, :]
    if MASK < PATTERN:  # causal, the last query aligned with the last key
        seen = seen & (column[None, :] <= row[:, None] + (keys - queries))
    if MASK == KEYS:
        real = tl.load(mask + column * mask_k, mask=column < keys, other=0)
        seen = seen & (real != 0)[None, :]
    bias = tl.where(seen, 0.0, float("-inf"))
    if MASK >= PATTERN:
        number = tl.load(mask + row.to(tl.int64)[:, None] * mask_q + column[None, :] * mask_k, mask=seen, other=0)
        number = tl.where(number != 0, 0.0, LOWEST) if MASK == PATTERN else tl.maximum(number.to(tl.float32), LOWEST)
        bias = tl.where(seen & (number > LOWEST), number * LOG2_E, float("-inf"))
    return bias


@triton.jit
def _scores(
    query: tensor, key: tensor, query_h: tensor, key_h: tensor, q_at: tensor, k_at: tensor, q_in: tensor, k_in: tensor,
    head: tensor, SHARE: tl.constexpr, WIDEN: tl.constexpr,
) -> tensor:  # fmt: skip
    """Dot products of one head's tile [rows, columns], float32."""
    q = tl.load(query + head * query_h + q_at, mask=q_in, other=0.0)  # [rows, D]
    k = tl.load(key + (head // SHARE) * key_h + k_at, mask=k_in, other=0.0)  # [D, columns]
    if WIDEN:  # the interpreter cannot multiply bfloat16; in float32 the products are the same
        q, k = q.to(tl.float32), k.to(tl.float32)
    return tl.dot(q, k, input_precision="ieee")


@triton.jit(do_not_specialize=_SIZES)
def _normalise(
    query: tensor, key: tensor, mask: tensor, query_b: tensor, query_h: tensor, query_s: tensor, key_b: tensor,
    key_h: tensor, key_s: tensor, mask_b: tensor, mask_q: tensor, mask_k: tensor, query_group: tensor,
    logsumexp: tensor, scale: tensor, queries: tensor, keys: tensor, first: tensor, last: tensor,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
) -> None:  # fmt: skip
    """The log-sum-exp [B, H, Q] of one head's block of queries; +inf (nothing is received) for one that sees no key."""
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = first + tl.program_id(0) * ROWS
    row = start + tl.arange(0, ROWS)
    counts = tl.load(query_group + b * queries + row, mask=row < last, other=0) != 0
    if tl.max(counts.to(tl.int32), 0) > 0:
        d = tl.arange(0, PADDED)
        query, key, mask = query + b * query_b, key + b * key_b, mask + b * mask_b
        q_at, q_in = row[:, None] * query_s + d[None, :], (row < last)[:, None] & (d < SIZE)[None, :]
        highest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
        end = keys if MASK >= PATTERN else tl.minimum(keys, keys - queries + start + ROWS)
        for block in range(0, end, COLUMNS):
            column = block + tl.arange(0, COLUMNS)
            k_at, k_in = column[None, :] * key_s + d[:, None], (column < keys)[None, :] & (d < SIZE)[:, None]
            s = _scores(query, key, query_h, key_h, q_at, k_at, q_in, k_in, head, SHARE, WIDEN) * scale
            s += _bias(mask, mask_q, mask_k, row, column, queries, keys, MASK)
            above = tl.maximum(highest, tl.max(s, 1))
            from_here = tl.where(above == float("-inf"), 0.0, above)  # no key seen yet
            total = total * tl.exp2(highest - from_here) + tl.sum(tl.exp2(s - from_here[:, None]), 1)
            highest = above
        found = tl.where(total > 0, (highest + tl.log2(tl.maximum(total, 1e-30))) / LOG2_E, float("inf"))
        tl.store(logsumexp + (b * HEADS + head) * queries + row, found, mask=row < last)


@triton.jit(do_not_specialize=_SIZES)
def _receive(
    query: tensor, key: tensor, mask: tensor, query_b: tensor, query_h: tensor, query_s: tensor, key_b: tensor,
    key_h: tensor, key_s: tensor, mask_b: tensor, mask_q: tensor, mask_k: tensor, query_group: tensor,
    key_group: tensor, logsumexp: tensor, logsumexp_b: tensor, logsumexp_h: tensor, logsumexp_s: tensor, sums: tensor,
    scale: tensor, queries: tensor, keys: tensor, first: tensor, last: tensor, left: tensor, right: tensor, batch: tensor,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr, ITSELF: tl.constexpr,
) -> None:  # fmt: skip
    """Both sums of one block of keys over every `shares`-th block of queries: sums [shares, 2, B, K]."""
    share, shares, b = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    begin = left + tl.program_id(0) * COLUMNS
    column, d = begin + tl.arange(0, COLUMNS), tl.arange(0, PADDED)
    inside = column < right
    image = tl.load(key_group + b * keys + column, mask=inside, other=0).to(tl.int32)
    query, key, mask, logsumexp = query + b * query_b, key + b * key_b, mask + b * mask_b, logsumexp + b * logsumexp_b
    k_at, k_in = column[None, :] * key_s + d[:, None], inside[None, :] & (d < SIZE)[:, None]
    cross, intra = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    start = first if MASK >= PATTERN else tl.maximum(first, begin - (keys - queries))  # causal: earlier do not see it
    nearest, furthest = tl.min(tl.where(image > 0, image, FAR), 0), tl.max(image, 0)  # images of this block of keys
    for block in range(start + share * ROWS, last, shares * ROWS):
        row = block + tl.arange(0, ROWS)
        group = tl.load(query_group + b * queries + row, mask=row < last, other=0).to(tl.int32)
        asked = tl.max((group == ASKS).to(tl.int32), 0) > 0
        own = (tl.max(group, 0) >= nearest) & (tl.min(tl.where(group > 0, group, FAR), 0) <= furthest)
        meets = (furthest > 0) & (asked | own)
        if MASK >= PATTERN:  # any pattern: what lies above a diagonal shows in the mask only
            seen = _bias(mask, mask_q, mask_k, row, column, queries, keys, MASK) > float("-inf")
            meets = meets & (tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0)
        if meets:
            q_at, q_in = row[:, None] * query_s + d[None, :], (row < last)[:, None] & (d < SIZE)[None, :]
            highest = tl.full([ROWS, COLUMNS], float("-inf"), tl.float32)
            for head in range(HEADS):
                s = _scores(query, key, query_h, key_h, q_at, k_at, q_in, k_in, head, SHARE, WIDEN)
                norm = tl.load(logsumexp + head * logsumexp_h + row * logsumexp_s, mask=row < last, other=0.0)
                highest = tl.maximum(highest, s * scale - norm[:, None] * LOG2_E)
            # Only now, so that no second tile takes up registers while the heads go by.
            bias = _bias(mask, mask_q, mask_k, row, column, queries, keys, MASK)
            text, same = (group == ASKS)[:, None], group[:, None] == image[None, :]
            if not ITSELF:
                same = same & (column[None, :] != row[:, None] + (keys - queries))
            received = tl.where((image > 0)[None, :] & (bias > float("-inf")), tl.exp2(highest + bias), 0.0)
            cross += tl.sum(tl.where(text, received, 0.0), 0)
            intra += tl.sum(tl.where(same, received, 0.0), 0)
    place = sums + ((share * 2) * batch + b) * keys + column
    tl.store(place, cross, mask=inside)
    tl.store(place + batch * keys, intra, mask=inside)
