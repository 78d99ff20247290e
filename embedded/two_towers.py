"""The embedded LLaVA-HR: the known model's CLIP at 168 pixels, and a small ConvNeXt that sees the picture at 384.

It starts as the known model less CLIP's class token: the adapters between CLIP's layers and the high-resolution half of
the fusion start at zero, the other half at identity. ConvNeXt starts at random; its blocks count fully from the start
(layer scale 1), since it has to learn in minutes. Both maps are 12 × 12.

    python -c "from embedded.two_towers import *; print(settings().image_seq_length)"
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from fitprune.llava_hr import LlavaHrConfig, LlavaHrForConditionalGeneration, LlavaHrVisionConfig

from .batches import Batch, pixels
from .network import PATCH
from .render import render
from .scene import SIDE, Scene
from .warm import Warm, known_config

DEPTHS, WIDTHS = (1, 1, 2, 1), (24, 48, 96, 192)  # of ConvNeXt's stages
HIGH = SIDE // PATCH * 32  # pixels along the edge of what the model is given: one cell of ConvNeXt's map per CLIP patch
GATE = 0.5  # bias of an adapter's gate at the start: what is mixed in starts at zero, the gate must not as well


def settings(size: str = "small") -> LlavaHrConfig:
    """The known model's configuration, with the second tower; `size` is the known model's, whatever is given."""
    known = known_config()
    vision = LlavaHrVisionConfig(clip=known.vision_config.to_dict(), depths=DEPTHS, hidden_sizes=WIDTHS, image_size=HIGH)
    return LlavaHrConfig(
        vision_config=vision, text_config=known.text_config, image_token_index=known.image_token_id, tie_word_embeddings=False
    )


def look(scenes: list[Scene]) -> Batch:
    """The scenes' pictures, resized as `fitprune.load` does it: pixels [B, 3, HIGH, HIGH]."""
    size = (HIGH, HIGH)
    large = [np.asarray(render(scene).resize(size, Image.Resampling.BICUBIC)) for scene in scenes]
    return {"pixels": pixels(np.stack(large))}


class TwoTowers(Warm):
    """LLaVA-HR from the known model."""

    new = ("high_res", "adapters", "fusion")
    known_pace = 0.15

    def build(self) -> Any:
        return LlavaHrForConditionalGeneration._from_config(settings(), attn_implementation="sdpa")

    @torch.no_grad()
    def take_tower(self, tower: Any) -> None:
        clip, vision = getattr(tower, "vision_model", tower), self.llava.model.vision_tower  # one level deeper in 5.0
        vision.low_res.patch_embedding.load_state_dict(clip.embeddings.patch_embedding.state_dict())
        vision.low_res.position_embedding.load_state_dict(clip.embeddings.position_embedding.state_dict())
        vision.low_res.pre_layrnorm.load_state_dict(clip.pre_layrnorm.state_dict())
        vision.low_res.layers.load_state_dict(clip.encoder.layers.state_dict())
        for module in vision.high_res.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if isinstance(module, ConvNextLayer):
                nn.init.ones_(module.layer_scale_parameter)
        for adapter in vision.adapters:
            nn.init.zeros_(adapter.high_proj.weight)
            nn.init.zeros_(adapter.low_proj.weight)
            nn.init.constant_(adapter.gate[-1].bias, GATE)
            for conv in (adapter.high_conv, adapter.low_conv):
                nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
        nn.init.eye_(vision.fusion.low_proj.weight)
        nn.init.zeros_(vision.fusion.high_proj.weight)

    def see(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The visual tokens [B, n, C]."""
        return (torch.stack(list(self.llava.model.get_image_features(batch["pixels"]).pooler_output)),)
