"""A training checkpoint as a folder that transformers and `fitprune.load` read: bf16 safetensors, config, tokenizer and templates.

Weights are written under the key names of the hub's LLaVA checkpoints, which every transformers 5 understands; those of
the newest release's modules are not understood by the first. LLaVA-HR is fitprune's own model, so its names are its
modules'. The heads that asked patches what they show stay behind.

    python -m embedded.export /tmp/run /tmp/model
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fitprune.families.chat_template import chat_template
from fitprune.files import write_atomically

from .models import MODELS
from .network import PATCH
from .scene import SIDE
from .tokens import BOS, EOS, IMAGE, PAD, SPECIAL, TEMPLATE, UNKNOWN, tokenizer
from .train import CHECKPOINT, load_checkpoint

HUB_NAMES = {
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.image_newline": "image_newline",
}  # what modules are called in transformers 5.0 (first line) to 5.23, and in the hub's checkpoints; the first that fits


def export(run: Path, destination: Path) -> Path:
    """Writes the model of a run's checkpoint into a folder; returns the folder.

    Raises:
        FitPruneError: no checkpoint, or a damaged one.
    """
    state = load_checkpoint(run / CHECKPOINT)
    weights = {key.removeprefix("llava."): value for key, value in state["model"].items() if key.startswith("llava.")}
    destination.mkdir(parents=True, exist_ok=True)
    settings = MODELS[state["plan"].get("family", "llava")].settings(state["plan"]["size"])
    names = {"": ""} if settings.model_type == "llava_hr" else HUB_NAMES
    save_file(_named(weights, names), destination / "model.safetensors", metadata={"format": "pt"})
    processor = _processor(settings)
    kind = str(processor["processor_class"])
    settings.architectures = [kind.replace("Processor", "ForConditionalGeneration")]
    settings.dtype = torch.bfloat16
    settings.save_pretrained(destination)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(destination)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS], unk_token=SPECIAL[UNKNOWN],
        pad_token=SPECIAL[PAD], padding_side="left", extra_special_tokens={"image_token": IMAGE},
        processor_class=kind, clean_up_tokenization_spaces=False,
    ).save_pretrained(destination)  # fmt: skip
    write_atomically(destination / "processor_config.json", json.dumps(processor, indent=2).encode())
    write_atomically(destination / "chat_template.jinja", chat_template(TEMPLATE).encode())
    return destination


def _named(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """In bf16, under the names of checkpoints; every weight must have one."""
    named = {}
    for key, value in weights.items():
        here, there = next((pair for pair in names.items() if key.startswith(pair[0])), (None, ""))
        if here is None:
            raise ValueError(f"no hub name for {key}: HUB_NAMES does not fit this version of transformers")
        named[there + key.removeprefix(here)] = value.to(torch.bfloat16).contiguous()
    return named


def _processor(settings: Any) -> dict[str, Any]:
    """processor_config.json: CLIP's preparation of pictures, and how the image token is expanded."""
    side = SIDE
    of_pictures: dict[str, Any] = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}  # which pads to a square by itself
    of_text: dict[str, Any] = {"processor_class": "LlavaProcessor"}
    if settings.model_type == "llava_next":
        of_pictures = {
            "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": settings.image_grid_pinpoints
        }  # fmt: skip
        of_text = {"processor_class": "LlavaNextProcessor"}
    if settings.model_type == "llava_hr":
        side = settings.vision_config.image_size
        of_pictures = {"image_processor_type": "LlavaHrImageProcessor", "do_pad": True}
        of_text = {"processor_class": "LlavaHrProcessor", "image_seq_length": settings.image_seq_length}
    else:
        of_text |= {
            "image_token": IMAGE, "num_additional_image_tokens": 1, "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
        }  # fmt: skip
    of_pictures |= {
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    return {"image_processor": of_pictures, **of_text}


if __name__ == "__main__":
    print(export(*map(Path, sys.argv[1:])))
