"""FitPrune on an unmodified vision-language model at full length, by masks alone: slow, independent of fitprune's code.

The decoder runs with an attention function of this file's, registered with transformers for the time of one run: the
model's own eager attention, under the model's own mask, with deleted tokens masked as keys from the layer after their
deletion on. That holds whatever the class does with positions, groups of heads, windows, masks both ways or features
that are added to hidden states. Linear attention and convolutions have no keys: they are run on the survivors alone, row by row.

    masked_dense(model, inputs, deleted)       logits with these deletions
    received(model, inputs, deleted)           attention that each visual token receives, layer by layer
    select(model, inputs, recipe)              which tokens a recipe deletes, and the logits

Received attention, in one layer: A[h, q, k] is the attention of query q to key k in head h, M = max over h of A,
cross[k] = sum of M[q, k] over the text that asks (real, neither visual nor within an image or video), intra[k] = the same
over the tokens of k's own image or video that are still there. The score is cross × intra, or intra if no text follows.

    pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from vlms import Inputs

NAME = "test_oracle"
NEVER = 10**6  # the layer at which a survivor is deleted

Received = tuple[Tensor, Tensor]  # cross and intra, [B, S] float64, 0 where a token is not visual or is gone
Deleted = Sequence[Sequence[Sequence[int] | Tensor]]  # per layer, per row: positions


def decoder_of(model: nn.Module) -> Any:
    """The module with the decoder's layers: the first that has `layers`, beside any tower."""
    inner: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    candidates = [inner, *(module for name, module in inner.named_modules() if "vision" not in name and "audio" not in name)]
    return next(one for one in candidates if isinstance(getattr(one, "layers", None), nn.ModuleList))


@dataclass
class Dense:
    """A dense run. logits [B, S, V]; removed [B, S]: the layer that deletes a token, or `NEVER`; received: per layer."""

    logits: Tensor
    removed: Tensor
    received: list[Received | None]
    real: Tensor

    def alive(self, layer: int) -> list[Tensor]:
        """Per row, the positions alive after a layer."""
        return [((removed > layer) & real).nonzero().flatten() for removed, real in zip(self.removed, self.real, strict=True)]

    @property
    def survivors(self) -> list[Tensor]:
        """Per row, the positions that the last layer leaves."""
        return self.alive(NEVER - 1)


def masked_dense(model: nn.Module, inputs: Inputs, deleted: Deleted = ()) -> Dense:
    """The unmodified model; each token in `deleted[layer][row]` is no key in any layer after that one."""
    removed = torch.full(inputs.real.shape, NEVER)
    for layer, rows in enumerate(deleted):
        for row, positions in enumerate(rows):
            removed[row, torch.as_tensor(positions, dtype=torch.long)] = layer
    return _run(model, inputs, removed, lambda layer, seen: None)


def received(model: nn.Module, inputs: Inputs, deleted: Deleted = ()) -> list[Received | None]:
    """Per layer, the attention received (cross, intra) by visual tokens, with earlier deletions; None for linear attention."""
    return masked_dense(model, inputs, deleted).received


def select(model: nn.Module, inputs: Inputs, recipe: Any, before: Tensor | None = None) -> Dense:
    """Which tokens go, image by image, lowest score first, the earlier first among equals; `recipe.deletions(n, layers)` says how many.

    before: [B, n] the layers that deleted tokens of an earlier turn, the first n of each row; the images there are not chosen from again.
    """
    removed = torch.full(inputs.real.shape, NEVER)
    known = 0 if before is None else before.shape[1]
    if before is not None:
        removed[:, :known] = before
    layers = len(decoder_of(model).layers)
    asks = inputs.asks

    def choose(layer: int, seen: Received) -> None:
        cross, intra = seen
        for row, visuals in enumerate(inputs.visuals):
            for one in (one for one in visuals if one.tokens[0] >= known):
                count = recipe.deletions(len(one.tokens), layers)[layer]
                here = one.tokens[removed[row, one.tokens] > layer]
                follows = bool(asks[row, int(one.tokens[-1]) :].any())
                score = (cross[row, here] if follows else 1.0) * intra[row, here]
                order = sorted(range(len(here)), key=lambda at, score=score: (float(score[at]), at))
                removed[row, here[order[:count]]] = layer

    return _run(model, inputs, removed, choose)


