"""PyTorch's causal CPU attention, keeping what it usually throws away: each query's log-sum-exp.

`scaled_dot_product_attention` on a CPU runs one fused kernel, which knows the log-sum-exp of every query's scores and
drops it. Calling that kernel by its own name gives the same output, bit for bit, and the number; with it received
attention needs no softmax of its own (chunked.py), which halves its time. Where the kernel does not apply (a mask, grouped
heads, a later turn, another device) the model's attention runs as it is and the softmax is computed.

    pytest tests/test_kernels.py
"""

from __future__ import annotations

import torch
from torch import Tensor


def applies(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend` is what scaled_dot_product_attention would run for these tensors, causal and without dropout."""
    return (
        query.device.type == "cpu"
        and mask is None
        and query.dtype in (torch.float32, torch.bfloat16)
        and query.shape == key.shape == value.shape
        and query.shape[2] > 1
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
        and torch.backends.cuda.flash_sdp_enabled()
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Causal attention of [B, H, S, D] tensors.

    Returns:
        Output [B, H, S, D], and the log-sum-exp of each query's scaled scores [B, H, S], float32.
    """
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = operator(query, key, value, 0.0, True, attn_mask=None, scale=scaling)
    return output, logsumexp
