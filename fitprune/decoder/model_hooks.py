"""The hooks on the outer model: in each of its calls they find the visual tokens and send them on to its decoder.

They travel as a keyword argument, which whatever lies between hands on; towers and projectors are spared it. What a decoder could not
tell is told on the way: the call's own padding, how much of its output anybody reads, how many tokens the model made of each image. Calls
that pruning would answer wrongly are refused here, before anything runs. attach.py has the other half.

    pytest tests/decoder/test_attach.py
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedError
from . import cache as kv
from .refusals import check_positions
from .upstream import FEATURES, MASK, PREFILL, STATE_KEY, bound, cache_in
from .visual_tokens import Located, image_lengths

Locate = Callable[[Mapping[str, Any]], Located]  # the visual tokens of a call, from its arguments


@dataclass
class ImageSpans:
    """What the model's pre-hook sends to its decoder's, and whether it was delivered.

    located: The visual tokens of this call; None where a mask says which they are.
    padding: The call's own 2-D attention mask [B, past + n], which decoders may be given in another form.
    logits_to_keep: How many of the last columns the model will look at; 0 for all.
    """

    located: Located | None
    padding: Tensor | None = None
    logits_to_keep: int = 0
    delivered: bool = False


def hook_model(
    model: nn.Module, decoder: nn.Module, caller: nn.Module | None, locate: Locate | None, here: threading.local, undo: ExitStack
) -> None:
    """Has a model find the visual tokens in each of its calls, and send them on to its decoder.

    Args:
        model: The one that is called, without a wrapper; decoder: the one that it calls in the end.
        caller: A wrapper, which hands on what it gets.
        locate: Finds them in the arguments of a call; None where a mask says which they are.
        here: Of the call on each thread: `located`, its visual tokens; `chunk`, the size in which `generate` cuts its prefill.
        undo: Gets what takes everything back.
    """

    def find(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if (sent := kwargs.get(STATE_KEY)) is not None:
            here.located = sent.located
            sent.padding = _two_dimensional(bound(module, args, kwargs).get(MASK)) if sent.padding is None else sent.padding
            return None
        module = model if module is caller else module  # which hands on what it gets
        call = bound(module, args, kwargs)
        located = None if locate is None else locate(call)
        visual = located is None or bool(located)
        if call.get("labels") is not None and visual:
            raise UnsupportedError(
                "training and losses need every token's logits, which pruning does not compute: call the model without labels"
            )
        keep = call.get("logits_to_keep")
        if visual and isinstance(keep, Tensor):
            raise UnsupportedError("logits_to_keep as a tensor names positions that pruning may have removed: give a number of last tokens")
        if visual:
            check_positions(module, call)
            kv.make_room(cache_in(call))
        read = int(keep or 0) if not isinstance(keep, Tensor) and not _shows_hidden_states(module, call) else 0
        here.located = located
        return args, {**kwargs, STATE_KEY: ImageSpans(located, _two_dimensional(call.get(MASK)), read)}

    def arrived(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        sent = kwargs.get(STATE_KEY)
        here.located = None
        if not isinstance(sent, ImageSpans) or not sent.located:
            return
        if not sent.delivered:
            raise UnsupportedError(
                f"{type(model).__name__} does not hand keyword arguments on to its decoder, so nothing was pruned: "
                "pass visual_mask= to prune()"
            )
        if getattr(output, "loss", None) is not None:
            raise UnsupportedError("this call made a loss, which pruning does not compute from every token: call the model without labels")

    def not_for_it(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name != STATE_KEY}

    base = getattr(model, "base_model", model)
    for part in base.children() if base is not decoder else ():
        if all(module is not decoder for module in part.modules()):  # a vision tower, a projector
            undo.callback(part.register_forward_pre_hook(not_for_it, with_kwargs=True).remove)
    for kind, name in FEATURES.items():
        if base is not decoder and callable(getattr(base, name, None)):
            record_lengths(here, base, kind, name, undo)
    if callable(getattr(model, PREFILL, None)):
        _watch_chunks(here, model, undo)
    for module in {id(m): m for m in (caller, model, base) if m is not None and m is not decoder}.values():
        undo.callback(module.register_forward_pre_hook(find, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(arrived, with_kwargs=True).remove)


def _watch_chunks(here: threading.local, model: nn.Module, undo: ExitStack) -> None:
    """Has `generate` tell in what pieces it reads a prompt: nothing in the call of one says that there are others."""
    original = getattr(model, PREFILL)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        sizes = (getattr(value, "prefill_chunk_size", None) for value in (*args, *kwargs.values()))
        here.chunk = next((size for size in sizes if size is not None), None)
        try:
            return original(*args, **kwargs)
        finally:
            here.chunk = None

    put(model, PREFILL, watched, undo)


def record_lengths(call: threading.local, base: nn.Module, kind: str, name: str, undo: ExitStack) -> None:
    """Has a model note, in `call.located`, how many tokens it makes of each image or video of the call at hand.

    `generate` makes them outside of a call.
    """
    original = getattr(base, name)

    @functools.wraps(original)  # `generate` reads its signature
    def recorded(*args: Any, **kwargs: Any) -> Any:
        located = getattr(call, "located", None)
        call.located = None  # some make a video's features by the method for images
        try:
            features = original(*args, **kwargs)
        finally:
            call.located = located
        if located is not None:
            located.made[kind] = image_lengths(features)
        return features

    put(base, name, recorded, undo)


def put(module: nn.Module, name: str, method: Callable[..., Any], undo: ExitStack) -> None:
    """Puts a method in the place of a module's, until `undo`: then what the instance had of its own is back, or its class's."""
    own = module.__dict__.get(name)
    setattr(module, name, method)
    undo.callback(lambda: setattr(module, name, own) if own is not None else delattr(module, name))


def keep_from_copying(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Has modules refuse to be copied, pickled or replicated: what is put in them acts for them and their device, not for a copy."""

    def refuse(*_: Any) -> Any:
        raise UnsupportedError(
            "a recipe is attached to this model, which a copy of it (copy, pickle, torch.save, DataParallel) would share: leave the `with` "
            "block or call detach(model) first, then attach to the copy; save_pretrained and state_dict work as they are"
        )

    for module in {id(module): module for module in modules}.values():
        for name in ("__getstate__", "_replicate_for_data_parallel"):  # what Python's copy and pickle call, and PyTorch's replicate
            put(module, name, refuse, undo)


def _shows_hidden_states(module: nn.Module, call: Mapping[str, Any]) -> bool:
    """Whether this call returns hidden states or attention beside its logits."""
    config: Any = module.config
    return any(
        call.get(name) or getattr(part, name, False)
        for name in ("output_hidden_states", "output_attentions")
        for part in (config, config.get_text_config())
    )


def _two_dimensional(mask: Any) -> Tensor | None:
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
