"""A model that sees only some of its visual tokens, from the first layer on: the exact oracle of what prunes before the decoder.

Inside the `with` block, a prefill that brings images is looked at as it enters the decoder: a `Selection` (diverse.py) chooses among each
image's embeddings, and the columns of the others are masked, for every token, in every layer, in this forward and in all that continue on
its cache. Nothing is shortened, so positions are the original ones, whatever they are (M-RoPE's reach the decoder ready-made), and every
other token computes what it would if the unselected ones had been taken out of the inputs. It saves no time. Where nothing is masked, the
model is called with its own arguments.

Refused by name, since a masked token would be felt there: layers with a sliding window, which counts tokens; linear attention, whose state
takes them in; attention other than sdpa and eager; caches of a fixed size; prefills in pieces; decoders that are not given embeddings;
what cannot be pruned at all; and a model with a recipe attached. Padding, several images (a budget each), beams, later turns with new
images, and masks that come ready-made in four dimensions are fine.

    pytest tests/studies/test_masked.py
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..decoder.attach import attachment_of, find_decoder
from ..decoder.model_hooks import record_lengths
from ..decoder.refusals import check_images_are_tokens, check_keys_are_not_chosen, check_positions
from ..decoder.upstream import FEATURES, MASK, Cache, bound, cache_in, has_windows, recurrent_layers, unwrapped
from ..decoder.visual_tokens import ByTokenId, Located, groups, positions_of, without_padding
from ..errors import FitPruneError, UnsupportedError
from ..images.lengths import ImageLengths
from .diverse import Selection

Keep = Callable[[int], int]  # how many of an image's visual tokens stay


@dataclass
class Chosen:
    """Of the last prefill that brought images. kept: positions of the visual tokens that are seen, by row and image, ascending."""

    kept: list[list[Tensor]] = field(default_factory=list)


@contextmanager
def masked(model: nn.Module, keep: Keep, select: Selection) -> Iterator[Chosen]:
    """Has a model see only selected visual tokens in every forward and `generate` inside the `with` block.

    Args:
        model: A transformers model with a decoder, as for `prune`.
        keep: How many of an image's tokens stay, by how many it has.
        select: Which ones.
    Raises:
        UnsupportedError: for what cannot be masked exactly (see the module's docstring); FitPruneError if a recipe is attached.
    """
    model = unwrapped(model)
    decoder = find_decoder(model)
    check_maskable(model, decoder)
    masking = _Masking(model.config, keep, select)
    base: Any = getattr(model, "base_model", model)
    with ExitStack() as undo:
        for kind, name in FEATURES.items():
            if base is not decoder and callable(getattr(base, name, None)):
                record_lengths(masking.call, base, kind, name, undo)
        undo.callback(model.register_forward_pre_hook(masking.before_model, with_kwargs=True).remove)
        undo.callback(model.register_forward_hook(masking.after_model, always_call=True).remove)
        undo.callback(decoder.register_forward_pre_hook(masking.before_decoder, with_kwargs=True).remove)
        undo.callback(decoder.register_forward_hook(masking.after_decoder).remove)
        yield masking.chosen


def check_maskable(model: nn.Module, decoder: nn.Module) -> None:
    """Raises what `masked` raises."""
    if attachment_of(model) is not None:
        raise FitPruneError("this model has a recipe attached: leave that `with` block, or call detach(model), first")
    layers: list[nn.Module] = list(decoder.layers)  # type: ignore[arg-type]
    config: Any = decoder.config
    check_images_are_tokens(model, decoder)
    check_keys_are_not_chosen(layers)
    name = type(decoder).__name__
    if recurrent_layers(layers):
        raise UnsupportedError(
            f"{name} has layers without attention, whose state takes masked tokens in: tokens cannot be masked before it"
        )
    if has_windows(config):
        raise UnsupportedError(f"{name} has sliding windows, which count masked tokens: tokens cannot be masked before it")
    if (used := config._attn_implementation) not in (None, "eager", "sdpa"):
        raise UnsupportedError(f"tokens cannot be masked exactly for attention {used!r}: load with attn_implementation='sdpa' or 'eager'")
    if getattr(getattr(model, "generation_config", None), "prefill_chunk_size", None) is not None:
        raise UnsupportedError("prefill_chunk_size cuts prompts into pieces, which would be chosen from one by one: generate without it")


class _Masking:
    """The hooks, and what has to be known from one to the next: the call at hand, and which columns of a cache are masked."""

    def __init__(self, config: Any, keep: Keep, select: Selection) -> None:
        self.keep, self.select, self.chosen = keep, select, Chosen()
        self.locate = ByTokenId(config, ImageLengths(config))
        self.call = threading.local()  # .located: the visual tokens of the call on this thread; .hidden: what it masks
        self.hidden: WeakKeyDictionary[Cache, Tensor] = WeakKeyDictionary()  # [B, columns so far] bool

    def before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = bound(module, args, kwargs)
        self.call.located = located = self.locate(call)
        if located:
            check_positions(module, call)

    def after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.call.located = None

    def before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = bound(decoder, args, kwargs)
        located: Located | None = getattr(self.call, "located", None)
        if located is None:
            raise FitPruneError("the decoder was called directly, so nothing says which tokens are visual: call the model")
        embeds: Tensor | None = call.get("inputs_embeds")
        rows, length = (call["input_ids"] if embeds is None else embeds).shape[:2]
        cache = cache_in(call)
        past = 0 if cache is None else int(cache.get_seq_length())
        device = (call["input_ids"] if embeds is None else embeds).device
        new = torch.zeros(rows, length, dtype=torch.bool, device=device)
        if located:
            if embeds is None:
                raise UnsupportedError(f"{type(decoder).__name__} gets no inputs_embeds, so there is nothing to choose by")
            new = self._unselected(located, embeds, call.get(MASK)).to(device)
        before = None if cache is None else self.hidden.get(cache)
        before = new[:, :0] if before is None else before
        hidden = torch.cat([pad(before, (0, past - before.shape[1])), new], dim=1)
        self.call.hidden = hidden if bool(hidden.any()) else None
        if self.call.hidden is None:
            return None
        if cache is not None:
            self.hidden[cache] = hidden
        return (), {**call, MASK: without_columns(call.get(MASK), hidden)}

    def after_decoder(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = getattr(self.call, "hidden", None)
        if hidden is not None and (cache := cache_in(output if isinstance(output, Mapping) else None)) is not None:
            self.hidden[cache] = hidden  # also one that the decoder made for itself

    def _unselected(self, located: Located, embeds: Tensor, mask: Any) -> Tensor:
        """[B, n] bool, True at visual tokens that are not selected; on the CPU."""
        spans, length = located.spans(), embeds.shape[1]
        real = torch.ones(embeds.shape[:2], dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -length:].cpu().bool()
            spans = without_padding(spans, real)
        group, between = groups(spans, length)
        text = (group == 0) & ~between & real
        hidden = torch.zeros_like(text)
        self.chosen.kept = [[] for _ in spans]
        for row, images in enumerate(spans):
            for image in images:
                places = positions_of(image)
                keep = self.keep(len(places))
                if keep < len(places):
                    after = text[row].nonzero().flatten()
                    question = embeds[row, after[after > places[-1]].to(embeds.device)]
                    kept = places[self.select(embeds[row, places.to(embeds.device)], question, keep).cpu()]
                    hidden[row, places] = True
                    hidden[row, kept] = False
                    places = kept
                self.chosen.kept[row].append(places)
        return hidden


def without_columns(mask: Any, hidden: Tensor) -> Any:
    """An attention mask, of any form that decoders are given, in which no token sees the hidden ones.

    Args:
        mask: None, [B, K] (0 at padding), [B or 1, 1 or H, n, K] (bool, or what is added to logits), or such by kind of layer.
        hidden: [B, K] bool, for all keys: those of the cache, then the new ones.
    Raises:
        UnsupportedError: for any other form, and for masks of another length, which caches of a fixed size have.
    """
    if mask is None:
        return (~hidden).long()
    if isinstance(mask, Mapping):
        return {kind: without_columns(one, hidden) for kind, one in mask.items()}
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] != hidden.shape[1]:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(f"tokens cannot be masked in an attention mask of this form ({shape} for {hidden.shape[1]} tokens)")
    hidden = hidden.to(mask.device)
    nothing = torch.finfo(mask.dtype).min if mask.ndim == 4 and mask.is_floating_point() else 0
    return mask.masked_fill(hidden if mask.ndim == 2 else hidden[:, None, None], nothing)
