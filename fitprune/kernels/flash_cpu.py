"""PyTorch's fused CPU attention, keeping what it usually throws away: each query's log-sum-exp.

`scaled_dot_product_attention` on a CPU runs one fused kernel, which knows the log-sum-exp of every query's scores and
drops it. Calling that kernel by its own name gives the same output, bit for bit, and the number; with it received
attention needs no pass of its own over the scores (chunked.py). Whether PyTorch would choose that kernel for given tensors
is asked of PyTorch. Where it would not (another device, a precision or a layout that the kernel does not take), the
model's attention runs as it is and the log-sum-exp is computed afterwards.

    pytest tests/kernels/test_kernels.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend


def applies(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = True) -> bool:
    """Whether `attend` is what scaled_dot_product_attention would run for these tensors, without dropout.

    Args:
        query: [B, H, Q, D]; key, value [B, G, K, D] with H a multiple of G.
        mask: None or [B or 1, 1, Q, K].
        causal: Whether attention without a mask is causal; with one the mask says all.
    """
    if query.device.type != "cpu" or query.shape[2] < 2:
        return False  # transformers has its own ways with a single query
    if mask is None and not (causal and query.shape[2] == key.shape[2]):
        return False  # the kernel aligns its diagonal at the first key
    gqa = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    choice = torch._fused_sdp_choice(query, key, value, mask, 0.0, mask is None, **gqa)
    return bool(choice == SDPBackend.FLASH_ATTENTION.value)


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of tensors as in `applies`, causal where there is no mask.

    Returns:
        Output [B, H, Q, D], and the log-sum-exp of each query's scaled and masked scores [B, H, Q], float32.
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = operator(query, key, value, 0.0, mask is None, attn_mask=mask, scale=scaling)
    return output, logsumexp
