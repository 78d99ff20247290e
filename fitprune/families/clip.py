"""What families with a CLIP tower share: squares, the Pillow-backed processor and its way back to pixels, original fields.

pytest tests/families/test_llava.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.original import Original
from ..errors import FitPruneError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ASPECTS = (None, "square", "pad")  # image_aspect_ratio of one image that is cropped, cropped, squared
STRATEGIES = {"patch": "default", "cls_patch": "full"}  # mm_vision_select_feature → vision_feature_select_strategy


def check_supported(config: Mapping[str, Any], **more: tuple[Any, ...]) -> None:
    """Refuses what transformers' LLaVA models cannot do and no released checkpoint of the three families has.

    Args:
        more: Further fields of an original config (or the same again) and the values of them that are supported.
    Raises:
        FitPruneError: naming the field.
    """
    fields = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_use_im_start_end": (None, False),
        "mm_resampler_type": (None,),
        "mm_vision_select_feature": (None, *STRATEGIES),
        **more,
    }
    for field, supported in fields.items():
        if (value := config.get(field)) not in supported:
            wanted = " or ".join(str(choice) for choice in supported if choice is not None) or "none"
            raise FitPruneError(f"config.json has {field} {value!r}, which is not supported (only {wanted})")


def selection(original: Original) -> dict[str, Any]:
    """Which of CLIP's outputs become visual tokens: transformers' fields for an original config.

    Raises:
        FitPruneError: for a layer that CLIP does not have.
    """
    layer, layers = original.config.get("mm_vision_select_layer", -2), original.clip.num_hidden_layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise FitPruneError(f"config.json has mm_vision_select_layer {layer!r}, but CLIP has {layers} layers")
    strategy = STRATEGIES[original.config.get("mm_vision_select_feature") or "patch"]
    return {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}


def clip_processor(side: int | None, source: str | None) -> Any:
    """CLIP's image processor, in the implementation that uses Pillow whatever else is installed.

    Args:
        side: Pixels along an edge, where no source says it.
        source: Folder or hub name with a preprocessor_config.json; None to use CLIP's own mean and deviation.
    """
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Kind
    except ImportError:  # before the implementations were renamed
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Kind
    if source is not None:
        return Kind.from_pretrained(source)
    return Kind(**image_settings(side))


def image_settings(side: int | None) -> dict[str, Any]:
    """Arguments of transformers' image processors for CLIP pictures of that many pixels along an edge."""
    return {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def squared(config: Any) -> bool:
    """Whether pictures are padded to a square: as every LLaVA-1.5 was evaluated, unless the original config said no."""
    return getattr(config, "image_aspect_ratio", "pad") == "pad"


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def as_read(pixels: Tensor, image_processor: Any) -> Image.Image:
    """A prepared square as the picture that it was before it was normalised.

    Args:
        pixels: [3, height, width] as the image processor made them.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    levels = (pixels.float().cpu() * std + mean) / image_processor.rescale_factor
    return Image.fromarray(levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
