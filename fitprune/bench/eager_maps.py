"""The authors' way of pruning, written plainly: what FitPrune's speed is compared with.

Every layer runs eager attention, which makes the whole map of all heads. A layer that deletes takes the maximum over heads of that map,
sums it over the image's queries and over the text's, multiplies the sums, sorts, and picks the survivors by a boolean mask, from the
attention's output before its last projection and from the residual. The causal mask is cut at the top left, the positions are picked
like the tokens. Source: the released `modeling_llama.py` of LLaVA-1.5.

It differs where theirs would be slower for no reason: it takes batches (theirs is for one row), leaves the output layer out, and picks
nothing in layers that delete nothing (theirs picks everything). Scores are in the model's precision, as theirs, so in half precision
it need not keep the same tokens as FitPrune.

    pytest tests/bench/test_bench_eager_maps.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def prefill(model: Any, embeds: Tensor, deletions: Sequence[int], before: int, visual: int) -> tuple[Any, list[Tensor]]:
    """One pruned prefill of a Llama decoder with eager attention.

    Args:
        embeds: [B, S, E].
        deletions: Tokens to delete in each layer, [layer].
        before: Tokens before the image. visual: tokens of the image; those after it are text.
    Returns:
        The cache, and the original positions alive after each layer, [B, n] each.
    """
    from transformers import DynamicCache
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

    hidden, cache, alive = embeds, DynamicCache(), []
    batch, length, _ = embeds.shape
    positions = torch.arange(length, device=embeds.device).expand(batch, -1)  # [B, S] original ones
    mask = torch.full((1, 1, length, length), torch.finfo(embeds.dtype).min, dtype=embeds.dtype, device=embeds.device).triu(1)
    for index, (layer, count) in enumerate(zip(model.layers, deletions, strict=True)):
        attention, tokens = layer.self_attn, hidden.shape[1]
        normed = layer.input_layernorm(hidden)
        query, key, value = (
            project(normed).view(batch, tokens, -1, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # [B, H, S, D]
        query, key = apply_rotary_pos_emb(query, key, *model.rotary_emb(hidden, positions))
        key, value = cache.update(key, value, index)
        output, weights = eager_attention_forward(
            attention, query, key, value, mask, scaling=attention.scaling, dropout=0.0
        )  # [B, S, H, D], [B, H, S, S]
        output = output.reshape(batch, tokens, -1)
        if count:
            kept = survivors(weights, count, before, visual)  # [B, S] bool
            left = (batch, tokens - count, -1)
            output, hidden = output[kept].view(left), hidden[kept].view(left)
            positions = positions[kept].view(left[:2])
            visual -= count
            mask = mask[:, :, : tokens - count, : tokens - count]
        hidden = hidden + attention.o_proj(output)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        alive.append(positions)
    model.norm(hidden)
    return cache, alive


def survivors(weights: Tensor, count: int, before: int, visual: int) -> Tensor:
    """Which tokens stay, [B, S] bool, where `count` of the `visual` ones that are left go: those of the lowest product of sums.

    weights: [B, H, S, S], attention of all heads.
    """
    end = before + visual
    strongest = weights.amax(dim=1)  # [B, S, S]
    intra = (strongest[:, before:end, before:end] / visual).sum(dim=1)  # [B, n]
    cross = strongest[:, end:, before:end].sum(dim=1)
    order = torch.sort(cross * intra, dim=1).indices
    kept = torch.ones(weights.shape[0], weights.shape[2], dtype=torch.bool, device=weights.device)
    kept.scatter_(1, before + order[:, :count], False)
    return kept
