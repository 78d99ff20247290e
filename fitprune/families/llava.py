"""LLaVA-1.5: CLIP patches of one square picture, a two-layer projector, a Llama decoder.

Checkpoints come in transformers' layout (`llava-hf/llava-1.5-7b-hf`) and in the original one (`liuhaotian/llava-v1.5-7b`).
Where transformers' own processor differs from the original, the original is followed: the picture is padded to a square
with the mean colour (the processor crops the edges away) unless the checkpoint was trained on cropped ones.

    fitprune eval --model-path llava-hf/llava-1.5-7b-hf --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..checkpoints.original import Original
from .clip import ASPECTS, as_read, check_supported, clip_processor, image_settings, pad_to_square, selection, squared
from .encoding import encode, token_ids
from .protocols import Images, View

__all__ = ["RULES", "claims", "configure", "encode", "image_processor", "images", "model_class", "processor", "token_ids"]

RULES: Sequence[tuple[str, str]] = ()


def model_class() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an original config.json is of LLaVA-1.5: one tower looks at one square image, whose tokens stay a flat row."""
    tiled = str(config.get("image_aspect_ratio")).startswith("anyres")
    merged = str(config.get("mm_patch_merge_type") or "flat") != "flat"
    return not (config.get("is_multipath_encoder") or tiled or merged)


def configure(original: Original) -> Any:
    from transformers import LlavaConfig

    check_supported(original.config, image_aspect_ratio=ASPECTS)
    chosen = selection(original)
    patches = (original.clip.image_size // original.clip.patch_size) ** 2
    config = LlavaConfig(
        vision_config=original.clip,
        text_config=original.text,
        image_token_index=original.image_token,
        image_seq_length=patches + (chosen["vision_feature_select_strategy"] == "full"),
        tie_word_embeddings=original.text.tie_word_embeddings,
        **chosen,
    )
    config.image_aspect_ratio = original.config.get("image_aspect_ratio") or "square"
    return config


def image_processor(config: Any, source: str | None) -> Any:
    return clip_processor(config.vision_config.image_size, source)


def squaring_processor(side: int, squared: bool) -> Any:
    """transformers' LLaVA image processor, which pads to a square by itself: for folders that `fitprune convert` writes."""
    try:
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil as Kind
    except ImportError:
        from transformers.models.llava.image_processing_llava import LlavaImageProcessor as Kind
    return Kind(**image_settings(side), do_pad=squared)


def processor(config: Any, image_processor: Any, tokenizer: Any) -> Any:
    from transformers import LlavaProcessor

    vision = config.vision_config
    return LlavaProcessor(
        squaring_processor(vision.image_size, squared(config)),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token
    )


def images(config: Any, image_processor: Any) -> Images:
    """Images that are squared, resized, and always take the same number of tokens."""
    side = config.vision_config.image_size // config.vision_config.patch_size  # in patches
    before = int(config.vision_feature_select_strategy == "full")  # CLIP's class token
    colour = tuple(int(mean * 255) for mean in image_processor.image_mean)

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        whole = pad_to_square(image, colour) if squared(config) else image
        return {"pixel_values": image_processor(whole, return_tensors="pt")["pixel_values"]}

    def views(image: Image.Image) -> list[View]:
        return [View(as_read(prepare(image)["pixel_values"][0], image_processor), side, side, before)]

    return Images(prepare, lambda image: before + side**2, views)
