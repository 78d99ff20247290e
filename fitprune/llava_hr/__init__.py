"""LLaVA-HR for transformers, which has no such model: config, vision tower, model and processor.

Importing this package registers them, so that transformers' Auto classes load a converted LLaVA-HR checkpoint. Only the
model is here; how it is found, asked and pruned is as for any other family (families/llava_hr.py).

    python -c "import fitprune.llava_hr; from transformers import AutoConfig; print(AutoConfig.for_model('llava_hr'))"
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # at the top only with torchvision

from .configuration import LlavaHrConfig, LlavaHrVisionConfig
from .modeling import LlavaHrForConditionalGeneration, LlavaHrModel
from .processing import LlavaHrImageProcessor, LlavaHrProcessor
from .vision import LlavaHrVisionModel

for _kind in (LlavaHrVisionConfig, LlavaHrConfig):
    AutoConfig.register(_kind.model_type, _kind, exist_ok=True)
AutoModel.register(LlavaHrVisionConfig, LlavaHrVisionModel, exist_ok=True)
AutoModel.register(LlavaHrConfig, LlavaHrModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaHrConfig, LlavaHrForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(LlavaHrConfig, slow_image_processor_class=LlavaHrImageProcessor, exist_ok=True)
AutoProcessor.register(LlavaHrConfig, LlavaHrProcessor, exist_ok=True)

__all__ = [
    "LlavaHrConfig",
    "LlavaHrForConditionalGeneration",
    "LlavaHrImageProcessor",
    "LlavaHrModel",
    "LlavaHrProcessor",
    "LlavaHrVisionConfig",
    "LlavaHrVisionModel",
]
