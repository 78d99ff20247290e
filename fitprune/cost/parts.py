"""What a part of a decoder layer is, told by its forward alone: whether it gets the cache, and whether transformers' registry of
attention functions is asked there.

Names of classes, of arguments and of modules change between models and versions; these two do not. Linear attention lives in the same
files as attention, gets the cache too, and never asks the registry.

    pytest tests/decoder/test_upstream.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

_CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")  # of forwards without annotations


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of the forward of a module's class, `self` first."""
    return inspect.signature(type(module).forward).parameters


def cache_argument(module: nn.Module) -> str | None:
    """The name of the argument that brings a module's forward its cache: the one that is annotated with `Cache`."""
    known = parameters(module)
    annotated = [name for name, one in known.items() if re.search(r"Cache\b", str(one.annotation))]
    return next((name for name in (*annotated, *_CACHE_NAMES) if name in known), None)


def sharing_layers(text: Any, layers: int) -> dict[int, int]:
    """Layers that have no keys of their own, by a decoder's config, and the layer whose keys each of them reads (small Gemma 4)."""
    first = layers - (getattr(text, "num_kv_shared_layers", None) or 0)
    kinds = getattr(text, "layer_types", None) or [""] * layers
    return {layer: max(one for one in range(first) if kinds[one] == kinds[layer]) for layer in range(first, layers)}


def module_globals(module: nn.Module) -> dict[str, Any]:
    """The names around the forward of a module's class."""
    return getattr(inspect.unwrap(type(module).forward), "__globals__", {})


def attention_registry(module: nn.Module) -> Any:
    """The registry that a module's forward, or one that it is derived from, asks (models may have their own); None if it asks none."""
    for kind in type(module).__mro__:
        forward = inspect.unwrap(vars(kind).get("forward", _none))
        around = getattr(forward, "__globals__", {})
        for name in getattr(getattr(forward, "__code__", None), "co_names", ()):
            if isinstance(around.get(name), transformers.AttentionInterface):
                return around[name]
    return None


def _none() -> None:
    """Stands for the forward that a class does not define."""
