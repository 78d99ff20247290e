"""LLaVA-HR's vision tower: ConvNeXt looks at the whole image, CLIP at a smaller copy, one token per CLIP patch.

Both get the same normalised image x. CLIP's layers run in four equal parts; between two parts an `Adapter` mixes
ConvNeXt's last map into CLIP's tokens, and a `Fusion` after the last part adds the two. What is peculiar:

- the small copy is made here, from x, by bilinear interpolation with aligned corners;
- CLIP's class token is dropped before its first layer norm, all its layers are used, and no norm follows the last;
- position embeddings are resized with antialiasing, which is not what transformers' `interpolate_pos_encoding` does;
- all adapters read ConvNeXt's last map, and the resizing happens in float32 whatever the weights are.

"low" is CLIP's side and "high" ConvNeXt's (the original says fast and slow). The parts of both towers are taken out of
transformers' models, so that their attention functions and speed-ups apply; what the original never uses of them
(class embedding, final norms, classifier) is not held. Source: LLaVA-HR (arXiv 2403.03003).

    pytest tests/llava_hr/test_llava_hr_vision.py
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, ConvNextConfig, ConvNextModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from ..errors import FitPruneError
from .configuration import STEM, LlavaHrVisionConfig

PARTS = 4  # CLIP's layers, cut into equal parts with an adapter between them


def align(features: Tensor, side: int) -> Tensor:
    """A square map [B, C, h, h] brought to [B, C, side, side].

    Coarser maps are interpolated (bilinear, corners aligned, float32), finer ones averaged over whole cells.

    Raises:
        FitPruneError: a finer map whose side is no multiple of `side`.
    """
    here = features.shape[-1]
    if here <= side:
        return features if here == side else _interpolate(features, side)
    if here % side:
        raise FitPruneError(f"a {here}x{here} map cannot be averaged to {side}x{side}: give an image_size that divides")
    return F.avg_pool2d(features, here // side)


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Position embeddings of a square grid [n, d] for a grid of side × side [side², d]: bicubic, antialiased, float32."""
    native = math.isqrt(table.shape[0])
    if native == side:
        return table
    grid = table.float().unflatten(0, (native, native)).permute(2, 0, 1)[None]  # [1, d, native, native]
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return grid[0].flatten(1).T.to(table.dtype)


def _interpolate(features: Tensor, side: int) -> Tensor:
    resized = F.interpolate(features.float(), size=(side, side), mode="bilinear", align_corners=True)
    return resized.to(features.dtype)


def _to_map(tokens: Tensor) -> Tensor:
    """[B, N, C] → [B, C, √N, √N]."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _to_tokens(features: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h·w, C]."""
    return features.flatten(2).transpose(1, 2)


class Adapter(nn.Module):
    """Mixes ConvNeXt's map (`high` channels) into CLIP's tokens (`low` channels), as much as one gate per image allows."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.high_conv = nn.Conv2d(high, high, kernel_size=1)
        self.high_proj = nn.Conv2d(high, low, kernel_size=1)
        self.low_conv = nn.Conv2d(low, low, kernel_size=7, padding=3, groups=low)
        self.low_proj = nn.Conv2d(low, low, kernel_size=1)
        self.gate = nn.Sequential(nn.Linear(2 * low, low // 2), nn.GELU(), nn.Linear(low // 2, 1))

    def forward(self, tokens: Tensor, high: Tensor) -> Tensor:
        """tokens [B, N, low], high [B, high, h, h] → [B, N, low]."""
        low = _to_map(tokens)  # [B, low, √N, √N]
        detail = align(self.high_proj(F.gelu(self.high_conv(high))), low.shape[-1])
        low = low + self.low_proj(F.gelu(self.low_conv(low)))
        gate = torch.tanh(self.gate(torch.cat([low, detail], dim=1).mean(dim=(2, 3))))  # [B, 1]
        return _to_tokens(low + gate[:, :, None, None] * detail)


class Fusion(nn.Module):
    """The last step: both towers' features, each through a linear layer, added; the map is aligned first, unlike in `Adapter`."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low_proj = nn.Linear(low, low)
        self.high_proj = nn.Linear(high, low)

    def forward(self, tokens: Tensor, high: Tensor) -> Tensor:
        """tokens [B, N, low], high [B, high, h, h] → [B, N, low]."""
        return self.low_proj(tokens) + self.high_proj(_to_tokens(align(high, math.isqrt(tokens.shape[1]))))


