"""The state of one prefill while tokens disappear from it, and of one layer of it.

The model's loop hands every layer the mask and the position embeddings of the full length, made for layer 0. A `PrefillState`
knows which tokens are still carried and gives each layer the rows and columns that belong to them. It exists for one call of the
decoder and travels as an argument, so forwards never share state.

A layer on its way through has a `LayerPass`, which owns what is known only while it runs: what its cache held, whom it
will carry on, whether its attention was seen. decoder/__init__.py shows the way as ten lines.

What a layer deletes is decided by subclasses: by a recipe (deletion.py), by a threshold (studies/replay.py), nothing but with every
layer watched (observe.py), or nothing more, after a prefill that was pruned before (this class).

    pytest tests/decoder/test_state.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..distributed.heads import HeadGroup
from ..errors import UnsupportedError
from ..kernels import TEXT, masks
from ..kernels.absorb import Absorbed
from ..kernels.attended import Attended
from ..kernels.select import ALIVE, PADDING, most, take
from . import cache as kv
from .upstream import DEEPSTACK, MASK, POSITIONS, ROTARY
from .visual_tokens import Spans, groups, tokens_of


@dataclass(frozen=True)
class Prefill:
    """A forward over n new tokens (B rows) that follow `past` cached ones.

    spans: Images of every row, positions within the new tokens (visual_tokens.py).
    length: n, the number of new tokens.
    past: Tokens before them, as counted by layer 0's cache.
    real: [B, n] bool on the CPU, False at padding; None if there is none.
    flash: Whether the attention takes 2-D masks (flash) or 4-D ones (sdpa, eager).
    logits_to_keep: How many of the last columns the model looks at in the end; 0 for all.
    recurrent: Layers without attention (linear attention), where tokens go through a state one after the other.
    sharing: Layers without keys of their own, and the layer whose keys each of them reads.
    """

    spans: Spans
    length: int
    past: int = 0
    real: Tensor | None = None
    device: torch.device | None = None
    flash: bool = False
    logits_to_keep: int = 0
    recurrent: frozenset[int] = frozenset()
    sharing: Mapping[int, int] = field(default_factory=dict)


class PrefillState:
    """Which tokens a forward still carries.

    token_index: [B, m] which of the n new tokens are carried, None while all are.
    status: [B, m] `ALIVE`, `PADDING` or `DELETED` for each of them: rows that keep different numbers are filled up to a rectangle.
    size: [B, m] how many tokens each of them stands for, None while that is one (kernels/absorb.py).
    absorbed: What the survivors of the layer at hand take over from those that it deletes; None for nothing.
    token_group: [B, m] `TEXT`, the number of the image, or 0: padding, deleted, or between the runs of one image.
    pad_slots: Whether any row carries something that is not alive (known to the host).
    layers_entered: How many layers this forward has gone into.
    cache: The one that the layers were seen to fill, None if none was.
    deepstack: What is added to the hidden states after some layers, [B, n, E] each, zero where nothing is.
    """

    def __init__(self, call: Prefill) -> None:
        self.call, self.spans, self.length, self.past = call, call.spans, call.length, call.past
        group, between = groups(call.spans, call.length)
        group[(group == 0) & ~between] = TEXT
        status = torch.full_like(group, ALIVE)
        if call.real is not None:
            group[~call.real], status[~call.real] = 0, PADDING
        self.host_group, self.host_status = group, status
        self.token_group, self.status = group.to(call.device), status.to(call.device)
        self.images = max(map(len, call.spans), default=0)
        images = [image for row in call.spans for image in row]
        self.visual = (min((image[0][0] for image in images), default=0), max((image[-1][1] for image in images), default=0))
        self.token_index: Tensor | None = None
        self.size: Tensor | None = None
        self.absorbed: Absorbed | None = None
        self.dtype = torch.float32  # of the hidden states
        self.padded = self.pad_slots = call.real is not None
        self.layers_entered = 0
        self.cache: Any = None
        self.deepstack: dict[int, Tensor] = {}
        self._remembered: dict[str, tuple[Any, Any]] = {}
        self._held: dict[int, tuple[Tensor, Tensor | None] | None] = {}  # layer: what its cache held before this forward

    # ---- what subclasses decide -------------------------------------------------------------------------------

    def needs_scores(self, layer: int) -> bool:
        """Whether this layer's attention has to be shown to `select_survivors`."""
        return False

    def select_survivors(self, seen: Attended) -> Tensor | None:
        """Looks at a layer's attention; returns which carried tokens go on ([B, m'] ascending), None for all."""
        return None

    def carry_on(self, survivors: Tensor | None) -> None:
        """After a layer: from here on only these of the carried tokens are there, None for all of them."""
        if survivors is None:
            return
        self._remembered.clear()
        self.token_index = survivors if self.token_index is None else take(self.token_index, survivors, 1)
        self.status, self.token_group = take(self.status, survivors, 1), take(self.token_group, survivors, 1)
        if self.absorbed is not None:
            self.size, self.absorbed = self.absorbed.size, None
        elif self.size is not None:
            self.size = take(self.size, survivors, 1)

    def image_sizes(self, layer: int) -> list[int]:
        """How many tokens each image has at most in any row when a layer begins, [image]; known without asking the device."""
        return most([[tokens_of(image) for image in row] for row in self.spans])

    # ---- a layer ----------------------------------------------------------------------------------------------

    def enter(self, layer: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> LayerPass:
        """Before a layer: its keyword arguments are narrowed, in place, to the tokens that are still there."""
        entered = self._enter(layer, hidden, cache, kwargs)
        entered.given = kwargs.get(MASK)
        return entered

    def _enter(self, layer: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> LayerPass:
        self.layers_entered, self.dtype = layer + 1, hidden.dtype
        self._to(hidden.device)
        kv.admit(cache, layer)
        mask, source = kwargs.get(MASK), self.call.sharing.get(layer, layer)  # source: the layer whose keys it reads
        if mask is None and self.length == 1 and self.token_index is None and kv.all_valid(cache, source):
            return LayerPass(self, layer, None)  # decoded without padding, a token sees all that the layer holds
        if source == layer:
            self._held[layer] = kv.entries(cache, layer)
        entered = LayerPass(self, layer, self._held.get(source))
        if self.token_index is None and entered.cached is None:
            return entered
        if hidden.shape[1] < self.status.shape[1]:
            entered.last = hidden.shape[1]
        if layer in self.call.recurrent:
            kwargs[MASK] = mask if self.token_index is None else self.status == ALIVE if self.pad_slots else None
        elif entered.cached is not None:
            kwargs[MASK] = entered.mask(mask)
        else:
            kwargs[MASK] = self._once("mask", mask, lambda: entered.mask(mask))
        if self.token_index is None or entered.last is not None:
            return entered
        embeddings = kwargs.get(ROTARY)
        if embeddings is not None:
            kwargs[ROTARY] = self._once("rotary", embeddings, lambda: self._rotary(embeddings))
        if embeddings is not None and self.call.flash:
            kwargs[POSITIONS] = None  # used up; flash attention would take their gaps for packed sequences
        elif kwargs.get(POSITIONS) is not None:
            kwargs[POSITIONS] = self.carried(kwargs[POSITIONS], dim=-1)
        for name, value in kwargs.items():  # what else there is per token, such as embeddings per layer, or kinds of tokens
            if name not in (MASK, POSITIONS, ROTARY) and isinstance(value, Tensor) and self._per_token(value):
                kwargs[name] = take(value, self.token_index, 1)
        return entered

    def leave(self, layer: int, hidden: Tensor) -> Tensor:
        """After a layer and its cut: what the model adds to its visual tokens there (deepstack), for those that are left."""
        if layer not in self.deepstack:
            return hidden
        added = self.deepstack[layer].to(hidden.device, hidden.dtype)
        added = added if self.token_index is None else take(added, self.token_index, 1)
        return hidden + added[:, -hidden.shape[1] :]  # the last layer may carry on only what is read

    def _per_token(self, value: Tensor) -> bool:
        return (value.ndim > 2 and value.shape[1] == self.length) or value.shape == (len(self.status), self.length)

    def _rotary(self, embeddings: Any) -> Any:
        """Cosines and sines of the carried tokens, or one complex tensor [B or 1, n, D]."""
        return self.carried(embeddings) if isinstance(embeddings, Tensor) else tuple(map(self.carried, embeddings))

    def columns(self) -> Tensor:
        """[B, m] places of the carried tokens, counted from the start of layer 0's cache."""
        if self.token_index is not None:
            return self.token_index + self.past
        return torch.arange(self.past, self.past + self.length, device=self.status.device).expand_as(self.status)

    def carried(self, tensor: Tensor, dim: int = -2) -> Tensor:
        """The carried rows of something with one entry per token: [B or 1, n, D], or [3, B or 1, n, D] (M-RoPE)."""
        assert self.token_index is not None
        if tensor.ndim + dim == 2:  # leading sections, as in Qwen-VL
            return torch.stack([take(section, self.token_index, section.ndim + dim) for section in tensor])
        return take(tensor, self.token_index, tensor.ndim + dim)

    def visual_range(self) -> tuple[int, int]:
        """A range of the carried tokens that holds all visual ones."""
        carried = self.status.shape[1]
        if self.padded:  # dropped padding moves everything
            return 0, carried
        return self.visual[0], carried - (self.length - self.visual[1])  # text on either side is never deleted

    def _to(self, device: torch.device) -> None:
        """A model on several devices: the next layer may live elsewhere."""
        if self.status.device != device:
            self.status, self.token_group = self.status.to(device), self.token_group.to(device)
            self.token_index = None if self.token_index is None else self.token_index.to(device)
            self.size = None if self.size is None else self.size.to(device)
            self._remembered.clear()

    def _once(self, name: str, source: Any, make: Callable[[], Any]) -> Any:
        """`make()` until the next cut, as long as it comes from the same source object."""
        known = self._remembered.get(name)
        if known is None or known[0] is not source:
            self._remembered[name] = known = (source, make())
        return known[1]


class LayerPass:
    """One layer of one forward.

    cached: What the layer's cache held before, columns and validity as `cache.entries`; None where it held every token.
    survivors: Which carried tokens go on after this layer, once it is known; None for all.
    attention_seen: Whether its attention was shown to the state.
    last: How many of the carried tokens, the last ones, go through this layer where the decoder itself leaves the others out, as layers
        without keys of their own need not compute what nobody reads; None for all.
    given: The mask that it was handed.
    """

    def __init__(self, state: PrefillState, index: int, cached: tuple[Tensor, Tensor | None] | None) -> None:
        self.state, self.index, self.cached = state, index, cached
        self.survivors: Tensor | None = None
        self.attention_seen = False
        self.last: int | None = None
        self.given: Any = None
        self._keys_before: tuple[Tensor, Tensor | None] | None = None

    def on_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        mask: Tensor | None,
        logsumexp: Tensor | None = None,
        heads: HeadGroup | None = None,
    ) -> None:
        """Called by the attention function of a layer that needs scores: who survives is decided here."""
        state = self.state
        self.attention_seen = True
        if mask is not self.given:
            raise UnsupportedError(
                f"the attention of layer {self.index} makes a mask of its own, which does not know the tokens that are gone: "
                "such layers are not supported"
            )
        if state.token_index is not None:
            self._keys_before = self.keys()  # this layer's cache keeps what it deletes
        seen = Attended(
            query, key, value, scaling, mask, state.token_group, state.images, state.visual_range(), self.index,
            logsumexp=logsumexp, heads=heads, sizes=state.image_sizes(self.index),
        )  # fmt: skip
        with torch.no_grad():
            self.survivors = state.select_survivors(seen)

    def record_cache(self, cache: Any) -> None:
        """After the layer's attention, before its cut: notes on the cache which tokens this layer holds.

        A layer that got all new tokens needs no note: entries without one follow from the last note one by one.
        """
        state = self.state
        state.cache = cache
        if cache is not None and state.token_index is not None:
            columns, valid = self._keys_before or self.keys()
            kv.mark(cache, self.index, columns, valid, state.past + state.length)

    def narrow(self, hidden: Tensor) -> Tensor:
        """The rows of the tokens that go on after this layer, [B, m, …] → [B, m', …]."""
        if self.survivors is None:
            return hidden
        return take(hidden, self.survivors, 1) if self.state.absorbed is None else self.state.absorbed.mean(hidden)

    def cut(self, hidden: Tensor) -> Tensor:
        """The end of the layer's choice: hidden states [B, m, E] of those that go on, and the state carries no others."""
        hidden = self.narrow(hidden)
        self.state.carry_on(self.survivors)
        self.survivors = None
        return hidden

    def keys(self) -> tuple[Tensor, Tensor | None]:
        """Columns [B, K] and validity (None: all valid) of the keys of this layer: what the cache held, then our own.

        Where survivors stand for several tokens, validity is how many.
        """
        state = self.state
        own = state.columns()
        valid = state.status == ALIVE if state.pad_slots and state.token_index is not None else None
        if state.size is not None:
            valid = state.size if valid is None else state.size * valid
        if self.cached is None:
            if not state.past:
                return own, valid
            cached, real = torch.arange(state.past, device=own.device).expand(own.shape[0], -1), None
        else:
            cached, real = self.cached
            cached, real = cached.to(own.device), None if real is None else real.to(own.device)
        if valid is not None or real is not None:
            ones = torch.ones_like(cached, dtype=torch.bool), torch.ones_like(own, dtype=torch.bool)
            valid = torch.cat([ones[0] if real is None else real, ones[1] if valid is None else valid], dim=1)
        return torch.cat([cached, own], dim=1), valid

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """This layer's attention mask from the model's own, of the kind that the attention implementation takes."""
        state = self.state
        if mask is None and not state.pad_slots and state.size is None and self.cached is None and not state.past:
            return None  # causal, and deleting tokens keeps it so
        columns, valid = self.keys()
        if state.call.flash:
            return masks.flash(mask, columns, valid)
        if self.last is not None:  # the model's mask has these rows only, or is causal
            return masks.dense(mask, state.columns()[:, -self.last :], columns, valid, dtype=state.dtype)
        return masks.dense(mask, state.columns(), columns, valid, carried=state.token_index, dtype=state.dtype)


def take_deepstack(call: Mapping[str, Any], state: PrefillState) -> dict[str, Any]:
    """Takes over what a decoder adds to its visual tokens between its layers, at places that pruning moves.

    Returns:
        Arguments of the decoder as they are from now on: None where it has nothing left to add.
    """
    for names in DEEPSTACK:
        places, features = (call.get(name) for name in names)
        if places is None or features is None:
            continue
        left = {}
        for layer, feature in features.items() if isinstance(features, Mapping) else enumerate(features, 1):
            if layer == 0:
                left[layer] = feature  # before the first layer all tokens are there
                continue
            whole = feature.new_zeros(*places.shape[:2], feature.shape[-1])
            whole[(places if places.ndim == 2 else places[..., 0]).to(feature.device)] = feature
            state.deepstack[layer - 1] = whole
        return {names[1]: left} if left else dict.fromkeys(names)
    return {}
