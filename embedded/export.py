"""A training checkpoint as a folder that transformers and `fitprune.load` read: bf16 safetensors, config, tokenizer and templates.

Weights are written under the key names of the hub's LLaVA checkpoints, which every transformers 5 understands; those of
the newest release's modules are not understood by the first. LLaVA-HR is fitprune's own model, and Qwen3-VL's modules are
called as in its checkpoints, so their names are the modules'. The heads that asked patches what they show stay behind.

    python -m embedded.export /tmp/run /tmp/model
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fitprune.checkpoints.names import in_file
from fitprune.families.chat_template import chat_template
from fitprune.files import write_atomically

from . import chat
from .models import MODELS
from .native import FRAMES
from .network import PATCH
from .tokens import BOS, EOS, IMAGE, PAD, SPECIAL, TEMPLATE, UNKNOWN, tokenizer
from .train import CHECKPOINT, load_checkpoint

PIXELS = {"shortest_edge": 112 * 112, "longest_edge": 336 * 336}  # native resolution: what a picture is resized to lies between


def export(run: Path, destination: Path) -> Path:
    """Writes the model of a run's checkpoint into a folder; returns the folder.

    Raises:
        FitPruneError: no checkpoint, or a damaged one.
    """
    state = load_checkpoint(run / CHECKPOINT)
    weights = {key.removeprefix("llava."): value for key, value in state["model"].items() if key.startswith("llava.")}
    destination.mkdir(parents=True, exist_ok=True)
    settings = MODELS[state["plan"].get("family", "llava")].settings(state["plan"]["size"])
    native = settings.model_type == "qwen3_vl"
    as_they_are = native or settings.model_type == "llava_hr"
    named = {key if as_they_are else in_file(key): value.to(torch.bfloat16).contiguous() for key, value in weights.items()}
    save_file(named, destination / "model.safetensors", metadata={"format": "pt"})
    files = _native() if native else {"processor_config.json": _processor(settings)}
    kind = next(str(content["processor_class"]) for content in files.values())
    settings.architectures = [kind.replace("Processor", "ForConditionalGeneration")]
    settings.dtype = torch.bfloat16
    settings.save_pretrained(destination)
    if native:
        GenerationConfig(eos_token_id=chat.END, pad_token_id=chat.PAD).save_pretrained(destination)
        made, marks = chat.tokenizer(), {"eos": chat.END, "unk": chat.UNKNOWN, "pad": chat.PAD}
        given: dict[str, Any] = {f"{mark}_token": chat.SPECIAL[id] for mark, id in marks.items()}
        template = chat.TEMPLATE
    else:
        GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD).save_pretrained(destination)
        made, marks = tokenizer(), {"bos": BOS, "eos": EOS, "unk": UNKNOWN, "pad": PAD}
        given = {f"{mark}_token": SPECIAL[id] for mark, id in marks.items()} | {"extra_special_tokens": {"image_token": IMAGE}}
        template = chat_template(TEMPLATE)
    PreTrainedTokenizerFast(
        tokenizer_object=made, **given, padding_side="left", processor_class=kind, clean_up_tokenization_spaces=False
    ).save_pretrained(destination)
    for name, content in files.items():
        write_atomically(destination / name, json.dumps(content, indent=2).encode())
    write_atomically(destination / "chat_template.jinja", template.encode())
    return destination


def _processor(settings: Any) -> dict[str, Any]:
    """processor_config.json: CLIP's preparation of pictures, and how the image token is expanded."""
    side = settings.vision_config.image_size
    of_pictures: dict[str, Any] = {"image_processor_type": "LlavaImageProcessor", "do_pad": True}  # which pads to a square by itself
    of_text: dict[str, Any] = {"processor_class": "LlavaProcessor"}
    if settings.model_type == "llava_next":
        of_pictures = {
            "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": settings.image_grid_pinpoints
        }  # fmt: skip
        of_text = {"processor_class": "LlavaNextProcessor"}
    if settings.model_type == "llava_hr":
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


def _native() -> dict[str, dict[str, Any]]:
    """Files of Qwen's processor: pictures, and videos (which were not trained), cut into patches at their own size."""
    shared = {
        "processor_class": "Qwen3VLProcessor", "patch_size": PATCH, "temporal_patch_size": FRAMES, "merge_size": 1, "size": PIXELS,
        "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "resample": 3, "rescale_factor": 1 / 255,
        **{f"do_{step}": True for step in ("resize", "rescale", "normalize", "convert_rgb")},
    }  # fmt: skip
    return {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor", **shared},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor", **shared},
    }


if __name__ == "__main__":
    print(export(*map(Path, sys.argv[1:])))
