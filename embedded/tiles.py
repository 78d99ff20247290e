"""The embedded LLaVA-NeXT: the whole picture and its tiles, all seen by the known model's tower.

A plain picture of SIDE pixels is fitted into a grid of two tiles, as the original does with small pictures, and takes 300
visual tokens: 144 of the whole, then 12 rows of 12 patches and a newline. New is the newline vector alone; but the tower
has to learn that tiles cut things, and the language model that a larger canvas (canvas.py) is squashed in the first view, so
that only tiles can be read there. Pictures are prepared by `fitprune.families.llava_next` itself.

    python -c "from embedded.tiles import *; from embedded.scene import draw; print(look([draw('held-out', 0)])['pixels'].shape)"
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from fitprune.families import llava_next
from fitprune.families.protocols import Images
from fitprune.images import anyres

from .batches import Batch
from .canvas import canvas_of, place
from .scene import SIDE, Scene
from .warm import Warm, known_config

PINPOINTS = [(SIDE, 2 * SIDE), (2 * SIDE, SIDE), (2 * SIDE, 2 * SIDE), (3 * SIDE, SIDE), (SIDE, 3 * SIDE)]  # as LLaVA's


def settings(size: str = "small") -> LlavaNextConfig:
    """The known model's configuration, with a grid; `size` is the known model's, whatever is given."""
    known = known_config()
    fields = ("text_config", "vision_config", "image_seq_length", "vision_feature_layer", "vision_feature_select_strategy")
    return LlavaNextConfig(
        **{field: getattr(known, field) for field in fields},
        image_token_index=known.image_token_id,
        image_grid_pinpoints=anyres.turned(PINPOINTS),
        image_grid_order=llava_next.TURNED,
        tie_word_embeddings=False,
    )


@cache
def pictures() -> Images:
    """How pictures are prepared: as `fitprune.load` does it."""
    config = settings()
    return llava_next.images(config, llava_next.image_processor(config, None))


def look(scenes: list[Scene]) -> Batch:
    """The scenes on a canvas, one for all: pixels [B, views, 3, SIDE, SIDE] and image_sizes [B, 2], (height, width)."""
    size = canvas_of(scenes[0])
    made = [pictures().prepare(place(scene, size)) for scene in scenes]
    return {"pixels": torch.cat([one["pixel_values"] for one in made]), "image_sizes": torch.cat([one["image_sizes"] for one in made])}


class Tiled(Warm):
    """LLaVA-NeXT from the known model."""

    new = ("image_newline",)

    def build(self) -> Any:
        return LlavaNextForConditionalGeneration._from_config(settings(), attn_implementation="sdpa")

    def take_tower(self, tower: Any) -> None:
        self.llava.model.vision_tower.load_state_dict(tower.state_dict())
        torch.nn.init.zeros_(self.llava.model.image_newline)

    def see(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The visual tokens [B, N, C], packed by transformers."""
        found = self.llava.model.get_image_features(batch["pixels"], batch["image_sizes"], return_dict=True)
        return (torch.stack(list(getattr(found, "pooler_output", found))),)  # one canvas: equally many tokens
