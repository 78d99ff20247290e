"""What families with a CLIP tower share: squares, the Pillow-backed processor and its way back to pixels, original fields.

pytest tests/families/test_llava.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.original import Original
from ..errors import FitPruneError
from .protocols import Images, View

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LARGE, BAND = 4096, 256  # pixels: longer sides whose square is not made, and rows of it that are made at a time
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


def config_fields(original: Original) -> dict[str, Any]:
    """What transformers' LLaVA configs share: the parts, and which of CLIP's outputs become visual tokens.

    Raises:
        FitPruneError: for a layer that CLIP does not have.
    """
    clip = original.clip
    layer, layers = original.config.get("mm_vision_select_layer", -2), clip.num_hidden_layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise FitPruneError(f"config.json has mm_vision_select_layer {layer!r}, but CLIP has {layers} layers")
    strategy = STRATEGIES[original.config.get("mm_vision_select_feature") or "patch"]
    return {
        "vision_config": clip,
        "text_config": original.text,
        "image_token_index": original.image_token,
        "image_seq_length": (clip.image_size // clip.patch_size) ** 2 + (strategy == "full"),
        "tie_word_embeddings": original.text.tie_word_embeddings,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
    }


def processor_fields(config: Any) -> dict[str, Any]:
    """What transformers' LLaVA processors share: how they count visual tokens."""
    return {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,  # CLIP's class token
    }


def pillow_processor(model: str, name: str) -> Any:
    """The class of transformers' image processor of that model, in the implementation that uses Pillow whatever else is installed."""
    folder = f"transformers.models.{model}"
    try:
        return getattr(import_module(f"{folder}.image_processing_pil_{model}"), f"{name}Pil")
    except ImportError:  # before the implementations were renamed
        return getattr(import_module(f"{folder}.image_processing_{model}"), name)


def image_settings(side: int) -> dict[str, Any]:
    """Arguments of transformers' image processors for CLIP squares of that many pixels along an edge."""
    size, crop = {"shortest_edge": side}, {"height": side, "width": side}
    return {"size": size, "crop_size": crop, "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}


def has_clip(config: Mapping[str, Any]) -> bool:
    """Whether a config.json in transformers layout has a CLIP tower, which is also what one that says nothing has."""
    return (config.get("vision_config") or {}).get("model_type", "clip_vision_model") == "clip_vision_model"


def squared(config: Any) -> bool:
    """Whether images are padded to a square: as every LLaVA-1.5 was evaluated, unless the original config said no."""
    return getattr(config, "image_aspect_ratio", "pad") == "pad"


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def square_and_shrink(image: Image.Image, colour: tuple[int, ...], side: int, resample: Any) -> Image.Image:
    """`pad_to_square(image, colour).resize((side, side), resample)`, bit by bit, without the square, which is large for a panorama.

    Pillow resizes across and then down, rounding in between, so that rows may be resized across band by band.
    """
    longest = max(image.size)
    left, top = ((longest - edge) // 2 for edge in image.size)
    across = Image.new(image.mode, (side, longest), colour)
    for start in range(0, image.height, BAND):
        rows = min(BAND, image.height - start)
        band = Image.new(image.mode, (longest, rows), colour)
        band.paste(image.crop((0, start, image.width, start + rows)), (left, 0))
        across.paste(band.resize((side, rows), resample), (0, top + start))
    return across.resize((side, side), resample)


def as_read(pixels: Tensor, image_processor: Any) -> Image.Image:
    """A prepared square, pixels [3, height, width], as the image that it was before it was normalised."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    levels = (pixels.float().cpu() * std + mean) / image_processor.rescale_factor
    return Image.fromarray(levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def square_images(image_processor: Any, side: int, before: int = 0, pad: Callable[[Image.Image], Image.Image] | None = None) -> Images:
    """Images that all become one square: pixel_values [1, 3, …], and the same number of tokens.

    Args:
        side: Of the square in patches, each a token.
        before: Tokens ahead of them.
        pad: What is done to an image before the processor has it.
    """

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        if max(image.size) > LARGE and min(image.size) < max(image.size) and (pad or getattr(image_processor, "do_pad", False)):
            colour = tuple(int(255 * mean) for mean in image_processor.image_mean)
            image = square_and_shrink(image, colour, image_processor.size["shortest_edge"], image_processor.resample)
        return {"pixel_values": image_processor(pad(image) if pad else image, return_tensors="pt")["pixel_values"]}

    def views(image: Image.Image) -> list[View]:
        return [View(as_read(prepare(image)["pixel_values"][0], image_processor), side, side, before)]

    return Images(prepare, lambda image: before + side**2, views)
