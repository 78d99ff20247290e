"""LLaVA-HR: CLIP and a ConvNeXt look at one large square image, then as LLaVA-1.5.

transformers has no such model, so it is in fitprune/llava_hr/; this module says what is peculiar to its checkpoints: names, sizes, images.
An image is padded to a square with the mean colour and resized once; the smaller copy for CLIP is made inside the model. Prompts are those
of LLaVA-1.5 (`vicuna_v1`). Left out: checkpoints of the first training stage, which hold a projector and no towers.

    pytest tests/families/test_llava_hr_family.py
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..checkpoints.original import Original
from ..errors import FitPruneError
from .clip import ASPECTS, check_supported, image_settings, square_images, squared
from .encoding import encode, template, token_ids, views, write
from .protocols import Images

__all__ = [
    "RULES", "claims", "configure", "encode", "image_processor", "images", "knows", "model_class", "processor", "template", "token_ids",
    "views", "write",
]  # fmt: skip

_TOWER = r"model\.vision_tower\."
_CLIP = _TOWER + r"fast_vision_tower\.vision_tower\.vision_model\."
_CONVNEXT = _TOWER + r"slow_vision_tower\.vision_tower\."
_BLOCK = _CONVNEXT + r"stages\.(\d+)\.blocks\.(\d+)\."
_NEW_BLOCK = r"model.vision_tower.high_res.stages.\1.layers.\2."

RULES = (
    # CLIP, less what the two-tower forward never uses
    (_CLIP + r"(embeddings\.(class_embedding|position_ids)|post_layernorm\.)", ""),
    (_CLIP + r"(embeddings\.|encoder\.)?", "model.vision_tower.low_res."),
    # ConvNeXt, from timm's names to transformers', without its classifier
    (_CONVNEXT + r"head\.", ""),
    (_CONVNEXT + r"stem\.0\.", "model.vision_tower.high_res.embeddings.patch_embeddings."),
    (_CONVNEXT + r"stem\.1\.", "model.vision_tower.high_res.embeddings.layernorm."),
    (_CONVNEXT + r"stages\.(\d+)\.downsample\.", r"model.vision_tower.high_res.stages.\1.downsampling_layer."),
    (_BLOCK + r"conv_dw\.", _NEW_BLOCK + "dwconv."),
    (_BLOCK + r"norm\.", _NEW_BLOCK + "layernorm."),
    (_BLOCK + r"mlp\.fc", _NEW_BLOCK + "pwconv"),
    (_BLOCK + r"weight$", _NEW_BLOCK + "layer_scale_parameter"),
    # what joins them
    (_TOWER + r"align_stages_latent\.(\d+)\.slow_", r"model.vision_tower.adapters.\1.high_"),
    (_TOWER + r"align_stages_latent\.(\d+)\.fast_", r"model.vision_tower.adapters.\1.low_"),
    (_TOWER + r"align_stages_latent\.(\d+)\.gate\.", r"model.vision_tower.adapters.\1.gate."),
    (_TOWER + r"align_stages\.0\.slow_", "model.vision_tower.fusion.high_"),
    (_TOWER + r"align_stages\.0\.fast_", "model.vision_tower.fusion.low_"),
)


def model_class() -> Any:
    from ..llava_hr import LlavaHrForConditionalGeneration

    return LlavaHrForConditionalGeneration


def knows(config: Mapping[str, Any]) -> bool:
    return True


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an original config.json is of LLaVA-HR: it has two towers."""
    return bool(config.get("is_multipath_encoder")) and "vision_tower_slow" in config


def configure(original: Original) -> Any:
    """The transformers config; ConvNeXt's depths and widths come from the weights, so that any variant fits.

    Raises:
        FitPruneError: for a variant that is not supported; names the field.
    """
    from ..llava_hr import LlavaHrConfig, LlavaHrVisionConfig

    fields = original.config
    check_supported(fields, image_aspect_ratio=ASPECTS, mm_patch_merge_type=(None, "flat"))
    if "convnext" not in str(fields["vision_tower_slow"]):
        raise FitPruneError(f"config.json has vision_tower_slow {fields['vision_tower_slow']!r}: only a ConvNeXt is supported")
    side = fields.get("input_image_size")
    if not isinstance(side, int):
        raise FitPruneError(f"input_image_size is {side!r} in config.json: expected the side of the image in pixels")
    width = original.clip.hidden_size
    if fields.get("mm_hidden_size", width) != width:
        raise FitPruneError(f"mm_hidden_size {fields['mm_hidden_size']} is not supported: CLIP's tokens are {width} wide")
    depths, widths = _convnext_sizes(original.shapes)
    vision = LlavaHrVisionConfig(
        clip=original.clip,
        depths=depths,
        hidden_sizes=widths,
        layer_norm_eps=1e-5 if "xxlarge" in str(fields["vision_tower_slow"]) else 1e-6,
        image_size=side,
        adapters=not fields.get("freeze_vision", False),
    )
    return LlavaHrConfig(
        vision_config=vision,
        text_config=original.text,
        image_token_index=original.image_token,
        image_aspect_ratio=fields.get("image_aspect_ratio") or "square",
    )


def _convnext_sizes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Blocks and channels of every stage."""
    widths: dict[int, list[int]] = {}  # of each block
    for name, shape in shapes.items():
        if found := re.match(_BLOCK + r"conv_dw\.weight$", name):
            widths.setdefault(int(found[1]), []).append(shape[0])
    if not widths:
        raise FitPruneError(
            "the checkpoint holds no weights of its high-resolution tower (vision_tower_slow): "
            "use one that was trained to the end, such as llava-hr-7b-sft-1024"
        )
    stages = [widths[stage] for stage in sorted(widths)]
    return [len(stage) for stage in stages], [stage[0] for stage in stages]


def image_processor(config: Any, source: str | None) -> Any:
    """Squares an image by itself, resizes and normalises it."""
    from ..llava_hr import LlavaHrImageProcessor

    if source is not None:
        return LlavaHrImageProcessor.from_pretrained(source)
    return LlavaHrImageProcessor(**image_settings(config.vision_config.image_size), do_pad=squared(config))


def processor(config: Any, image_processor: Any, tokenizer: Any) -> Any:
    """What `fitprune convert` saves, for users of transformers alone."""
    from ..llava_hr import LlavaHrProcessor

    return LlavaHrProcessor(image_processor, tokenizer, image_seq_length=config.image_seq_length)


def images(config: Any, image_processor: Any) -> Images:
    """One square image of a fixed size, and so a fixed number of tokens."""
    return square_images(image_processor, math.isqrt(config.image_seq_length))
