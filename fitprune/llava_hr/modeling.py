"""LLaVA-HR as a transformers model: LLaVA's classes with another vision tower.

Modifications against transformers' LlavaModel and LlavaForConditionalGeneration (5.0 to 5.23):

- the vision tower is a `LlavaHrVisionModel`; the parent builds it through AutoModel, where it is registered;
- `get_image_features` takes what the tower returns as it is: no layer is selected and no class token removed;
- weights are saved under their names in memory: the parents' renaming of old checkpoints is switched off.

Everything else, generation included, is the parents'.

    pytest tests/llava_hr/test_llava_hr_modeling.py
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel, LlavaPreTrainedModel

from .configuration import LlavaHrConfig


class LlavaHrModel(LlavaModel):
    """Vision tower, projector and decoder, without a language-model head."""

    config_class = LlavaHrConfig
    _checkpoint_conversion_mapping: ClassVar[dict[str, str]] = {}

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: [images, 3, S, S].
            kwargs: Options of LLaVA's tower, without effect here.
        Returns:
            last_hidden_state [images, N, d] as the tower gives it; pooler_output: projected, [N, H] per image.
        """
        features = self.vision_tower(pixel_values).last_hidden_state
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(self.multi_modal_projector(features)))


class LlavaHrForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA-HR with its language-model head: what checkpoints hold and `generate` runs."""

    config_class = LlavaHrConfig
    _checkpoint_conversion_mapping: ClassVar[dict[str, str]] = {}

    def __init__(self, config: LlavaHrConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # not the parent's, which would build a LlavaModel first
        self.model = LlavaHrModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()
