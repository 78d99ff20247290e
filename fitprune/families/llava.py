"""LLaVA-1.5: CLIP patches of one square picture, a two-layer projector, a Llama decoder.

Checkpoints come in transformers' layout (`llava-hf/llava-1.5-7b-hf`) and in the original one (`liuhaotian/llava-v1.5-7b`).
Where transformers' own processor differs from the original, the original is followed: the picture is padded to a square
with the mean colour (the processor crops the edges away) unless the checkpoint was trained on cropped ones.

What other families share with it is here too: squaring, the Pillow-backed CLIP processor and its way back to pixels, and
the checks of an original config's projector and feature selection.

    fitprune eval --model-path llava-hf/llava-1.5-7b-hf --help
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import FitPruneError
from .family import Original, Pictures, View

RULES: Sequence[tuple[str, str]] = ()
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ASPECTS = (None, "square", "pad")  # image_aspect_ratio of one picture that is cropped, cropped, squared
STRATEGIES = {"patch": "default", "cls_patch": "full"}  # mm_vision_select_feature → vision_feature_select_strategy


def model_class() -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration


def claims(config: Mapping[str, Any]) -> bool:
    tiled = str(config.get("image_aspect_ratio")).startswith("anyres")
    merged = str(config.get("mm_patch_merge_type") or "flat") != "flat"
    return not (config.get("is_multipath_encoder") or tiled or merged)


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


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


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


def squared(config: Any) -> bool:
    """Whether pictures are padded to a square: as every LLaVA-1.5 was evaluated, unless the original config said no."""
    return getattr(config, "image_aspect_ratio", "pad") == "pad"


def as_read(pixels: Tensor, image_processor: Any) -> Image.Image:
    """A prepared square as the picture that it was before it was normalised.

    Args:
        pixels: [3, height, width] as the image processor made them.
    """
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
    )
    levels = (pixels.float().cpu() * std + mean) / image_processor.rescale_factor
    return Image.fromarray(levels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def pictures(config: Any, image_processor: Any) -> Pictures:
    """Pictures that are squared, resized, and always take the same number of tokens."""
    side = config.vision_config.image_size // config.vision_config.patch_size  # in patches
    before = int(config.vision_feature_select_strategy == "full")  # CLIP's class token
    colour = tuple(int(mean * 255) for mean in image_processor.image_mean)

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        whole = pad_to_square(image, colour) if squared(config) else image
        return {"pixel_values": image_processor(whole, return_tensors="pt")["pixel_values"]}

    def views(image: Image.Image) -> list[View]:
        return [View(as_read(prepare(image)["pixel_values"][0], image_processor), side, side, before)]

    return Pictures(prepare, lambda image: before + side**2, views)
