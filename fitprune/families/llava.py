"""LLaVA-1.5: CLIP patches of one square picture, a two-layer projector, a Llama decoder.

Loads transformers' layout (`llava-hf/llava-1.5-7b-hf`, `-13b-hf`, or a folder of that layout). Two things differ from
transformers' own processor and follow the original instead: the picture is padded to a square with the mean colour
(the processor crops the edges away), and the prompt is LLaVA's `vicuna_v1` with its system sentence, tokenised in
pieces (loaded.py). The original layout (`liuhaotian/…`) is left to a later version.

    fitprune eval --model-path llava-hf/llava-1.5-7b-hf --help
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..errors import FitPruneError, first_line
from .loaded import Loaded

TEMPLATE = "vicuna_v1"  # what the paper's evaluation scripts use for every LLaVA-1.5


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def image_processor(path: str) -> Any:
    """The checkpoint's CLIP image processor, in the implementation that uses Pillow whatever else is installed."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Kind
    except ImportError:  # before the implementations were renamed
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Kind
    return Kind.from_pretrained(path)


def place(kind: Any, path: str, device: str | None, dtype: str | None, attn: str | None, device_map: Any) -> Any:
    """Weights in memory on the right device: checkpoint precision on a GPU, float32 on a CPU unless told otherwise."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = "float32" if device == "cpu" and device_map is None else "auto"
    options = {"attn_implementation": attn} if attn else {}
    try:
        model, report = kind.from_pretrained(
            path, dtype=dtype, device_map=device_map, output_loading_info=True, **options
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise FitPruneError(f"cannot load {path}: {first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise FitPruneError(f"{path} lacks {len(missing)} weights, such as {missing[0]}: download the checkpoint again")
    if device_map is None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise FitPruneError(f"cannot use device {device!r}: {first_line(error)}") from None
    return model.eval()


def load(
    path: str,
    config: Any,
    *,
    name: str,
    template: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    device_map: Any = None,
) -> Loaded:
    """Loads a LLaVA-1.5; see `families.load`."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    try:
        tokenizer, processor = AutoTokenizer.from_pretrained(path), image_processor(path)
    except (OSError, ValueError, ImportError) as error:
        raise FitPruneError(f"cannot load the tokenizer or image processor of {path}: {first_line(error)}") from None
    model = place(LlavaForConditionalGeneration, path, device, dtype, attn, device_map)
    colour = tuple(int(mean * 255) for mean in processor.image_mean)
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        return {"pixel_values": processor(pad_to_square(image, colour), return_tensors="pt")["pixel_values"]}

    return Loaded(name, model, tokenizer, template or TEMPLATE, prepare, lambda image: patches, TEMPLATE)
