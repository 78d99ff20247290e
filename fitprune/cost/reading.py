"""A transformers config → what each of its decoder's layers costs.

A config does not tell: whether an MLP has two matrices or three, which layers have experts, what a head's size is in which layer, is
known to the code of each model and told by different names. So the decoder is built from its config on the meta device (no memory,
some hundredths of a second) and its weights are counted. Every weight of two dimensions or more is multiplied with each token
once, but for those of experts, of which a token meets its share. What is neither a linear map, a convolution, experts nor their router
is not guessed at: the model is refused by name, and so are layers whose tokens are mixed in a way that is not known here.

A built model is not the one that runs, which may be quantised, split between devices, or wrapped by adapters: what it costs is counted
the same.

Linear attention: the delta rule with gates (Qwen3-Next, Qwen3.5, Olmo-Hybrid) is counted as its recurrence, three products of a
head's state [keys, values] per token: what it predicts, what is written, what is read. Kernels that go by chunks multiply more. A short
convolution (LFM2) has only its weights. What is checked against a counted forward is in the tests; per-layer inputs (Gemma 4) count in
the layers, their projection before the first layer does not.

    pytest tests/test_cost_counted.py
"""

from __future__ import annotations

import copy
import functools
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import FitPruneError
from .layer import LayerCost
from .parts import attention_registry, cache_argument, parameters, sharing_layers

Described = tuple[tuple[LayerCost, ...], tuple[int, int, int, int], int, int]  # layers, sizes if it is Llama-shaped, hidden, vocabulary
# Names under which routers, or configs, keep how many experts a token meets.
CHOSEN = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_topk")


