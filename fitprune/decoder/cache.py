"""A KV cache whose layers hold different tokens, and know which.

The cache of layer l keeps every token that *enters* layer l, so layer 0 is complete (positions of new tokens stay
right) and later layers are shorter. With padding, ragged batches, beams or a second image in a later turn, the model's
mask, made for layer 0, has to be read at the columns that a layer still has. Those columns live here, on the cache
layer itself: they are reordered with the beams and die with the cache. Nothing is kept on the model.

A pruned layer is the cache's own layer with a mixin added (`mark`), so quantised or offloaded caches keep
their behaviour. It takes new tokens only from a forward that has read its notes (`admit`): anything else, be it a model
without a recipe attached or a transformers that hides its cache from us, would attend by a mask made for layer 0.

Layers that keep only a window of the tokens are replaced by layers that keep all, while they are empty (`make_room`): a window counts
tokens, and the model's own mask knows it by position. Left out: `crop`, which assisted decoding needs: layers of unequal
length cannot be cut back to one length.

    pytest tests/decoder/test_cache.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .upstream import Cache, DynamicLayer, DynamicSlidingWindowLayer, has_keys


class PrunedLayer:
    """Mixed into a cache layer that does not hold every token.

    token_index: [B, n] int, for its first n entries, the column of layer 0's cache that each one is.
    valid: [B, n] bool, False where an entry is padding or a deleted token that is still carried; None if all are real. Numbers say how
        many tokens an entry stands for.
    seen: Length of layer 0's cache when `token_index` was written; entries after the first n follow from there one by one.
    admitted: Whether a forward that knows these notes is about to add its tokens.
    """

    token_index: Tensor
    valid: Tensor | None
    seen: int
    admitted: bool = False

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if not self.admitted:
            raise UnsupportedError(
                "a pruned cache is used by a forward that does not know which tokens are gone: continue inside `with prune(...)` "
                "of the model that made it, or start with a new cache"
            )
        self.admitted = False
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def entries(self, length: int) -> tuple[Tensor, Tensor | None]:
        """Columns [B, length] and validity of the layer's entries, those appended since `mark` included."""
        added = length - self.token_index.shape[1]
        if added == 0:
            return self.token_index, self.valid
        new = torch.arange(self.seen, self.seen + added, device=self.token_index.device)
        columns = torch.cat([self.token_index, new.expand(self.token_index.shape[0], -1)], dim=1)
        valid = self.valid
        if valid is not None:
            valid = torch.nn.functional.pad(valid, (0, added), value=1)
        return columns, valid

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As if the layer held every token: masks are made at that length, and read at what it holds."""
        length, offset = super().get_mask_sizes(*args, **kwargs)  # type: ignore[misc]
        return length + self.seen - self.token_index.shape[1], offset

    def _rows(self, index: Tensor) -> None:
        self.token_index = self.token_index[index.to(self.token_index.device)]
        if self.valid is not None:
            self.valid = self.valid[index.to(self.valid.device)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._rows(torch.arange(self.token_index.shape[0]).repeat_interleave(repeats))

    def __reduce__(self) -> tuple[Any, ...]:
        return _pruned, (type(self).__mro__[2], self.__dict__)  # copies and pickles without the made-up class

    def crop(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError(
            "a pruned cache cannot be cropped, so assisted and prompt-lookup decoding do not work inside prune(): its layers "
            "hold different tokens and have no common length to return to. Generate without assistant_model and prompt_lookup_num_tokens"
        )


_classes: dict[type, type] = {}  # DynamicLayer → the same with the mixin, made once


def _pruned(kind: type, state: dict[str, Any]) -> Any:
    """A cache layer of that kind, with the mixin, in that state."""
    if kind not in _classes:
        _classes[kind] = type(f"Pruned{kind.__name__}", (PrunedLayer, kind), {})
    layer: Any = object.__new__(_classes[kind])
    layer.__dict__.update(state)
    return layer


def mark(cache: Cache, index: int, columns: Tensor, valid: Tensor | None, seen: int) -> None:
    """Writes down which tokens layer `index` of the cache holds; see `PrunedLayer` for the arguments."""
    layer = _layer(cache, index)
    if layer is None or not has_keys(type(layer)):
        return
    if not isinstance(layer, PrunedLayer):
        _check(type(layer), type(cache).__name__)  # a cache that the decoder made for itself was not seen before
        cache.layers[index] = layer = _pruned(type(layer), layer.__dict__)  # the same tensors, no copy
    layer.token_index, layer.valid, layer.seen = columns, valid, seen


def entries(cache: Cache | None, layer: int) -> tuple[Tensor, Tensor | None] | None:
    """What `layer` of the cache holds before this forward, or None where it holds every token."""
    held = _layer(cache, layer)
    if not isinstance(held, PrunedLayer):
        return None
    length = held.get_seq_length()  # type: ignore[attr-defined]
    return held.entries(length) if length else None


def admit(cache: Any, layer: int) -> None:
    """Lets one forward add its tokens to `layer`, which may be pruned: it has read the notes, or needs none."""
    held = _layer(cache, layer)
    if isinstance(held, PrunedLayer):
        held.admitted = True


def _layer(cache: Any, layer: int) -> Any:
    """A layer of a cache; None where there is none yet."""
    return None if cache is None or layer >= len(cache.layers) else cache.layers[layer]


def all_valid(cache: Cache | None, layer: int) -> bool:
    """Whether `layer` of the cache holds no deleted token and no padding, as far as pruning knows."""
    return getattr(_layer(cache, layer), "valid", None) is None


def is_pruned(cache: Cache | None) -> bool:
    """Whether some layer of the cache lacks tokens."""
    return any(isinstance(layer, PrunedLayer) for layer in getattr(cache, "layers", None) or [])


def make_room(cache: Any) -> None:
    """Replaces the layers of an empty cache that would keep only a window by layers that keep all: the model's masks know the window,
    and pruned tokens leave gaps that a window which counts tokens would not."""
    for index, layer in enumerate(getattr(cache, "layers", None) or []):
        if type(layer) is DynamicSlidingWindowLayer and not layer.get_seq_length():
            cache.layers[index] = DynamicLayer()


def check_notes(cache: Any) -> None:
    """Refuses a cache that was pruned but does not say which tokens it holds.

    Raises:
        UnsupportedError: if layers without notes are of unequal length.
    """
    lengths = {
        layer.get_seq_length()
        for layer in getattr(cache, "layers", None) or []
        if isinstance(layer, DynamicLayer) and not isinstance(layer, PrunedLayer) and not layer.is_sliding
    }
    if len(lengths - {0}) > 1:
        raise UnsupportedError(
            "the layers of this cache have different lengths and no notes of which tokens they hold, as if it was pruned and then "
            "copied tensor by tensor: copy.deepcopy keeps the notes, or start with a new cache"
        )


def check_prunable(cache: Cache | None) -> None:
    """Refuses the caches that pruning cannot work with.

    Raises:
        UnsupportedError: static caches (one length for all layers), sliding windows, encoder-decoder caches.
    """
    if cache is None:
        return
    name = type(cache).__name__
    if not hasattr(cache, "layers"):
        raise UnsupportedError(
            f"cannot prune with a {name}, whose layers do not tell which tokens they hold: use a DynamicCache, or a newer "
            "transformers if the model makes this cache for itself"
        )
    if getattr(cache, "layer_class_to_replicate", None) not in (None, DynamicLayer) and not cache.layers:
        kinds = [cache.layer_class_to_replicate]
    else:
        kinds = [type(layer) for layer in cache.layers]
    for kind in filter(has_keys, kinds):
        _check(kind, name)


def _check(kind: type, name: str) -> None:
    if not issubclass(kind, DynamicLayer):
        raise UnsupportedError(
            f"cannot prune with a {name} ({kind.__name__}): its layers have one length fixed in advance, while pruned layers hold "
            "different numbers of tokens. Leave cache_implementation at its default"
        )
    if getattr(kind, "is_sliding", False):
        raise UnsupportedError(
            f"cannot prune with a sliding-window {name}: its window counts tokens, and pruned tokens leave gaps. "
            "Pass a DynamicCache() of your own, or set sliding_window to None in the config if it exceeds your prompts"
        )
