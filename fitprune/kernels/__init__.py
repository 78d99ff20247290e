"""Attention received by visual tokens, computed in several ways that agree.

FitPrune ranks a visual token k by how much attention it receives: the sum over a set of queries of the **maximum over
heads** of the attention weight (paper, section 3.2; the released code takes the maximum first, so per-head column sums
do not serve). Two sets of queries count: the text after the image (*cross*) and the image's own tokens (*intra*).

    reference.py   the formula, whole map at once: what tests and benchmarks compare with
    chunked.py     the same in row blocks, never more than a few megabytes of the map: what the product runs
    flash_cpu.py   PyTorch's CPU attention with its log-sum-exp, which saves chunked.py the softmax
    triton.py      the same on a GPU, a tile at a time in registers; not chosen below yet, as it has never run on one

    pytest tests/test_kernels.py
"""

from __future__ import annotations

from . import flash_cpu
from .chunked import received_attention as chunked
from .reference import TEXT
from .reference import received_attention as reference

received_attention = chunked  # what scores call: the place to choose a kernel by device

__all__ = ["TEXT", "chunked", "flash_cpu", "received_attention", "reference"]