def described(config: Any, kind: type[nn.Module] | None = None) -> Described:
    """What each layer of a config's text decoder costs, and the sizes that say the same if it is Llama-shaped.

    Raises:
        FitPruneError: as `CostModel.from_config`.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    try:
        key = text.to_json_string(use_diff=False)
    except (AttributeError, TypeError) as error:
        _refuse(text, f"it is no config of transformers ({error})")
    return _described(_Config(text, config, key, kind))


class _Config:
    """A config that can be looked up: equal to others of the same class and values."""

    def __init__(self, text: Any, whole: Any, key: str, kind: type[nn.Module] | None) -> None:
        self.text, self.whole, self.kind, self.key = text, whole, kind, (type(text), key, kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=64)
def _described(config: _Config) -> Described:
    text = config.text
    decoder = _decoder(text, config.whole, config.kind)
    layers = list(decoder.layers)
    if not layers:
        _refuse(text, "it has no layers")
    first_shared = min(sharing_layers(text, len(layers)).values(), default=len(layers))  # later layers need all of its keys
    each = tuple(_Reader(text, layer, at).cost(deletes=at < first_shared) for at, layer in enumerate(layers))
    heads = _number(text, "num_attention_heads")
    head_dim = each[0].pair // (2 * heads) if heads else 0
    sizes = _number(text, "intermediate_size"), heads, _number(text, "num_key_value_heads") or heads, head_dim
    return each, sizes, _number(text, "hidden_size"), _number(text, "vocab_size")


def _number(owner: Any, name: str) -> int:
    """A whole number of a config or a module; 0 if it has none of that name, or another one for each layer."""
    try:
        found = getattr(owner, name, None)
    except Exception:  # transformers has errors of its own for what differs by layer
        return 0
    return found if isinstance(found, int) else 0


def _refuse(text: Any, why: str) -> NoReturn:
    raise FitPruneError(
        f"what a model of {type(text).__name__} costs is not known: {why}. Give prune() a recipe of your own, or see docs/new_family.md"
    )


def _decoder(text: Any, whole: Any, kind: type[nn.Module] | None) -> Any:
    """The decoder of a config, without memory: of its class, of the text's config, or of the whole model's, whichever can be built."""
    from transformers import AutoModel

    known = functools.partial(AutoModel.from_config, trust_remote_code=False)
    own = getattr(kind, "_from_config", None)
    ways: list[tuple[Any, Any]] = [*([] if own is None else [(own, text)]), (known, text), (known, whole)]
    said = ""
    for build, one in ways:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                model = build(copy.deepcopy(one), attn_implementation="eager")
        except Exception as error:  # whatever a model's own code says of a config that it cannot be built from
            said = said or " ".join(str(error).split())[:200]
            continue
        for part in (model, *model.modules()):
            if type(getattr(part, "config", None)) is type(text) and isinstance(getattr(part, "layers", None), nn.ModuleList):
                return part
    _refuse(text, f"no decoder with layers is built from it ({said})" if said else "no decoder with layers is built from it")


def _stacked(part: nn.Module) -> bool:
    """Whether a part holds the weights of several experts, in three dimensions."""
    return not isinstance(part, nn.Conv1d) and any(weight.ndim == 3 for weight in part.parameters(recurse=False))


def _sets_of_experts(part: nn.Module) -> int:
    """How many sets of experts stand in a part: one may be spread over parts that have one matrix each (Aria in transformers 5.0)."""
    matrices = [sum(weight.ndim == 3 for weight in child.parameters(recurse=False)) for child in part.children() if _stacked(child)]
    return 1 if matrices and max(matrices) == 1 else len(matrices)


class _Reader:
    """One layer of a decoder on the meta device."""

    def __init__(self, text: Any, layer: nn.Module, number: int) -> None:
        self.text, self.layer, self.number, self.hidden = text, layer, number, _number(text, "hidden_size")

    def cost(self, deletes: bool) -> LayerCost:
        """What the layer costs; `deletes`: whether tokens may be deleted here if they can be ranked."""
        mixers = [part for part in self.layer.children() if cache_argument(part) is not None]
        if len(mixers) != 1:
            self._refuse(f"has {len(mixers)} parts that mix tokens")
        (mixer,) = mixers
        if sum(map(_sets_of_experts, self.layer.modules())) > 1:
            self._refuse("has several sets of experts")
        rest = sum(self._weights(part) for part in self.layer.children() if part is not mixer)
        if any(weight.ndim > 1 for weight in self.layer.parameters(recurse=False)):
            self._refuse("has weights of its own")
        return self._linear_attention(mixer, rest) if attention_registry(mixer) is None else self._attention(mixer, rest, deletes)

    def _attention(self, attention: Any, rest: int, deletes: bool) -> LayerCost:
        if any(name.startswith("cross_attention") for name in parameters(attention)):
            self._refuse("attends to something else than the tokens that go through it")
        if list(attention.parameters(recurse=False)):  # sinks, differences of heads
            self._refuse(f"has an attention ({type(attention).__name__}) with weights of its own")
        for part in attention.children():
            if not isinstance(part, nn.Linear) and self._weights(part):
                self._refuse(f"has a {type(part).__name__} in its attention")
        projections = [part for part in attention.children() if isinstance(part, nn.Linear)]
        heads = _number(self.text, "num_attention_heads")
        keys = _number(attention, "qk_head_dim") or _number(attention, "head_dim")
        if not heads or not keys or not projections:
            self._refuse("has heads whose size is not known")
        output: Any = getattr(attention, "o_proj", projections[-1])
        values, odd = divmod(output.in_features, heads)
        if odd or output.out_features != self.hidden:
            self._refuse("has heads whose size is not known")
        kept = heads // (_number(attention, "num_key_value_groups") or 1) * (keys + values)
        if hasattr(attention, "expand_kv"):  # MLA that caches latents; before, what is made of them was cached
            kept = attention.kv_lora_rank + attention.qk_rope_head_dim
        entering = self._weights(attention) - output.weight.numel()
        if getattr(attention, "is_kv_shared_layer", False):  # keys and values are an earlier layer's, whatever is made for its own
            entering, kept = self._weights(attention.q_proj), 0
        return LayerCost(
            entering=entering, pair=heads * (keys + values), leaving=output.weight.numel() + rest, cached=kept, deletes=deletes
        )

    def _linear_attention(self, mixer: Any, rest: int) -> LayerCost:
        convolutions = [part for part in mixer.children() if isinstance(part, nn.Conv1d)]
        state = sum(part.weight.numel() for part in convolutions)  # the last columns, as many as the kernel is wide
        per_token = self._weights(mixer)
        delta = ("num_v_heads", "head_k_dim", "head_v_dim")
        if all(hasattr(mixer, name) for name in delta):
            heads, keys, values = (getattr(mixer, name) for name in delta)
            per_token += 3 * heads * keys * values
            state += heads * keys * values
        elif not convolutions or list(mixer.parameters(recurse=False)):
            self._refuse(f"mixes tokens by a {type(mixer).__name__}")
        return LayerCost(entering=per_token, pair=0, leaving=rest, cached=0, state=state, deletes=False)

    def _weights(self, part: nn.Module) -> int:
        """How many weights a token is multiplied with on its way through a part."""
        if isinstance(part, nn.Linear | nn.Conv1d):
            return part.weight.numel()
        count = 0
        for name, weight in part.named_parameters(recurse=False):
            if weight.squeeze().ndim < 2 or (_stacked(part) and weight.ndim == 2):  # vectors, and biases of experts
                continue
            if weight.ndim == 3:
                count += self._of_experts(weight.numel(), weight.shape[0], part)
            elif name == "weight" and weight.shape[1] == self.hidden and not isinstance(part, nn.Embedding):  # a router
                count += weight.numel()
            else:
                self._refuse(f"has a weight {name} of {type(part).__name__}, and what it does is not known")
        for child in part.children():
            found = self._weights(child)
            experts = isinstance(child, nn.ModuleList) and len(child) > 1
            count += self._of_experts(found, len(child), part) if experts else found  # type: ignore[arg-type]
        return count

    def _of_experts(self, weights: int, experts: int, part: nn.Module) -> int:
        """The share of all experts' weights that a token meets."""
        places = [part, *self.layer.modules(), self.text]
        chosen = next((found for one in places for name in CHOSEN if (found := _number(one, name))), 0)
        if not chosen or weights % experts:
            self._refuse("has experts, and how many of them a token meets is not known")
        return weights // experts * chosen

    def _refuse(self, why: str) -> NoReturn:
        _refuse(self.text, f"layer {self.number} {why}")
