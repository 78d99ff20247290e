"""Adapters for a model of transformers, as PEFT saves them: a folder that names its base and holds what was trained beside it.

The base is loaded like any checkpoint, and the adapter merged into it, so that a merged model is all that the rest sees. Plain LoRA is
merged here, in float32 and checked to the last matrix, whether PEFT is installed or not; other kinds (DoRA, modules that were trained
whole, PiSSA, …) by PEFT. Names of weights are compared without the levels that transformers has moved about since version 4, since an
adapter whose names do not fit is one that does nothing, without a word. Left out: adapters that put tokens before the prompt, adapters of
adapters, and a vocabulary that grew in training. Adapters of the original layout are checkpoints/original.py's.

    fitprune eval --model-path ./my-adapter --model-base llava-hf/llava-1.5-7b-hf --help
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.lora import ADAPTERS, CONFIG, Adapter, OtherAdapterError
from ..checkpoints.original import check_whole_precision, is_original
from ..checkpoints.source import Source
from ..checkpoints.weights import Weights
from ..embedded import MODELS
from ..errors import FitPruneError, explained


def base_of(source: Source, named: str | None) -> str | None:
    """The base of an adapter; None for what is a checkpoint of its own, or has the original layout.

    Args:
        named: The base that the caller names, which goes before the one that the adapter was trained on.
    Raises:
        FitPruneError: if there is none, it is not here, or is an adapter itself or quantised.
    """
    if not _is_adapter(source):
        return None
    base = named or source.json(CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise FitPruneError(f"{source} is an adapter, and its {CONFIG} names no base: give it with --model-base")
    if base in MODELS:
        return base
    try:
        again = _is_adapter(place := Source(base))
        if not again:
            place.json("config.json")
    except FitPruneError as error:
        raise FitPruneError(f"{source} is an adapter of {base} ({error}): if that is elsewhere, name the place with --model-base") from None
    if again:
        raise FitPruneError(f"{source} is an adapter of {base}, which is an adapter itself: merge that one with PEFT first")
    check_whole_precision(place)
    return base


def _is_adapter(source: Source) -> bool:
    """Whether a place holds an adapter and no model; one with a config.json is asked only where that costs no download."""
    if source.get("config.json") is None:
        return source.get(CONFIG) is not None
    if source.folder is None or source.get(CONFIG) is None or is_original(source.json("config.json")):
        return False
    return Weights.find(source) is None


def merge(model: Any, tokenizer: Any, source: Source) -> Any:
    """The model with an adapter merged into its weights; the model given is used up.

    Raises:
        FitPruneError: for an adapter that does not fit, is damaged, or needs PEFT where that is not installed.
    """
    if any(weight.is_meta for weight in model.parameters()):
        raise FitPruneError(f"{source} is an adapter, whose base does not fit into the memory of this device_map: merge it with PEFT first")
    _check_vocabulary(tokenizer, source)
    weights = Weights.find(source, ADAPTERS)
    if weights is None:
        raise FitPruneError(f"{source} is incomplete: {CONFIG} is there but no {' or '.join(ADAPTERS)}; download it")
    try:
        adapter = Adapter(source.json(CONFIG), weights, source.name)
    except OtherAdapterError as error:
        return _merged_by_peft(model, source, weights, str(error))
    _rename(adapter, model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            changed = adapter(name, weight)
            if changed is not weight:
                weight.copy_(changed)
    adapter.check_used()
    return model


def _rename(adapter: Adapter, model: nn.Module) -> None:
    """Gives an adapter's pairs the names that their weights have in this model; what has none keeps its own."""
    names: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        names.setdefault(settled(name), []).append(name)
    found = {key: names.get(settled(key), []) for key in adapter.pairs}
    adapter.pairs = {found[key][0] if len(found[key]) == 1 else key: pair for key, pair in adapter.pairs.items()}
    adapter.unused = set(adapter.pairs)


def settled(name: str) -> str:
    """A weight's name without the levels that differ between versions of transformers: `model`, `vision_model`, and one above the head."""
    name = re.sub(r"\b(model|vision_model)\.", "", name)
    return name.removeprefix("language_model.") if name.startswith("language_model.lm_head.") else name


def _merged_by_peft(model: nn.Module, source: Source, weights: Weights, why: str) -> Any:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise FitPruneError(f"{why}, which PEFT does on loading where it is installed: pip install 'fitprune[peft]'") from None
    with explained(f"PEFT cannot load the adapter {source}"):
        wrapped = PeftModel.from_pretrained(model, source.place)
    if lost := _lost(get_peft_model_state_dict(wrapped, save_embedding_layers=False), weights):
        raise FitPruneError(f"{source}: {len(lost)} parts of the adapter fit no part of the base, such as {min(lost)}: give its own base")
    if wrapped.active_peft_config.is_prompt_learning:
        raise FitPruneError(f"{source} is an adapter that puts tokens of its own before the prompt, which cannot be pruned")
    with explained(f"PEFT cannot merge the adapter {source}"):
        return wrapped.merge_and_unload().eval()


def _lost(held: dict[str, Tensor], weights: Weights) -> list[str]:
    """Tensors of an adapter's file that are not what the model holds under that name, and those that it holds beside; PEFT only warns."""
    left = {settled(name): value for name, value in held.items()}
    lost = []
    for name, value in weights.tensors():
        got = left.pop(settled(name), None)
        if got is None or not torch.equal(got.cpu().float(), value.float()):
            lost.append(name)
    return lost + list(left)


def _check_vocabulary(tokenizer: Any, source: Source) -> None:
    """Raises FitPruneError if a tokenizer beside the adapter has tokens that the base's has not."""
    if source.get("tokenizer_config.json") is None:
        return
    from transformers import AutoTokenizer

    with explained(f"cannot load the tokenizer of {source}"):
        own = AutoTokenizer.from_pretrained(source.place).get_vocab()
    known = tokenizer.get_vocab()
    if other := [token for token, number in own.items() if known.get(token) != number]:
        raise FitPruneError(
            f"{source} has {len(other)} tokens that its base has not, such as {min(other)!r}: merge it with PEFT into a base that has them"
        )
