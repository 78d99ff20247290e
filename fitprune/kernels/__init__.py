"""Attention received by visual tokens, computed in several ways that agree.

FitPrune ranks a visual token k by how much attention it receives: the sum over a set of queries of the **maximum over
heads** of the attention weight (paper, section 3.2; the released code takes the maximum first, so per-head column sums
do not serve). Two sets of queries count: the text after the image (*cross*) and the image's own tokens (*intra*).

    reference.py    the formula, whole map at once: what tests and benchmarks compare with
    chunked.py      the same in tiles that stay in cache: what runs on a CPU, and wherever triton.py does not
    triton.py       the same on a GPU, a tile at a time in registers
    flash_cpu.py    PyTorch's fused attention with the log-sum-exp that it computes anyway, …
    flash_cuda.py   … on either device, which saves the two above a pass over the scores
    trust.py        each GPU kernel is compared with the formula before its first use

    pytest tests/kernels/test_kernels.py
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from ..distributed.heads import HeadGroup
from . import flash_cpu, flash_cuda
from .chunked import received_attention as chunked
from .reference import TEXT
from .reference import received_attention as reference
from .trust import matches_formula, trusted

__all__ = ["TEXT", "attend", "chunked", "received_attention", "reference"]


def attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool = True
) -> tuple[Tensor, Tensor] | None:
    """What scaled_dot_product_attention would compute, with the log-sum-exp; None where that cannot be had.

    Args:
        query: [B, H, Q, D]; key, value [B, G, K, D] with H a multiple of G.
        mask: None or [B or 1, 1, Q, K].
        causal: Whether attention without a mask is causal.
    Returns:
        Output [B, H, Q, D] and the log-sum-exp of each query's scaled, masked scores [B, H, Q or more], float32.
    """
    for kernel in (flash_cpu, flash_cuda):
        if kernel.applies(query, key, value, mask, causal):
            return kernel.attend(query, key, value, scaling, mask)
    return None


def received_attention(query: Tensor, key: Tensor, *args: Any, heads: HeadGroup | None = None, **hints: Any) -> tuple[Tensor, Tensor]:
    """As `reference.received_attention`, with the hints of `chunked.received_attention`, by the best kernel there is."""
    if heads is not None:  # the maximum leaves the device before the sums: not what one kernel can do
        return chunked(query, key, *args, heads=heads, **hints)
    kernel = on_gpu(query)
    return chunked(query, key, *args, **hints) if kernel is None else kernel.received_attention(query, key, *args, **hints)


def on_gpu(query: Tensor) -> ModuleType | None:
    """triton.py where it serves queries like these and was found right on their device, else None: `chunked` serves."""
    if not query.is_cuda or (kernel := _triton()) is None or not kernel.applies(query):
        return None
    kind = "the Triton kernel", str(query.device), query.dtype, query.shape[-1]
    return kernel if trusted(kind, lambda: matches_formula(kernel.received_attention, query)) else None


@cache
def _triton() -> ModuleType | None:
    try:
        from . import triton
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "fitprune: scores are computed without Triton (%s), which is slower on a GPU: pip install triton", error
        )
        return None
    return triton
