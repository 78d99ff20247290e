"""The formula for received attention, in plain torch: slow, whole, obvious.

    A[h, q, k]  = softmax_k(scaling * query[h, q] . key[h, k])        attention of query q to key k in head h
    M[q, k]     = max_h A[h, q, k]                                    the maximum over heads comes first
    cross[k]    = sum of M[q, k] over the text queries q
    intra[k]    = sum of M[q, k] over the visual queries q of the image that k belongs to

By causality a text query before the image contributes nothing to it, so `cross` sums over all text queries. Neither sum
is divided by the number of queries: that is one constant per image, which ranking does not see (`observe` divides).
Scores that want what *others* pay leave the diagonal out (`itself=False`).
Source: FitPrune (AAAI 2025), section 3.2; shape conventions B batch, H heads, G key heads, Q queries, K keys, D head size.

    pytest tests/kernels/test_kernels.py
"""

from __future__ import annotations

from torch import Tensor

from .masks import additive

TEXT = -1  # group of a text query; 0 is "neither" (padding), 1, 2, … are the images of a row in their order


def received_attention(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, query_group: Tensor, key_group: Tensor, itself: bool = True
) -> tuple[Tensor, Tensor]:
    """Attention that every visual key receives from the text and from its own image.

    Args:
        query: [B, H, Q, D], rotary embedding applied.
        key: [B, G, K, D] with H a multiple of G (grouped-query attention), the last Q of them belonging to the queries.
        scaling: What the dot products are multiplied with.
        mask: As the attention implementation got it, see `additive`.
        query_group: [B, Q] int: `TEXT`, 0 (does not count) or the number of the image.
        key_group: [B, K] int: 0 (not visual) or the number of the image.
        itself: Whether what a token pays to itself counts.
    Returns:
        cross [B, K], intra [B, K], float32, zero where the key is not visual.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(-1, -2) * scaling + additive(mask, query.shape[2], key.shape[2], query)
    highest = logits.softmax(dim=-1).amax(dim=1)  # [B, Q, K]
    if not itself:
        highest.diagonal(key.shape[2] - query.shape[2], 1, 2).zero_()
    visual = key_group > 0  # [B, K]
    cross = (highest * (query_group == TEXT)[:, :, None]).sum(1) * visual
    intra = (highest * (query_group[:, :, None] == key_group[:, None, :])).sum(1) * visual
    return cross, intra
