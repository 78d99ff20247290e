"""How many visual tokens the images of a transformers model take, by its config and by what a call says of their sizes.

python -c "import fitprune; from fitprune.images.lengths import *; print(ImageLengths(fitprune.load('embedded').model.config).each)"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import anyres

TILED = {  # model types whose tower sees an image in tiles → the tile that every image has, and whose mark in the prompt tells images apart
    **dict.fromkeys(("internvl", "smolvlm", "idefics3", "aya_vision", "llama4"), "last"),  # the whole, smaller
    **dict.fromkeys(("ovis2", "cohere2_vision"), "first"),
}


class ImageLengths:
    """Of one model; what decoder/visual_tokens.py asks.

    each: What every image takes, None where they differ (tiles) or the config does not say.
    mark: Where images come in tiles, see `TILED`; else None.
    """

    def __init__(self, config: Any) -> None:
        one_size = getattr(config, "image_grid_pinpoints", None) is None  # without tiles every image has the same size
        self.each = _image_size(config) if one_size else None
        self.tiles = anyres.of_config(config)
        self.mark = TILED.get(getattr(config, "model_type", ""))

    def told(self, call: Mapping[str, Any]) -> list[int] | None:
        """The tokens of each image of a call that brings `image_sizes` [images, 2] (height, width); None if it does not."""
        sizes = call.get("image_sizes")
        if self.tiles is None or sizes is None or call.get("pixel_values") is None:
            return None
        return [self.tiles.tokens((width, height)) for height, width in torch.as_tensor(sizes).tolist()]


def _image_size(config: Any) -> int | None:
    """Tokens of every image, from the vision tower's patches, else from what the config states; None if unknown."""
    tower = getattr(config, "vision_config", None)
    if getattr(tower, "model_type", None) == "pixtral":
        return None  # as many as it has patches of its own size
    side, patch = (getattr(tower, name, None) for name in ("image_size", "patch_size"))
    strategy = getattr(config, "vision_feature_select_strategy", "default" if getattr(config, "model_type", None) == "vipllava" else None)
    if isinstance(side, int) and isinstance(patch, int) and strategy is not None:
        classless = getattr(tower, "model_type", "").startswith("siglip")  # its first token is a patch, which "default" drops
        return (side // patch) ** 2 + (strategy == "full") - classless
    resampled = getattr(getattr(config, "perceiver_config", None), "resampler_n_latents", None)
    return getattr(config, "image_seq_length", None) or resampled
