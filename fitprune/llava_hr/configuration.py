"""Sizes of LLaVA-HR: two vision towers that look at one square image, a projector, a Llama decoder.

`LlavaHrVisionConfig` holds what the towers are built from; what follows from it (side of the low-resolution image,
number of visual tokens) is a property and never stored. `LlavaHrConfig` is transformers' `LlavaConfig` with that tower.
Left out: the original's `mm_vision_select_layer` and `mm_vision_select_feature`, which its two-tower path never reads.

    python -c "from fitprune.llava_hr import LlavaHrVisionConfig as C; print(C(image_size=1024).num_image_tokens)"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CLIPVisionConfig, LlavaConfig, PretrainedConfig

from ..checkpoints.tower import OPENAI_CLIP

VIT_L_336 = OPENAI_CLIP["openai/clip-vit-large-patch14-336"]
STEM = 4  # side of the patches that ConvNeXt begins with; every later stage halves the map


class LlavaHrVisionConfig(PretrainedConfig):
    """The two towers and how they are joined. Defaults are those of LLaVA-HR-7B at 1024 pixels.

    Args:
        clip: CLIPVisionConfig (or its dict) of the low-resolution tower.
        depths: Blocks in each stage of the high-resolution tower (ConvNeXt).
        hidden_sizes: Channels of each of its stages.
        layer_norm_eps: Of all its layer norms.
        image_size: Side S of the square image that the model is given.
        adapters: Whether ConvNeXt's map is also mixed in between CLIP's layers (false where training froze the towers).
        initializer_range: Spread of newly drawn weights.
    """

    model_type = "llava_hr_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        clip: CLIPVisionConfig | dict[str, Any] | None = None,
        depths: Sequence[int] = (3, 3, 27, 3),
        hidden_sizes: Sequence[int] = (192, 384, 768, 1536),
        layer_norm_eps: float = 1e-6,
        image_size: int = 1024,
        adapters: bool = True,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.clip = CLIPVisionConfig(**(clip or VIT_L_336)) if clip is None or isinstance(clip, dict) else clip
        self.depths = list(depths)
        self.hidden_sizes = list(hidden_sizes)
        self.layer_norm_eps = layer_norm_eps
        self.image_size = image_size
        self.adapters = adapters
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a visual token before the projector: CLIP's."""
        return int(self.clip.hidden_size)

    @property
    def stride(self) -> int:
        """Pixels of the image's side per cell of ConvNeXt's last map."""
        return STEM * 2 ** (len(self.depths) - 1)

    @property
    def low_res_side(self) -> int:
        """Side of the image that CLIP sees: one patch per cell of ConvNeXt's map, but never less than CLIP's own."""
        return max(self.image_size * self.clip.patch_size // self.stride, self.clip.image_size)

    @property
    def num_image_tokens(self) -> int:
        return int(self.low_res_side // self.clip.patch_size) ** 2


class LlavaHrConfig(LlavaConfig):
    """transformers' `LlavaConfig` with a LlavaHrVisionConfig (or its dict); `image_seq_length` follows from that.

    Args:
        image_aspect_ratio: "pad" squares an image with the mean colour; anything else crops its longer side.
    """

    model_type = "llava_hr"

    def __init__(
        self,
        vision_config: LlavaHrVisionConfig | dict[str, Any] | None = None,
        text_config: Any = None,
        image_aspect_ratio: str = "pad",
        **kwargs: Any,
    ) -> None:
        if vision_config is None or isinstance(vision_config, dict):
            vision_config = LlavaHrVisionConfig(**(vision_config or {}))
        self.image_aspect_ratio = image_aspect_ratio
        # The tower returns patch tokens of its last layer and nothing else.
        kwargs |= {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
        kwargs["image_seq_length"] = vision_config.num_image_tokens
        super().__init__(vision_config=vision_config, text_config=text_config, **kwargs)
