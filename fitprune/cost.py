"""What a prefill costs, layer by layer: multiply-accumulates, FLOPs and cache bytes.

There are two conventions, and a number means nothing without its name:

- `visual_*` is the paper's. Only visual tokens are counted, in multiply-accumulates, as if the image were the whole
  prompt. A *reduction ratio* is always `visual_reduction`: the budget that recipes are asked for and report.
- `prefill_*` is what a machine does: every token of the prompt, in FLOPs (two per multiply-accumulate). From it come
  the ideal speed-up, to be compared with a stop-watch, and its reduction, which is smaller than the visual one.

Deleting follows attention, so a token that is deleted in a layer still pays for that layer's projections and attention
and stays in its cache, but not for the output projection, the MLP or any later layer. Attention is counted as the full
square, which is what the paper does; a causal kernel may do half of it. Norms, softmax and rotary embedding are left
out (well under 1%). Integers in, exact integers out; no torch.

    python -c "from fitprune.cost import VICUNA_7B; print(sum(VICUNA_7B.visual_macs([576] * 32, 576)))"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from .errors import FitPruneError


def alive_after(deletions: Sequence[int], visual_tokens: int) -> list[int]:
    """Visual tokens alive after each layer, [layer], for deletions per layer, [layer]."""
    return [visual_tokens - gone for gone in accumulate(deletions)]


@dataclass(frozen=True)
class CostModel:
    """The sizes of a Llama-shaped decoder: grouped-query attention and a gated MLP (three matrices) in every layer.

    Raises:
        FitPruneError: when a size is not a positive whole number (`vocab` may be 0: unknown, output layer not counted).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 0

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if not isinstance(value, int) or isinstance(value, bool) or value < (name != "vocab"):
                raise FitPruneError(f"cost model: {name} must be a positive whole number, not {value!r}")

    @classmethod
    def from_config(cls, config: Any) -> CostModel:
        """From a transformers config; that of a multi-modal model stands for its text decoder.

        Of a mixture of experts those count that a token goes through.

        Raises:
            FitPruneError: when the config does not describe a decoder of this shape, or layers of unlike cost.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        name = type(text).__name__
        if "linear_attention" in (getattr(text, "layer_types", None) or ()):
            raise FitPruneError(f"{name} has layers of linear attention, whose cost is not known here: give prune() a recipe of your own")
        if getattr(text, "kv_lora_rank", None):
            raise FitPruneError(f"{name} has latent attention (MLA), whose cost is not known here: give prune() a recipe of your own")
        try:
            return cls(
                layers=text.num_hidden_layers,
                hidden=text.hidden_size,
                intermediate=_active_intermediate(text),
                heads=text.num_attention_heads,
                kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                vocab=getattr(text, "vocab_size", None) or 0,
            )
        except FitPruneError:
            raise
        except Exception as error:  # transformers has errors of its own for sizes that differ by layer
            said = " ".join(str(error).split())
            raise FitPruneError(f"{name} is not a Llama-shaped decoder config ({said}): see docs/new_family.md") from None

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, int]) -> CostModel:
        """The inverse of `to_dict`.

        Raises:
            FitPruneError: for missing or unknown keys and for values that are no sizes.
        """
        try:
            return cls(**data)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise FitPruneError(f"a cost model is an object with {names}, not {data!r}") from None

    def attention_macs(self, t: float) -> float:
        """One layer's query, key and value projections, scores and weighted sum, for the t tokens that enter it."""
        return t * self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim + 2 * t * t * self.heads * self.head_dim

    def rest_macs(self, t: float) -> float:
        """One layer's output projection and MLP, for the t tokens that leave it."""
        return t * self.heads * self.head_dim * self.hidden + 3 * t * self.hidden * self.intermediate

    def _macs(self, alive: Sequence[float], visual_tokens: float, text_tokens: float) -> list[float]:
        if len(alive) != self.layers:
            raise FitPruneError(f"the model has {self.layers} layers but the schedule has {len(alive)}")
        curve = [visual_tokens, *alive]
        slack = 1e-9 * visual_tokens  # real curves come with rounding noise
        if min(curve) < -slack or any(after > before + slack for before, after in zip(curve, alive, strict=False)):
            raise FitPruneError(f"tokens alive after each layer must fall from at most {visual_tokens} to at least 0, not {list(alive)}")
        return [
            self.attention_macs(before + text_tokens) + self.rest_macs(after + text_tokens)
            for before, after in zip(curve, alive, strict=False)
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
        """Bytes of the key-value cache after the prefill, [layer]: layer l holds every token that enters layer l."""
        entering = [visual_tokens, *alive_after(deletions, visual_tokens)][: self.layers]
        return [2 * self.kv_heads * self.head_dim * bytes_per_value * (text_tokens + count) for count in entering]


VICUNA_7B = CostModel(
    layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000
)  # the decoder of LLaVA-1.5-7B, LLaVA-NeXT-7B and LLaVA-HR-7B: the one that the published recipes were made for


def _active_intermediate(text: Any) -> int:
    """The width of a layer's MLP; of a mixture of experts that of those which a token goes through."""
    each, chosen = getattr(text, "moe_intermediate_size", None), getattr(text, "num_experts_per_tok", None)
    if not each or not chosen:
        return int(text.intermediate_size)
    if getattr(text, "mlp_only_layers", None) or getattr(text, "decoder_sparse_step", 1) != 1 or getattr(text, "first_k_dense_replace", 0):
        raise FitPruneError(
            f"{type(text).__name__} has layers with experts and layers without, whose cost differs: give prune() a recipe of your own"
        )
    return int(each * chosen + (getattr(text, "shared_expert_intermediate_size", 0) or 0))
