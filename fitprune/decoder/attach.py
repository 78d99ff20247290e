"""How anything here attaches to an unmodified transformers model, and lets go of it again.

Three things are put in place, and every one is taken back by `detach`, also after an exception:

- a pre-hook on the model, which finds the visual tokens in its inputs (model_hooks.py), and one on its decoder (the module that owns
  `layers`), which turns them into a `PrefillState`, the state of that one forward;
- each decoder layer's `forward`, replaced on the instance (layer.py), which carries fewer tokens on than it got;
- a listening attention function (attention.py).

What this relies on in transformers is looked for first (upstream.py), before anything is put in place.

Nothing is patched at import, nothing is written on classes, and the state travels as a keyword argument from decoder
to attention: two forwards at once, or two generations taking turns, do not meet. Models placed by accelerate keep
their hooks: the replacement goes inside them.

    pytest tests/decoder/test_attach.py
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..cost.parts import sharing_layers
from ..distributed.heads import heads_of
from ..errors import FitPruneError, UnsupportedError
from . import cache as kv
from .attention import check_implementation, listening
from .block import Block, read_block
from .layer import LayerForward
from .model_hooks import ImageSpans, hook_model, keep_from_copying, put
from .refusals import check_images_are_tokens, check_keys_are_not_chosen
from .state import Prefill, PrefillState, take_deepstack
from .upstream import (
    MASK,
    STATE_KEY,
    DynamicCache,
    argument_names,
    attention_of,
    attention_registry,
    bound,
    cache_argument,
    cache_in,
    caches_in,
    caller_of,
    check,
    forward_name,
    has_windows,
    recurrent_layers,
    unwrapped,
    use_implementation,
)
from .visual_tokens import NO_LENGTHS, ByMask, ByTokenId, Lengths, without_padding

_numbers = itertools.count()  # for names in the attention registry, so that two attachments never share one


class PrefillPolicy(Protocol):
    """Who decides what happens in a forward."""

    def begin(self, call: Prefill) -> PrefillState:
        """The state of a forward that brings visual tokens."""


def find_decoder(model: nn.Module) -> nn.Module:
    """The module that owns the decoder layers.

    Raises:
        UnsupportedError: if there is none.
    """
    model = unwrapped(model)
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    for candidate in (decoder, getattr(decoder, "model", None), getattr(model, "model", None), model):
        if isinstance(getattr(candidate, "layers", None), nn.ModuleList):
            return candidate  # type: ignore[return-value]
    if isinstance(getattr(model, "module", None), nn.Module):  # DataParallel, DistributedDataParallel, an engine
        raise UnsupportedError(f"{type(model).__name__} is a wrapper: give the model inside, its .module, and call that or the wrapper")
    raise UnsupportedError(f"{type(model).__name__} has no decoder with `layers`: see docs/new_family.md for what a model must look like")


class Attachment:
    """A model with something attached; `detach` restores it."""

    def __init__(self, model: nn.Module, policy: PrefillPolicy, visual_mask: Tensor | None = None, lengths: Lengths = NO_LENGTHS) -> None:
        """
        Args:
            model: A transformers model, or its bare decoder; either in PEFT's wrapper.
            policy: Makes the state of each prefill.
            visual_mask: bool [B, S] over the prompt; without it images are found by the config's image token.
            lengths: How many tokens images of this model take.
        Raises:
            UnsupportedError: if the model cannot be attached to; FitPruneError if something is attached already.
        """
        self.decoder = find_decoder(model)
        self.policy = policy
        self.layers: list[nn.Module] = list(self.decoder.layers)  # type: ignore[arg-type]
        self.config = cast(Any, self.decoder.config)
        self.recurrent, self.sharing = recurrent_layers(self.layers), sharing_layers(self.config, len(self.layers))
        self.shares_heads = False  # whether other processes hold some of the heads
        self._blocks: dict[Hashable, Block | None] = {}  # of layers alike
        self._call = threading.local()  # as `hook_model` has it
        if attachment_of(model) is not None:
            raise FitPruneError("this model already has a recipe attached: leave that `with` block, or call detach(model), first")
        check_implementation(self.config._attn_implementation)
        check_images_are_tokens(model, self.decoder)
        check_keys_are_not_chosen(self.layers)
        check(self.decoder, self.layers)
        self._mask = None if visual_mask is None else ByMask(visual_mask)
        self._undo = ExitStack()
        with ExitStack() as undo:
            locate = ByTokenId(unwrapped(model).config, lengths) if self._mask is None else None
            hook_model(unwrapped(model), self.decoder, caller_of(model), locate, self._call, undo)
            undo.callback(self.decoder.register_forward_pre_hook(self._on_decoder, with_kwargs=True).remove)
            undo.callback(self.decoder.register_forward_hook(self._after_decoder, with_kwargs=True).remove)
            for index, layer in enumerate(self.layers):
                attention = attention_of(layer)
                self._replace_forward(index, layer, attention, undo)
                self._listen(attention, undo)
            inner: Any = unwrapped(model)
            base = getattr(inner, "base_model", inner)
            attentions = (attention_of(layer) for layer in self.layers)
            touched = (caller_of(model), inner, base, *base.children(), self.decoder, *self.layers, *attentions)
            keep_from_copying((module for module in touched if module is not None), undo)
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Takes everything back; a second call does nothing."""
        self._undo.close()

    def on_detach(self, undo: Callable[[], None]) -> None:
        """Has `detach` take back something more."""
        self._undo.callback(undo)

    # ---- putting in place ---------------------------------------------------------------------------------------

    def _replace_forward(self, index: int, layer: nn.Module, attention: nn.Module | None, undo: ExitStack) -> None:
        name, block = forward_name(layer), read_block(layer, self._blocks)
        last = index + 1 == len(self.layers)
        replacement = LayerForward(self, index, layer, attention, block, getattr(layer, name), last=last, undo=undo)
        put(layer, name, replacement, undo)

    def _listen(self, attention: nn.Module | None, undo: ExitStack) -> None:
        if attention is None:
            return  # nothing to listen to; a recipe that deletes in this layer finds that out there
        functions, name = attention_registry(attention), f"fitprune_{next(_numbers)}"
        config: Any = attention.config
        heads = heads_of(attention)
        functions[name] = listening(config, heads)
        self.shares_heads = self.shares_heads or heads is not None
        undo.callback(lambda: functions.__delitem__(name))
        own = copy.copy(config)
        use_implementation(own, name)
        attention.config = own
        undo.callback(lambda: setattr(attention, "config", config))

    # ---- during a forward ---------------------------------------------------------------------------------------

    def _on_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        sent = kwargs.pop(STATE_KEY, None)
        call = bound(decoder, args, kwargs)
        tokens = call["inputs_embeds"] if call.get("inputs_embeds") is not None else call.get("input_ids")
        if tokens is None:
            return None  # the decoder itself says what is missing
        rows, length = tokens.shape[:2]
        cache = cache_in(call)  # which may be empty, and so false
        if cache is None:
            cache = call.get(cache_argument(decoder) or "")  # one that is no `Cache`, to be refused
        kv.check_notes(cache)
        past = int(cache.get_seq_length()) if cache is not None else 0
        if isinstance(sent, ImageSpans):
            sent.delivered = True
        if isinstance(sent, ImageSpans) and sent.located is not None:
            spans = sent.located.spans()
        elif self._mask is not None:
            spans = self._mask.window(rows, past, length)
        else:
            spans = [[] for _ in range(rows)]
            if length > 1:
                raise FitPruneError(
                    "the decoder was called directly, so nothing says which tokens are visual: "
                    "call the model, or pass visual_mask= to prune()"
                )
        prefill = any(spans)
        if not prefill and not kv.is_pruned(cache):
            return args, kwargs  # text only, or nothing was ever pruned: the model as it is
        if decoder.training and torch.is_grad_enabled():
            raise UnsupportedError(
                "pruning is for inference and this model is in training mode with gradients: call model.eval(), or detach to train"
            )
        scale = getattr(self.config, "floor_scale", None) if getattr(self.config, "attn_temperature_tuning", False) else None
        if scale and past + length >= scale:
            raise UnsupportedError(
                f"the attention of {type(decoder).__name__} is scaled by the number of tokens that it holds, which pruning changes: "
                f"at most {scale - 1} tokens can be pruned"
            )
        flash = "flash" in (self.config._attn_implementation or "")
        check_implementation(self.config._attn_implementation)
        padding = sent.padding if isinstance(sent, ImageSpans) and sent.padding is not None else call.get(MASK)
        real = _real(padding, length) if prefill else None
        if real is not None:
            spans = without_padding(spans, real)
        read = sent.logits_to_keep if isinstance(sent, ImageSpans) else 0
        if prefill:
            chunk = getattr(self._call, "chunk", None)
            if chunk is not None and (past or length >= chunk):
                raise UnsupportedError(
                    f"prefill_chunk_size={chunk} cuts this prompt into pieces, each of which would be pruned without the text that asks: "
                    "generate without it, pruning saves memory as well"
                )
            if flash and has_windows(self.config):
                raise UnsupportedError(
                    "flash attention counts a sliding window in tokens, and pruned tokens leave gaps: load with attn_implementation='sdpa'"
                )
            kv.make_room(cache)  # one that the outer model made for itself
            kv.check_prunable(cache)
            args, kwargs = self._own_cache(decoder, args, kwargs, call, cache)
        told = Prefill(spans, length, past, real, tokens.device, flash, read, self.recurrent, self.sharing)
        state = self.policy.begin(told) if prefill else PrefillState(told)
        return args, {**kwargs, **take_deepstack(call, state), STATE_KEY: state}

    def _own_cache(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: Mapping[str, Any], cache: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A decoder with sliding windows would make a cache that forgets: it is given one that keeps all, as its masks know the window."""
        wanted = call.get("use_cache") if call.get("use_cache") is not None else getattr(self.config, "use_cache", False)
        name = cache_argument(decoder)
        if cache is not None or not wanted or name is None or name in dict(zip(argument_names(decoder), args, strict=False)):
            return args, kwargs
        if not has_windows(self.config):
            return args, kwargs
        made = DynamicCache(config=self.config)  # with states, where some layers have no attention
        kv.make_room(made)
        kv.check_prunable(made)
        return args, {**kwargs, name: made}

    def _after_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = kwargs.get(STATE_KEY)
        if not isinstance(state, PrefillState):
            return
        name = type(decoder).__name__
        if state.layers_entered != len(self.layers):
            raise UnsupportedError(
                f"{name} does not hand keyword arguments on to its layers, so nothing was pruned; see docs/new_family.md"
            )
        if state.token_index is not None and (held := getattr(output, cache_argument(decoder) or "", None)) is not None:
            kv.check_prunable(held)  # one of its own kind, which it made for itself
        if state.token_index is not None and any(cache is not state.cache for cache in caches_in(output)):
            raise UnsupportedError(
                f"{name} keeps its cache from its layers, so nothing says which tokens each of them holds: call it with use_cache=False"
            )


def attachment_of(model: nn.Module) -> Attachment | None:
    """What is attached to a model's decoder, if anything."""
    for layer in find_decoder(model).layers:  # type: ignore[union-attr]
        for name in ("forward", "_old_forward"):
            own = layer.__dict__.get(name)
            if isinstance(own, LayerForward):
                return own.attachment
    return None


def _real(mask: Any, length: int) -> Tensor | None:
    """Which of the new tokens are real, by whatever mask there is; a 4-D one hides padding from itself.

    Returns:
        [B, length] bool on the CPU, False at padding; None without padding.
    """
    if isinstance(mask, Mapping):  # by type of layer
        mask = next((one for one in mask.values() if isinstance(one, Tensor)), None)
    if not isinstance(mask, Tensor) or mask.is_meta:  # without values
        return None
    if mask.ndim == 4:
        own = mask[:, 0, -length:, -length:].diagonal(dim1=-2, dim2=-1)
        real = (own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2).cpu()
    else:
        real = mask[:, -length:].cpu().bool()
    return None if bool(real.all()) else real
