"""What a decoder costs: the sum of its layers (layer.py), by either convention (see the package).

A Llama-shaped decoder is described by its sizes, any other by its layers. In JSON the first is an object of seven numbers, as it
has always been, the second lists the kinds of layers that there are and which layer is of which kind.

    python -c "from fitprune.cost import VICUNA_7B as c; print(c.visual_reduction([100] * 5 + [0] * 27, 576))"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from ..errors import FitPruneError
from .layer import LayerCost

if TYPE_CHECKING:
    from torch import nn

SIZES = ("intermediate", "heads", "kv_heads", "head_dim")  # of a Llama-shaped layer, beside `hidden`


def alive_after(deletions: Sequence[int], visual_tokens: int) -> list[int]:
    """Visual tokens alive after each layer, [layer], for deletions per layer, [layer]."""
    return [visual_tokens - gone for gone in accumulate(deletions)]


def deletions_of(alive: Sequence[int], visual_tokens: int) -> list[int]:
    """The other way round: deletions per layer, [layer], that leave so many visual tokens alive after each."""
    return [before - after for before, after in pairwise([visual_tokens, *alive])]


@dataclass(frozen=True)
class CostModel:
    """A decoder: Llama-shaped by its sizes (grouped-query attention and a gated MLP in every layer), or any other layer by layer.

    Attributes:
        each: What each layer costs, [layer], where the sizes do not say it; these are 0 then.
    Raises:
        FitPruneError: when a size is not a positive whole number (`vocab` may be 0: unknown, output layer not counted).
    """

    layers: int
    hidden: int
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocab: int = 0
    each: tuple[LayerCost, ...] = ()

    def __post_init__(self) -> None:
        unused = SIZES if self.each else ()
        for name in ("layers", "hidden", *SIZES, "vocab"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < (name != "vocab" and name not in unused):
                raise FitPruneError(f"cost model: {name} must be a positive whole number, not {value!r}")
        if self.each and (len(self.each) != self.layers or any(getattr(self, name) for name in SIZES)):
            raise FitPruneError(f"cost model: give sizes, or what each of {self.layers} layers costs, not both")

    # Making one.

    @classmethod
    def of_layers(cls, each: Sequence[LayerCost], hidden: int, vocab: int = 0) -> CostModel:
        """A decoder of these layers."""
        return cls(layers=len(each), hidden=hidden, vocab=vocab, each=tuple(each))

    @classmethod
    def from_config(cls, config: Any, kind: type[nn.Module] | None = None) -> CostModel:
        """From a transformers config; that of a multi-modal model stands for its text decoder.

        Of a mixture of experts those count that a token goes through. `kind` is the decoder's class,
        for models whose class transformers does not tell by the config of their text alone (Ernie 4.5, Qwen-Omni).

        Raises:
            FitPruneError: when the config describes no decoder of transformers, or layers whose cost cannot be told; says why.
        """
        from .reading import described

        each, sizes, hidden, vocab = described(config, kind)
        if all(layer == LayerCost.llama(hidden, *sizes) for layer in each):
            return cls(len(each), hidden, *sizes, vocab=vocab)
        return cls.of_layers(each, hidden, vocab)

    @classmethod
    def of(cls, decoder: nn.Module) -> CostModel:
        """Of a decoder that is there; errors as `from_config`."""
        return cls.from_config(decoder.config, kind=type(decoder))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        if not self.each:
            return {name: getattr(self, name) for name in ("layers", "hidden", *SIZES, "vocab")}
        kinds = list(dict.fromkeys(self.each))
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "vocab": self.vocab,
            "kinds": [dataclasses.asdict(kind) for kind in kinds],
            "kind_of": [kinds.index(layer) for layer in self.each],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostModel:
        """The inverse of `to_dict`.

        Raises:
            FitPruneError: for missing or unknown keys and for values that are no sizes.
        """
        try:
            given = dict(data)
            if "each" in given:
                raise KeyError
            if "kinds" not in given:
                return cls(**given)
            kinds = [LayerCost.from_dict(kind) for kind in given.pop("kinds")]
            order = given.pop("kind_of")
            return cls(**given, each=tuple(kinds[range(len(kinds))[at]] for at in order))
        except (TypeError, KeyError, IndexError, ValueError):
            names = ", ".join(("layers", "hidden", *SIZES, "vocab"))
            raise FitPruneError(f"a cost model is an object with {names} (or kinds and kind_of), not {data!r}") from None

    # Layers.

    @cached_property
    def per_layer(self) -> tuple[LayerCost, ...]:
        """What each layer costs, [layer]."""
        return self.each or (LayerCost.llama(self.hidden, self.intermediate, self.heads, self.kv_heads, self.head_dim),) * self.layers

    @cached_property
    def deletable(self) -> tuple[int, ...]:
        """The layers in which tokens can be deleted, ascending."""
        return tuple(number for number, layer in enumerate(self.per_layer) if layer.deletes)

    def deleting_in(self, layers: Sequence[int]) -> CostModel:
        """The same decoder where tokens can be deleted in these layers only."""
        if tuple(layers) == self.deletable:
            return self
        each = [dataclasses.replace(layer, deletes=number in layers) for number, layer in enumerate(self.per_layer)]
        return CostModel.of_layers(each, self.hidden, self.vocab)

    def differences(self, other: CostModel) -> str:
        """In which sizes another decoder differs, as words; empty where each reduction ratio is the same.

        Neither the vocabulary matters nor what is cached, which depends on the version of transformers, nor which layers delete.
        """
        names = ("layers", "hidden", *(() if self.each or other.each else SIZES))
        found = [f"{name} {mine} is {its}" for name in names if (mine := getattr(self, name)) != (its := getattr(other, name))]
        counted = [[(one.entering, one.pair, one.leaving) for one in model.per_layer] for model in (self, other)]
        if not found and counted[0] != counted[1]:
            layer = next(at for at, (mine, its) in enumerate(zip(*counted, strict=True)) if mine != its)
            found = [f"layer {layer} costs {_said(self.per_layer[layer])} and is {_said(other.per_layer[layer])}"]
        return ", ".join(found)

    def attention_macs(self, t: float, layer: int | None = None) -> float:
        """One layer's query, key and value projections, scores and weighted sum, for the t tokens that enter it.

        Args:
            layer: Which one; it may be left out where all layers are alike.
        """
        if self.each:
            return self._layer(layer).attention_macs(t)
        # as `LayerCost.llama`, in an order that keeps the last bit of real numbers, on which a fitted recipe can depend
        return t * self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim + 2 * t * t * self.heads * self.head_dim

    def rest_macs(self, t: float, layer: int | None = None) -> float:
        """One layer's output projection and MLP, for the t tokens that leave it; `layer` as for `attention_macs`."""
        if self.each:
            return self._layer(layer).rest_macs(t)
        return t * self.heads * self.head_dim * self.hidden + 3 * t * self.hidden * self.intermediate

    def _layer(self, layer: int | None) -> LayerCost:
        if layer is None and len(set(self.each)) > 1:
            raise FitPruneError("the layers of this model cost differently: say which layer is meant")
        return self.each[layer or 0]

    def dense_macs(self, t: int, first: int = 0) -> int:
        """Multiply-accumulates of t tokens that go through all layers from `first` on."""
        return sum(int(layer.attention_macs(t) + layer.rest_macs(t)) for layer in self.per_layer[first:])

    def _macs(self, alive: Sequence[float], visual_tokens: float, text_tokens: float) -> list[float]:
        if len(alive) != self.layers:
            raise FitPruneError(f"the model has {self.layers} layers but the schedule has {len(alive)}")
        curve = [visual_tokens, *alive]
        slack = 1e-9 * visual_tokens  # real curves come with rounding noise
        if min(curve) < -slack or any(after > before + slack for before, after in zip(curve, alive, strict=False)):
            raise FitPruneError(f"tokens alive after each layer must fall from at most {visual_tokens} to at least 0, not {list(alive)}")
        return [
            self.attention_macs(before + text_tokens, layer) + self.rest_macs(after + text_tokens, layer)
            for layer, (before, after) in enumerate(zip(curve, alive, strict=False))
        ]

    # The paper's convention.

    def visual_macs(self, alive: Sequence[float], visual_tokens: float) -> list[float]:
        """Multiply-accumulates of the visual tokens alone, [layer] (the paper's cost).

        With D hidden, F intermediate and as many key heads as query heads, t tokens entering a layer and u leaving it
        cost 3tD² + 2t²D + uD² + 3FDu.

        Args:
            alive: Visual tokens alive after each layer, [layer], never rising; may be fractional.
            visual_tokens: How many enter the first layer.
        Raises:
            FitPruneError: when `alive` has another number of layers, rises or goes below zero.
        """
        return self._macs(alive, visual_tokens, 0)

    def visual_reduction_of_alive(self, alive: Sequence[float], visual_tokens: float) -> float:
        """As `visual_reduction`, for a (possibly fractional) curve of tokens alive after each layer."""
        dense = sum(self.visual_macs([visual_tokens] * self.layers, visual_tokens))
        return 1 - sum(self.visual_macs(alive, visual_tokens)) / dense if dense else 0.0

    def visual_reduction(self, deletions: Sequence[int], visual_tokens: int) -> float:
        """The paper's reduction ratio: share of the dense `visual_macs` that these deletions per layer save.

        Returns:
            A fraction in [0, 1); 0 when there are no visual tokens.
        """
        return self.visual_reduction_of_alive(alive_after(deletions, visual_tokens), visual_tokens)

    # The whole prefill.

    def prefill_flops(self, alive: Sequence[float], visual_tokens: float, text_tokens: int) -> list[float]:
        """FLOPs of all tokens of the prompt, visual and other, [layer]; two per multiply-accumulate.

        Args:
            alive: Visual tokens alive after each layer, [layer].
            visual_tokens: How many enter the first layer.
            text_tokens: All tokens that are not visual, before and after the image; they are never deleted.
        """
        return [2 * macs for macs in self._macs(alive, visual_tokens, text_tokens)]

    def speedup(self, alive: Sequence[float], visual_tokens: float, text_tokens: int) -> float:
        """Ideal speed-up of the prefill: dense over pruned FLOPs, with the output layer for the last token."""
        head = 2 * self.hidden * self.vocab
        dense = sum(self.prefill_flops([visual_tokens] * self.layers, visual_tokens, text_tokens)) + head
        pruned = sum(self.prefill_flops(alive, visual_tokens, text_tokens)) + head
        return dense / pruned if pruned else 1.0

    def prefill_reduction(self, alive: Sequence[float], visual_tokens: float, text_tokens: int) -> float:
        """Share of the whole prefill's FLOPs that is saved; less than `visual_reduction`, as text is not pruned."""
        return 1 - 1 / self.speedup(alive, visual_tokens, text_tokens)

    def kv_bytes(self, deletions: Sequence[int], visual_tokens: int, text_tokens: int, bytes_per_value: int = 2) -> list[int]:
        """Bytes of the cache after the prefill, [layer]: layer l holds every token that enters it, or a state that does not grow."""
        entering = [visual_tokens, *alive_after(deletions, visual_tokens)][: self.layers]
        each = zip(self.per_layer, entering, strict=True)
        return [bytes_per_value * (layer.cached * (text_tokens + count) + layer.state) for layer, count in each]


def _said(layer: LayerCost) -> str:
    """A layer's multiply-accumulates in words."""
    return f"{layer.entering} + {layer.leaving} a token, {layer.pair} a pair"


VICUNA_7B = CostModel(
    layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000
)  # the decoder of LLaVA-1.5-7B, LLaVA-NeXT-7B and LLaVA-HR-7B: the one that the published recipes were made for
