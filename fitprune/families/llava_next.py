"""LLaVA-NeXT (1.6): the whole image and its tiles, any resolution, packed to one run of visual tokens.

Checkpoints come in transformers' layout (`llava-hf/llava-v1.6-vicuna-7b-hf`) and in the original one
(`liuhaotian/llava-v1.6-vicuna-7b`, `-mistral-7b`, `-34b`); the language model is Llama, Mistral or Qwen2 alike. Which
tiles an image is cut into, and how many tokens it takes, is in fitprune/images/anyres.py.

One thing differs from transformers: its `image_grid_pinpoints` are (height, width), those of every released config
(width, height). Read the wrong way round, an image that fits several pinpoints equally gets another grid and up to
twice the tokens. So the list is turned, in the image processor and in the model's config, and the config is marked with
`image_grid_order`, which is saved with it: a converted folder gives transformers' users the original's grids as well.
Left out: `anyres_max_9`, other ways of merging tiles, and CLIP's class token, which a grid of tiles has no place for.

    pytest tests/families/test_llava_next.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.original import Original
from ..errors import FitPruneError
from ..images import anyres
from .clip import as_read, check_supported, config_fields, has_clip, image_settings, pillow_processor, processor_fields
from .encoding import encode, template, token_ids, views, write
from .protocols import Images, View

__all__ = [
    "RULES", "claims", "configure", "encode", "image_processor", "images", "knows", "model_class", "processor", "template", "token_ids",
    "views", "write",
]  # fmt: skip

RULES = ((r"model\.image_newline$", "model.image_newline"),)  # not part of the language model, as its name suggests
TURNED = "height_width"  # image_grid_order of a config whose pinpoints are in transformers' order


def model_class() -> Any:
    from transformers import LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration


def knows(config: Mapping[str, Any]) -> bool:
    """Whether the tower is CLIP: others (SigLIP, Pixtral) are asked by their processor."""
    return has_clip(config)


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an original config.json is of LLaVA-NeXT: it merges tiles, or cuts images into them."""
    merged = str(config.get("mm_patch_merge_type")).startswith("spatial")
    tiled = str(config.get("image_aspect_ratio")).startswith("anyres")
    return not config.get("is_multipath_encoder") and (merged or tiled)


def configure(original: Original) -> Any:
    """The transformers config, its pinpoints turned and marked so.

    Raises:
        FitPruneError: for a variant that is not supported; names the field.
    """
    from transformers import LlavaNextConfig

    fields = original.config
    check_supported(
        fields, mm_patch_merge_type=("spatial_unpad",), image_aspect_ratio=("anyres",), mm_vision_select_feature=(None, "patch")
    )
    pinpoints = anyres.turned(anyres.read_pinpoints(fields.get(anyres.FIELD)))
    config = LlavaNextConfig(**config_fields(original), image_grid_pinpoints=pinpoints)
    config.image_grid_order = TURNED
    anyres.of_config(config)  # pinpoints that are no whole tiles are an error now
    return config


def image_processor(config: Any, source: str | None) -> Any:
    kind = pillow_processor("llava_next", "LlavaNextImageProcessor")
    settings = image_settings(config.vision_config.image_size)
    if source is not None:  # the tower's size rules: transformers' default is another
        return kind.from_pretrained(source, size=settings["size"], crop_size=settings["crop_size"])
    return kind(**settings, image_grid_pinpoints=config.image_grid_pinpoints)


def processor(config: Any, image_processor: Any, tokenizer: Any) -> Any:
    from transformers import LlavaNextProcessor

    turn(config, image_processor)
    return LlavaNextProcessor(image_processor, tokenizer, **processor_fields(config))


def turn(config: Any, image_processor: Any) -> None:
    """Puts the pinpoints in transformers' order, in place; the config's go before the processor's.

    They are turned unless the config says that they are, or they are not the same sizes read either way: released lists
    are, so that the order only decides ties, while another list can but have been written for transformers.
    """
    pinpoints = anyres.read_pinpoints(config.image_grid_pinpoints)
    one_way = set(pinpoints) != {(second, first) for first, second in pinpoints}
    done = one_way or getattr(config, "image_grid_order", None) == TURNED
    config.image_grid_pinpoints = [list(pair) for pair in pinpoints] if done else anyres.turned(pinpoints)
    config.image_grid_order = TURNED
    image_processor.image_grid_pinpoints = [list(pair) for pair in config.image_grid_pinpoints]


def images(config: Any, image_processor: Any) -> Images:
    """Images in tiles: pixel_values [1, views, 3, side, side], the whole one first, and image_sizes [1, 2].

    Raises:
        FitPruneError: if the config asks for the class token as well.
    """
    turn(config, image_processor)
    grid = anyres.of_config(config)
    if grid is None:
        strategy = config.vision_feature_select_strategy
        raise FitPruneError(f"vision_feature_select_strategy {strategy!r} makes no map of tiles: only 'default' does")

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        colours = np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # first: a thin image's would be guessed
        made = image_processor(colours, input_data_format="channels_first", return_tensors="pt")
        width, height = grid.reported(image.size)
        return {"pixel_values": made["pixel_values"], "image_sizes": torch.tensor([[height, width]])}

    def views(image: Image.Image) -> list[View]:
        whole, *tiles = (as_read(square, image_processor) for square in prepare(image)["pixel_values"][0])
        across, down = grid.tiles(image.size)
        joined = Image.new("RGB", (across * grid.side, down * grid.side))
        for index, tile in enumerate(tiles):
            joined.paste(tile, (index % across * grid.side, index // across * grid.side))
        rows, columns = grid.kept(grid.reported(image.size))
        left, top = ((count * grid.patches - kept) // 2 * grid.patch for count, kept in ((across, columns), (down, rows)))
        unpadded = joined.crop((left, top, left + columns * grid.patch, top + rows * grid.patch))
        return [View(whole, grid.patches, grid.patches), View(unpadded, rows, columns, newlines=True)]

    return Images(prepare, lambda image: grid.tokens(grid.reported(image.size)), views)