class LowRes(nn.Module):
    """What LLaVA-HR uses of a CLIP vision tower."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        clip: Any = CLIPVisionModel(config)
        clip = getattr(clip, "vision_model", clip)  # one level deeper in early 5.x
        self.config = config
        self.patch_embedding = clip.embeddings.patch_embedding
        self.position_embedding = clip.embeddings.position_embedding
        self.pre_layrnorm = clip.pre_layrnorm
        self.layers = clip.encoder.layers

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches with their positions: [B, 3, side, side] → [B, N, d], without a class token."""
        patches = self.patch_embedding(pixels)  # [B, d, grid, grid]
        known = torch.arange(1, self.position_embedding.num_embeddings, device=patches.device)  # 0 is the class token's
        return _to_tokens(patches) + resize_positions(self.position_embedding(known), patches.shape[-1])


class HighRes(nn.Module):
    """ConvNeXt up to its last map, without the final norm."""

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        super().__init__()
        sizes = {"depths": config.depths, "hidden_sizes": config.hidden_sizes, "num_stages": len(config.depths)}
        convnext = ConvNextModel(ConvNextConfig(patch_size=STEM, num_channels=config.clip.num_channels, **sizes))
        self.embeddings = convnext.embeddings
        self.stages = convnext.encoder.stages
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.layer_norm_eps  # transformers fixes 1e-6

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, c, S/32, S/32]."""
        features = self.embeddings(pixels)
        for stage in self.stages:
            features = stage(features)
        return features


class LlavaHrVisionModel(PreTrainedModel):
    """Both towers and what joins them."""

    config_class = LlavaHrVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPEncoderLayer", "ConvNextLayer", "Adapter", "Fusion"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        """Raises FitPruneError if CLIP's layers cannot be cut into four parts, or there is no map from ConvNeXt."""
        super().__init__(config)
        if config.clip.num_hidden_layers % PARTS:
            raise FitPruneError(f"clip.num_hidden_layers is {config.clip.num_hidden_layers}: LLaVA-HR needs a multiple of {PARTS}")
        if config.image_size < config.stride:
            raise FitPruneError(f"image_size {config.image_size} is too small: give at least {config.stride} pixels")
        low, high = config.hidden_size, config.hidden_sizes[-1]
        self.low_res = LowRes(config.clip)
        self.high_res = HighRes(config)
        self.adapters = nn.ModuleList(Adapter(low, high) for _ in range(PARTS - 1 if config.adapters else 0))
        self.fusion = Fusion(low, high)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvNextLayer):  # a bare parameter, which transformers leaves to the model's class
            nn.init.constant_(module.layer_scale_parameter, ConvNextConfig().layer_scale_init_value)

    def get_input_embeddings(self) -> nn.Module:
        return self.low_res.patch_embedding

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """
        Args:
            pixel_values: [B, 3, S, S], normalised, S as configured.
            kwargs: transformers' options, without effect.
        Returns:
            last_hidden_state [B, N, d]: the visual tokens, row by row, before the projector.
        Raises:
            FitPruneError: images of another size.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[-2:]) != (side, side):
            raise FitPruneError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, this model takes [images, channels, {side}, {side}]: "
                "use its own image processor"
            )
        pixels = pixel_values.to(self.low_res.patch_embedding.weight.dtype)
        high = self.high_res(pixels)
        tokens = self.low_res.pre_layrnorm(self.low_res.embed(_interpolate(pixels, self.config.low_res_side)))
        if self.low_res.config._attn_implementation != self.config._attn_implementation:  # an outer model's is not handed on in every 5.x
            self.low_res.config._attn_implementation = self.config._attn_implementation
        part = len(self.low_res.layers) // PARTS
        for index, layer in enumerate(self.low_res.layers):
            if self.adapters and index and index % part == 0:
                tokens = self.adapters[index // part - 1](tokens, high)
            tokens = layer(tokens, None)
        return BaseModelOutput(last_hidden_state=self.fusion(tokens, high))
