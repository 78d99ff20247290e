"""Which keys a query may see: the rule once, in plain torch, for every attention that takes a mask.

A query sees the keys at its own position and before it, as far as they are *valid* (neither padding nor a deleted token that is
still carried). A key that stands for several tokens (absorb.py) counts as that many: `valid` is a number then. What an attention
implementation is given differs:

    flash attention        bool [B, K], which keys are valid; causal besides
    sdpa                   None (causal, or everything for a single query), or bool [B, 1, Q, K]
    eager                  None, or numbers to add [B or 1, 1, Q, K]

A layer that lacks tokens is given the model's own mask, made for the first layer, at the columns that it still has (`dense`,
`flash`); where the model made none, one is made only if causality alone does not say it. Scores read any of them (`additive`).
The tiles of chunked.py and triton.py apply the same rule in place; they are tested against this one.

    pytest tests/kernels/test_masks.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from .select import take


def causal(queries: Tensor, keys: Tensor, valid: Tensor | None = None) -> Tensor:
    """What each query sees.

    Args:
        queries: Positions [B or 1, Q].
        keys: Positions [B or 1, K].
        valid: [B, K], False or 0 for keys that nobody sees; None: all are valid.
    Returns:
        bool [B or 1, 1, Q, K]
    """
    seen = keys[:, None, None, :] <= queries[:, None, :, None]
    return seen if valid is None else seen & valid[:, None, None, :].bool()


def as_numbers(seen: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A bool mask as numbers to add to scores: 0 where a key is seen, the lowest of the precision elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def dense(
    mask: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    valid: Tensor | None,
    carried: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """A layer's mask for sdpa or eager attention.

    Args:
        mask: The model's, [B or 1, 1, n, C] of bool or numbers, over its n new tokens and the C columns of its first layer's cache;
            None where that is causal.
        queries: Columns [B, Q] of the queries, as `keys`.
        keys: Columns [B, K] of the layer's keys.
        valid: As `causal`; numbers say how many tokens each key stands for.
        dtype: Of numbers, where the model made none.
        carried: [B, Q] which of the n new tokens the queries are; None for all.
    Returns:
        The mask at these queries and keys, in its own type; None where causality says as much.
    """
    if valid is not None and valid.is_floating_point():
        seen = dense(mask, queries, keys, valid > 0, carried)
        assert seen is not None
        numbers = as_numbers(seen, dtype) if seen.dtype == torch.bool else seen
        return numbers + valid.clamp(min=1).log()[:, None, None, :].to(numbers.dtype)
    if mask is None:
        if valid is None and queries.shape[1] in (1, keys.shape[1]):
            return None
        return causal(queries, keys, valid)
    mask = take(mask if carried is None else take(mask, carried, 2), keys, 3)
    if valid is None:
        return mask
    hidden = ~valid[:, None, None, :]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def flash(mask: Tensor | None, keys: Tensor, valid: Tensor | None) -> Tensor | None:
    """A layer's mask for flash attention: [B, K], from the model's [B, C]; arguments as `dense`."""
    if mask is None:
        return valid
    real = mask.bool().gather(1, keys)
    return real if valid is None else real & valid


def additive(mask: Tensor | None, queries: int, keys: int, like: Tensor) -> Tensor:
    """Any mask that an attention implementation takes, as float32 numbers to add to the scores of the last `queries` of `keys`.

    Args:
        like: A tensor whose device is used.
    Returns:
        [B or 1, 1, Q, K]
    """
    if mask is not None and mask.ndim == 4:
        return as_numbers(mask) if mask.dtype == torch.bool else mask.float().clamp(min=torch.finfo(torch.float32).min)
    position = torch.arange(keys, device=like.device)[None]  # [1, K]
    return as_numbers(causal(position[:, keys - queries :], position, mask))
