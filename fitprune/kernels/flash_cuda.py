"""PyTorch's fused attention on a GPU, keeping each query's log-sum-exp, which saves triton.py its first pass.

As flash_cpu.py, for the flash kernel that `scaled_dot_product_attention` runs on a GPU: no mask, 16-bit floats. It is
asked of PyTorch whether it would choose that kernel (on some GPUs cuDNN's comes first; then the model's attention runs as it
is, and the log-sum-exp is computed). Before its first use for a kind of tensors the result is compared with PyTorch's
public one on a small example (trust.py). flash_attention_2 of the package of that name does not show its log-sum-exp.

    pytest tests/kernels/test_trust.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from .trust import noise, trusted

ALIGNED = 8  # head sizes that PyTorch hands to the kernel as they are


def applies(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = True) -> bool:
    """Whether `attend` is what scaled_dot_product_attention would run for these tensors; arguments as in flash_cpu.py."""
    if not query.is_cuda or mask is not None or not causal or not 1 < query.shape[2] == key.shape[2]:
        return False
    if query.dtype not in (torch.float16, torch.bfloat16) or query.shape[-1] % ALIGNED or torch.is_grad_enabled():
        return False
    share = query.shape[1] // key.shape[1]
    gqa = {"enable_gqa": True} if share > 1 else {}
    choice = torch._fused_sdp_choice(query, key, value, None, 0.0, True, **gqa)
    if choice != SDPBackend.FLASH_ATTENTION.value:
        return False
    kind = "flash attention", str(query.device), query.dtype, query.shape[-1], share
    return trusted(kind, lambda: _right(query, share))


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal attention: output [B, H, S, D] and the log-sum-exp of each query's scaled scores [B, H, S or more], float32."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    output, logsumexp, *_ = operator(query, key, value, 0.0, True, False, scale=scaling)
    return output, logsumexp


def _right(like: Tensor, share: int) -> bool:
    """Compares output and log-sum-exp of a small example with PyTorch's public attention and the formula."""
    batch, groups, length = 2, 2, 37
    query = noise(like, batch, groups * share, length)
    key, value = noise(like, batch, groups, length), noise(like, batch, groups, length).flip(2)
    output, logsumexp = attend(query, key, value, 0.1)
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.1)
    scores = query.float() @ key.float().transpose(-1, -2) * 0.1
    scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -torch.inf)
    near = torch.allclose(logsumexp[..., :length], scores.logsumexp(-1), rtol=1e-2, atol=1e-2)
    return near and torch.allclose(output.float(), wanted.float(), rtol=1e-2, atol=1e-2)
