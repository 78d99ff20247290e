"""What FitPrune relies on in transformers: found by what it is, once, on the model at hand, before anything runs.

transformers renames. Its cache argument was `past_key_values` until 5.23 and is `cache` since 5.24; a string of ours that
names the old one would find nothing, narrow nothing, refuse nothing, and say nothing. So nothing elsewhere asks for such a
name: a cache is an argument that is annotated, and a value that is an instance, of `Cache`; a registry of attention functions is an
`AttentionInterface`; and whether a layer can be cut inside is tried out on it (block.py), not read from the name of its class.

`TABLE` lists what is relied on, and what for. `check` looks for all of it when pruning attaches, and refuses with one line
that names what is missing, the version found and the versions on which the whole suite ran (`RAN`). What no check beforehand can
see is checked while it happens: see cache.py (a pruned cache used without its notes) and attach.py.

Left out: what single families and commands import from transformers; they say so themselves when it is gone.

    python -m fitprune.decoder.upstream        (prints the table)
"""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NoReturn

import torch
import transformers
from torch import nn

from ..cost.parts import attention_registry, cache_argument, module_globals, parameters, sharing_layers
from ..errors import UnsupportedError

RAN = ("5.0.0", "5.17.0", "5.23.0", "5.24.0")  # transformers, oldest first; pyproject.toml and README say the same

# Names of arguments, where there is nothing but the name to tell them by; `TABLE` has them checked.
STATE_KEY = "fitprune"  # ours: under it a forward's state travels, from the model down to its attention
MASK, POSITIONS, ROTARY = "attention_mask", "position_ids", "position_embeddings"  # of layers; narrowed by state.py
DEEPSTACK = (  # of decoders that add image features between their layers: where (bool, per token), and what
    ("visual_pos_masks", "deepstack_visual_embeds"),  # a list: after the first layers
    ("vision_mask", "deepstack_features"),  # by layer: before it
)
PREFILL = "_prefill"  # of models that generate: reads the prompt, in pieces if its configuration says so

log = logging.getLogger(__name__)


def refuse(missing: str, purpose: str) -> NoReturn:
    """Raises UnsupportedError for something that a model or this version of transformers lacks."""
    raise UnsupportedError(
        f"{missing}: {purpose}. transformers {transformers.__version__} is installed, FitPrune runs with {', '.join(RAN)}: "
        "install one of these, or see docs/new_family.md for what a model must look like"
    )


try:
    from transformers import cache_utils
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
    from transformers.modeling_outputs import BaseModelOutputWithPast
except ImportError as error:
    refuse(str(error).partition(" (")[0], "caches and attention functions are told by these classes")


def say_if_newer(version: str = transformers.__version__) -> None:
    """Logs one line, once, if this transformers came out after the newest that the suite ran on."""
    if version_numbers(version) > version_numbers(RAN[-1]) and version not in _said:
        _said.add(version)
        log.warning(
            "transformers %s is newer than %s, the newest that FitPrune was run on: what it relies on was found, "
            "the answers were not compared",
            version, RAN[-1],
        )  # fmt: skip


