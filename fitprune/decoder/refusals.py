"""Models and calls that pruning refuses by name, as they would be answered wrongly or have nothing to prune.

What has to be there is upstream.py's; this is what must not be.

    pytest tests/decoder/test_vlm_rules.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..cost.parts import parameters
from ..errors import UnsupportedError
from .upstream import POSITIONS


def check_positions(module: nn.Module, call: Mapping[str, Any]) -> None:
    """Refuses a call whose images would stand at positions of text: models with M-RoPE tell by these ids where images are, and say nothing.

    Raises:
        UnsupportedError: if neither they nor positions are given.
    """
    name = "mm_token_type_ids"
    if call.get(POSITIONS) is not None or not hasattr(getattr(module, "base_model", module), "get_rope_index"):
        return
    if not any(key.endswith("grid_thw") and value is not None for key, value in call.items()):
        return
    if call.get("input_ids") is None:
        raise UnsupportedError(
            f"this call brings images without input_ids, by which {type(module).__name__} places them: pass input_ids, or position_ids"
        )
    if name in parameters(module) and call.get(name) is None:
        raise UnsupportedError(
            f"this call brings images without {name}, by which {type(module).__name__} places them: pass what the processor makes "
            "(return_mm_token_type_ids=True), or position_ids"
        )


def check_images_are_tokens(model: nn.Module, decoder: nn.Module) -> None:
    """Refuses a model whose decoder reads images otherwise than as tokens of its prompt: there is nothing to delete there.

    Raises:
        UnsupportedError: for cross-attention to images, and for encoder-decoders.
    """
    config: Any = model.config
    name = type(model).__name__
    if any(name.startswith("cross_attention") for name in parameters(decoder)):
        raise UnsupportedError(f"{name} reads images by cross-attention, not as tokens of its prompt: there is nothing to prune")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{name} is an encoder-decoder, whose decoder carries no visual tokens: there is nothing to prune")


def check_keys_are_not_chosen(layers: Iterable[nn.Module]) -> None:
    """Refuses layers that themselves choose, by places in their cache, which keys a query sees: pruning moves those places.

    Raises:
        UnsupportedError: for indexed attention (DeepSeek sparse attention and its kin).
    """
    for layer in layers:
        for part in layer.modules():
            if "indexer" in type(part).__name__.lower() or any("topk_indices" in name for name in parameters(part)):
                raise UnsupportedError(
                    f"{type(layer).__name__} chooses by an index which keys each token sees, by their places in its cache, which pruning "
                    "moves: such layers are not supported"
                )
