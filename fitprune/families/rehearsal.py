"""How many visual tokens a model makes of an image, found out before its weights are read.

In LLaVA and its kin three files have to agree: config.json (the tower's sizes, which of its layers and tokens are taken), the image
processor's (how many pixels) and the processor's (how many tokens the prompt gets). Whoever puts another tower into a checkpoint, or
saves a processor that was never told of it, has files that do not, and hears of it in the first forward, after gigabytes were read. So
the model is made without storage, on PyTorch's meta device, and shown images of a few shapes; the counts are compared.

Left out: models whose counts follow from values, which nothing on that device has (Pixtral): transformers compares in each forward.

    pytest tests/families/test_family_rehearsal.py
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..decoder.upstream import FEATURES
from ..errors import FitPruneError, first_line
from .protocols import Images

SHAPES = ((64, 64), (200, 50), (50, 200))  # width, height: as many tokens each, or tiles in other grids
TOLD_BY = "config.json (vision_config, vision_feature_layer, vision_feature_select_strategy) and the processor's files"


def check_counts(kind: Any, config: Any, images: Images, path: str) -> None:
    """Compares how many visual tokens a model makes of images with how many a prompt is given for them.

    Args:
        kind: Class of the model, or Auto class.
        config: Its config; one that takes no layer of a tower, as LLaVA's kin does, is not asked.
    Raises:
        FitPruneError: if they differ, or the tower cannot take such images at all.
    """
    if not any(hasattr(config, name) for name in ("vision_feature_layer", "vision_feature_layers")):  # the second before 5.24
        return
    try:
        with torch.device("meta"):
            model = (getattr(kind, "_from_config", None) or kind.from_config)(config)
    except Exception as error:  # whatever a config that makes no model raises
        raise FitPruneError(f"{path}: config.json makes no model: {first_line(error)}") from error
    for size in SHAPES:
        image = Image.new("RGB", size)
        given, prepared = images.tokens_for(image), images.prepare(image)
        try:
            made = _made(model, prepared)
        except Exception as error:  # of transformers' code, over these files
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                return  # it asks for a value
            raise FitPruneError(
                f"{path}: its vision tower ({config.vision_config.model_type}) cannot take what its image processor makes "
                f"({first_line(error)}): {TOLD_BY} do not go together"
            ) from error
        if made is not None and made != given:
            raise FitPruneError(
                f"{path}: its vision tower ({config.vision_config.model_type}) makes {made} visual tokens of an image of "
                f"{size[0]} × {size[1]}, a prompt is given {given}: {TOLD_BY} do not go together"
            )


@torch.inference_mode()
def _made(model: Any, inputs: Mapping[str, Tensor]) -> int | None:
    """Visual tokens that a model on the meta device makes of one image; None where it has no method that says so."""
    method = getattr(model.base_model, FEATURES["image"], None)
    if method is None:
        return None
    taken = inspect.signature(method).parameters
    shown = {name: value.to("meta", model.dtype) if "pixel" in name else value for name, value in inputs.items() if name in taken}
    made = method(**shown)
    made = getattr(made, "pooler_output", made)
    return sum(row[..., 0].numel() for row in ([made] if isinstance(made, Tensor) else made))