_said: set[str] = set()


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 5.24.0.dev0 → (5, 24, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


# ---- wrappers -------------------------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrappers, whose layers hold the adapters; any other model as it is.

    Raises:
        UnsupportedError: for adapters that lengthen the prompt, after which no position is where the inputs say.
    """
    caller = caller_of(model)
    return model if caller is None else caller.model  # type: ignore[return-value]


def caller_of(model: nn.Module) -> nn.Module | None:
    """What, in the innermost of PEFT's wrappers, calls the transformers model (0.18 does so past its hooks); None without a wrapper.

    Raises:
        UnsupportedError: as `unwrapped`.
    """
    caller: Any = None
    inner: Any = model
    while (tuner := getattr(inner, "_modules", {}).get("base_model")) is not None and hasattr(inner, "peft_config"):
        if getattr(getattr(inner, "active_peft_config", None), "is_prompt_learning", False):
            raise UnsupportedError(
                f"{type(inner).__name__} has an adapter that puts tokens of its own before the prompt: only adapters inside layers (LoRA "
                "and the like) can be pruned"
            )
        caller, inner = tuner, tuner.model
    return caller


# ---- caches ---------------------------------------------------------------------------------------------------------


def pass_cache(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The keyword argument with which a module's forward is given a cache."""
    return {cache_argument(module) or "cache": cache}


def caches_in(values: Mapping[str, Any] | Iterable[Any] | None) -> list[Cache]:
    """The caches among a call's arguments or in a model's output, whatever their names are."""
    items: Iterable[Any] = values.values() if isinstance(values, Mapping) else (values or ())
    return [value for value in items if isinstance(value, Cache)]


def cache_in(values: Mapping[str, Any] | Iterable[Any] | None) -> Cache | None:
    """The cache among a call's arguments or in a model's output; None if there is none."""
    return next(iter(caches_in(values)), None)


def output_with_cache(hidden: Any, cache: Cache) -> Any:
    """A decoder's output: hidden states [B, n, E] and a cache, in the field that is annotated with it."""
    field = next(one.name for one in fields(BaseModelOutputWithPast) if re.search(r"Cache\b", str(one.type)))
    return BaseModelOutputWithPast(last_hidden_state=hidden, **{field: cache})


def has_keys(kind: type) -> bool:
    """Whether cache layers of that class hold keys and values, an entry per token; those of linear attention hold a state, those of
    decoder layers that read the keys of others nothing."""
    nothing = getattr(cache_utils, "DummyLayer", None)  # newer than 5.0
    return kind is not nothing and (not hasattr(kind, "update_recurrent_state") or issubclass(kind, DynamicLayer))


@lru_cache(maxsize=1)
def _cache_layers_as_known() -> bool:
    """Whether `DynamicCache` grows layer by layer, its layers have the methods that cache.py extends (and is called by), and layers
    that do not serve can be told from those that do."""
    cache, states = DynamicCache(), torch.zeros(2, 1, 3, 1)
    cache.update(states, states, 0)
    (layer,) = cache.layers
    extended = ("update", "reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop")
    return (
        isinstance(layer, DynamicLayer)
        and not layer.is_sliding
        and not issubclass(StaticLayer, DynamicLayer)
        and DynamicSlidingWindowLayer.is_sliding
        and all(callable(getattr(DynamicLayer, name, None)) for name in extended)
        and int(layer.get_seq_length()) == int(cache.get_seq_length()) == 3
        and layer.keys.shape == layer.values.shape == states.shape
    )


# ---- attention ------------------------------------------------------------------------------------------------------


def attention_function(module: nn.Module, name: str) -> Callable[..., Any]:
    """The function behind an implementation's name; `eager` is the model's own, and stands beside the module's class."""
    return module_globals(module)["eager_attention_forward"] if name == "eager" else attention_registry(module)[name]


def attention_of(layer: nn.Module) -> nn.Module | None:
    """A layer's self-attention: the part that takes the cache and consults a registry, else the one of that name."""
    for part in layer.children():
        if attention_registry(part) is not None and cache_argument(part) is not None and hasattr(part, "config"):
            return part
    return getattr(layer, "self_attn", None)


def recurrent_layers(layers: Iterable[nn.Module]) -> frozenset[int]:
    """Those of a decoder's layers that have no attention: tokens go through a state there, one after the other."""
    return frozenset(index for index, layer in enumerate(layers) if attention_of(layer) is None)


def forbidden_layers(decoder: nn.Module) -> dict[int, str]:
    """Layers of a decoder where no token can be deleted, and why: nothing ranks there, or later layers read keys of earlier ones."""
    layers: Any = decoder.layers
    found = dict.fromkeys(sorted(recurrent_layers(layers)), "has no attention that could rank tokens")
    if shared := sharing_layers(decoder.config, len(layers)).values():
        found |= dict.fromkeys(range(min(shared), len(layers)), "stands between keys that layers share and those that read them")
    return found


def use_implementation(config: Any, name: str) -> bool:
    """Has a config (a copy of an attention module's own) name a registered implementation; whether it took it."""
    config._attn_implementation_internal = name
    return config._attn_implementation == name


def _is_eager(attention: nn.Module) -> bool:
    config: Any = attention.config
    return config._attn_implementation in (None, "eager")


def _takes_implementation(attention: nn.Module) -> bool:
    config: Any = attention.config
    before = config._attn_implementation
    return use_implementation(copy.copy(config), "fitprune") and config._attn_implementation == before


# ---- arguments ------------------------------------------------------------------------------------------------------


def argument_names(module: nn.Module) -> list[str]:
    """The names of a forward's arguments, in order."""
    return list(parameters(module))[1:]


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a module's forward by name, whether they were given by position or by keyword."""
    if not args:
        return kwargs
    return {**dict(zip(argument_names(module), args, strict=False)), **kwargs}


def _takes(module: nn.Module, *names: str) -> bool:
    """Whether a module's forward has one of these parameters."""
    return any(name in parameters(module) for name in names)


def _hands_on(module: nn.Module) -> bool:
    """Whether a module's forward takes keywords that it does not know."""
    return any(one.kind is one.VAR_KEYWORD for one in parameters(module).values())


def encoded_features(call: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` made of images and videos before the prefill, by kind ("image", "video"); empty if the call brings nothing.

    It comes as a mapping with these entries, whose `pooler_output` is what goes to the visual tokens' places.
    """
    for value in call.values():
        if isinstance(value, Mapping) and ("image" in value or "video" in value):
            return {kind: value[kind] for kind in ("image", "video") if value.get(kind) is not None}
    return {}


FEATURES = {"image": "get_image_features", "video": "get_video_features"}  # methods of a model that make what goes to those places


def has_windows(config: Any) -> bool:
    """Whether a decoder's own cache would have layers that keep only a window of the tokens."""
    return any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=config).layers)


def forward_name(module: nn.Module) -> str:
    """Where an instance's forward may be replaced: accelerate's hooks stay around it, and call it by another name."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


def place_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module runs (accelerate's hooks may keep its weights elsewhere), and in which type: that of its vectors."""
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]
    devices = [getattr(one, "execution_device", None) for hook in hooks for one in getattr(hook, "hooks", [hook])]
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    types = Counter(weight.dtype for weight in weights if weight.ndim == 1) or Counter(weight.dtype for weight in weights)
    return torch.device(next((one for one in devices if one is not None), weights[0].device)), types.most_common(1)[0][0]


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reliance:
    """One thing that pruning relies on.

    of: Whose it is: the decoder's, each layer's, or each layer's attention's; or transformers' own.
    what: What it is, for a message that it is not there.
    purpose: What it is for.
    holds: Whether it is there.
    """

    of: Literal["transformers", "decoder", "layer", "attention"]
    what: str
    purpose: str
    holds: Callable[[nn.Module], bool]


TABLE = (
    Reliance(
        "transformers", "one DynamicLayer per layer in a DynamicCache, which grows by `update` and can be reordered and cropped",
        "each layer's note of which tokens it holds lives there", lambda _: _cache_layers_as_known(),
    ),
    Reliance(
        "decoder", "an argument for a Cache", "a cache from an earlier turn is continued",
        lambda decoder: cache_argument(decoder) is not None,
    ),
    Reliance(
        "decoder", "the arguments inputs_embeds and attention_mask", "the prompt's length and its padding are read there",
        lambda decoder: _takes(decoder, "inputs_embeds") and _takes(decoder, MASK),
    ),
    Reliance("decoder", "keyword arguments for its layers", "the state of pruning travels there", _hands_on),
    Reliance(
        "layer", "an argument for a Cache", "the tokens that a layer holds are noted there",
        lambda layer: cache_argument(layer) is not None,
    ),
    Reliance(
        "layer", f"the argument {MASK}", "it is narrowed to the tokens that are left", lambda layer: _takes(layer, MASK)
    ),
    Reliance(
        "layer", f"the argument {ROTARY} or {POSITIONS}", "survivors keep their positions",
        lambda layer: _takes(layer, ROTARY, POSITIONS),
    ),
    Reliance("layer", "keyword arguments for its attention", "the state of pruning travels there", _hands_on),
    Reliance(
        "attention", "transformers' registry of attention functions, and a config", "scores see it by a function of ours",
        lambda attention: attention_registry(attention) is not None and hasattr(attention, "config"),
    ),
    Reliance(
        "attention", "a config that names the implementation", "ours is put in by its name", _takes_implementation
    ),
    Reliance(
        "attention", "an eager_attention_forward beside its class", "it is what the implementation 'eager' means",
        lambda attention: "eager_attention_forward" in module_globals(attention) or not _is_eager(attention),
    ),
    Reliance("attention", "keyword arguments for its function", "the state of pruning travels there", _hands_on),
)  # fmt: skip


def check(decoder: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Looks for everything in `TABLE` in a decoder and its layers, before anything runs.

    Raises:
        UnsupportedError: for the first thing that is not there, with the version found and the versions known to work.
    """
    attentions = [attention for attention in map(attention_of, layers) if attention is not None]
    subjects = {"transformers": [decoder], "decoder": [decoder], "layer": layers, "attention": attentions}
    for one in TABLE:
        for subject in {type(each): each for each in subjects[one.of]}.values():  # one of each class
            if not one.holds(subject):
                whose = "transformers" if one.of == "transformers" else type(subject).__name__
                refuse(f"{whose} lacks {one.what}", one.purpose)
    say_if_newer()


if __name__ == "__main__":
    for line in TABLE:
        print(f"{line.of:13} {line.what}\n{'':13} → {line.purpose}")