def surviving(logits: Tensor, positions: Sequence[Tensor]) -> list[Tensor]:
    """Per row, logits [n, V] at these positions, of logits [B, S, V] over whole rows."""
    return [row[at] for row, at in zip(logits, positions, strict=True)]


def _run(model: nn.Module, inputs: Inputs, removed: Tensor, decide: Callable[[int, Received], None]) -> Dense:
    """A forward; after each layer's attention `decide` may note deletions of that layer in `removed`."""
    decoder = decoder_of(model)
    seen: list[Received | None] = [None] * len(decoder.layers)
    asks = inputs.asks

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        layer, (length, keys) = module.layer_idx, (query.shape[2], key.shape[2])
        lowest = torch.finfo(query.dtype).min
        if mask is None:
            mask = torch.zeros(length, keys).masked_fill(~torch.ones(length, keys, dtype=torch.bool).tril(), lowest)[None, None]
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, lowest)
        gone = removed < layer  # [B, S]
        mask = mask[..., :keys].expand(query.shape[0], -1, -1, -1).masked_fill(gone[:, None, None, :], lowest)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, mask, **kwargs)
        seen[layer] = _received(weights, inputs, asks, ~gone)
        decide(layer, seen[layer])
        return output, weights

    with _attending(model, decoder, attention), ExitStack() as undo, torch.no_grad():
        for layer, module in enumerate(decoder.layers):
            if (recurrent := getattr(module, "linear_attn", getattr(module, "conv", None))) is not None:
                _on_survivors(recurrent, layer, removed, inputs.real, undo)
        logits = model(**inputs.call).logits
    return Dense(logits, removed, seen, inputs.real)


def _received(weights: Tensor, inputs: Inputs, asks: Tensor, here: Tensor) -> Received:
    highest = weights.double().amax(1)  # [B, Q, K]
    cross, intra = torch.zeros(2, *asks.shape, dtype=torch.float64)
    for row, visuals in enumerate(inputs.visuals):
        for one in visuals:
            left = one.tokens[here[row, one.tokens]]
            cross[row, left] = highest[row, asks[row]].sum(0)[left]
            intra[row, left] = highest[row, left].sum(0)[left]
    return cross, intra


def _on_survivors(module: Any, layer: int, removed: Tensor, real: Tensor, undo: ExitStack) -> None:
    """Has a layer of linear attention run on each row's survivors alone; the others keep zeros."""
    original = module.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("attention_mask", None)  # nothing of what is left is padding
        result = torch.zeros_like(hidden_states)
        for row in range(len(hidden_states)):
            kept = (real[row] & (removed[row] >= layer)).nonzero().flatten()
            result[row, kept] = original(hidden_states[row : row + 1, kept])[0]
        return result

    module.forward = forward
    undo.callback(lambda: delattr(module, "forward"))


@contextmanager
def _attending(model: nn.Module, decoder: Any, attention: Callable[..., Any]) -> Iterator[None]:
    """Inside this block the decoder's layers attend with `attention`; towers stay as they are."""
    attentions = [layer.self_attn for layer in decoder.layers if hasattr(layer, "self_attn")]
    text = model.config.get_text_config()  # type: ignore[union-attr]
    own = {id(config): config for config in (decoder.config, text, *(one.config for one in attentions))}
    with ExitStack() as undo:
        AttentionInterface.register(NAME, attention)
        undo.callback(AttentionInterface._global_mapping.pop, NAME)
        AttentionMaskInterface.register(NAME, eager_mask)
        undo.callback(AttentionMaskInterface._global_mapping.pop, NAME)
        for one in own.values():
            undo.callback(setattr, one, "_attn_implementation_internal", one._attn_implementation_internal)
            one._attn_implementation_internal = NAME
        yield
