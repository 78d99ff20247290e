"""LLaVA-1.5: CLIP patches of one square image, a two-layer projector, a Llama decoder.

Checkpoints come in transformers' layout (`llava-hf/llava-1.5-7b-hf`) and in the original one (`liuhaotian/llava-v1.5-7b`).
Where transformers' own processor differs from the original, the original is followed: the image is padded to a square
with the mean colour (the processor crops the edges away) unless the checkpoint was trained on cropped ones.

    fitprune eval --model-path llava-hf/llava-1.5-7b-hf --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.original import Original
from ..checkpoints.source import Source
from .clip import (
    ASPECTS,
    check_supported,
    config_fields,
    has_clip,
    image_settings,
    pad_to_square,
    pillow_processor,
    processor_fields,
    square_images,
    squared,
)
from .encoding import encode, template, token_ids, views, write
from .parts import image_processor_name, load_image_processor
from .protocols import Images

__all__ = [
    "RULES", "claims", "configure", "encode", "image_processor", "images", "knows", "model_class", "processor", "template", "token_ids",
    "views", "write",
]  # fmt: skip

RULES: Sequence[tuple[str, str]] = ()


def model_class() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration


def knows(config: Mapping[str, Any]) -> bool:
    """Whether the tower is CLIP: others (SigLIP, Pixtral) are asked by their processor."""
    return has_clip(config)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an original config.json is of LLaVA-1.5: one tower looks at one square image, whose tokens stay a flat row."""
    tiled = str(config.get("image_aspect_ratio")).startswith("anyres")
    merged = str(config.get("mm_patch_merge_type") or "flat") != "flat"
    return not (config.get("is_multipath_encoder") or tiled or merged)


def configure(original: Original) -> Any:
    from transformers import LlavaConfig

    check_supported(original.config, image_aspect_ratio=ASPECTS)
    config = LlavaConfig(**config_fields(original))
    config.image_aspect_ratio = original.config.get("image_aspect_ratio") or "square"
    return config


def image_processor(config: Any, source: str | None) -> Any:
    if source is not None and (name := image_processor_name(Source(source))) and not name.startswith(("CLIP", "Llava")):
        return load_image_processor(Source(source))  # of another class, with settings of its own
    kind = pillow_processor("clip", "CLIPImageProcessor")
    return kind(**image_settings(config.vision_config.image_size)) if source is None else kind.from_pretrained(source)


def processor(config: Any, image_processor: Any, tokenizer: Any) -> Any:
    from transformers import LlavaProcessor

    kind = pillow_processor("llava", "LlavaImageProcessor")  # which pads to a square by itself
    squaring = kind(**image_settings(config.vision_config.image_size), do_pad=squared(config))
    return LlavaProcessor(squaring, tokenizer, **processor_fields(config))


def images(config: Any, image_processor: Any) -> Images:
    """Images that are squared, resized, and always take the same number of tokens."""
    side = config.vision_config.image_size // config.vision_config.patch_size  # in patches
    before = int(config.vision_feature_select_strategy == "full")  # CLIP's class token
    colour = tuple(int(mean * 255) for mean in image_processor.image_mean)
    return square_images(image_processor, side, before, (lambda image: pad_to_square(image, colour)) if squared(config) else None)
