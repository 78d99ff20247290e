"""Any vision-language model of transformers: loaded by `AutoModelForImageTextToText`, asked by its own processor and chat template.

This is the family of every checkpoint in transformers layout that has none of its own here, so a new model needs no code. Prompts are
written by its chat template (chat.py), inputs are made by its processor (parts.py), and what the model's forward takes is handed over:
token types, grids, sizes of images. Where visual tokens lie in a picture is found by asking the processor and the model (token_places.py).

How many tokens an image takes only its processor knows; it is counted once per size, in a prompt with an empty image of that size.

    python -c "import fitprune; print(fitprune.load('embedded-qwen').prompt('What is this?'))"
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.source import Source
from ..checkpoints.tokenize import IMAGE
from ..decoder.visual_tokens import visual_ids
from ..errors import FitPruneError, first_line
from ..images.video import Video
from . import chat
from .parts import VIDEO, WithoutVideos, load_processor
from .protocols import Images, View, Visual

if TYPE_CHECKING:
    from .vlm import VLM

__all__ = ["encode", "image_processor", "images", "knows", "model_class", "template", "token_ids", "views", "write"]

TYPES = "mm_token_type_ids"  # of models whose positions depend on where images are
Asked = tuple[str, Sequence[Visual]]


def knows(config: Mapping[str, Any]) -> bool:
    """Whether transformers has a vision-language model of this model_type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def model_class() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText


def template(config: Any, tokenizer: Any, name: str) -> str:
    """None of ours: the checkpoint brings its own."""
    return ""


def image_processor(config: Any, source: str | None) -> Any:
    """The checkpoint's whole processor; errors as `load_processor`, and for one without a chat template."""
    if source is None:
        raise FitPruneError("a checkpoint of the original layout has no processor: convert it first")
    made = load_processor(Source(source), config)
    chat.check_template(made, source)
    return made


def images(config: Any, image_processor: Any) -> Images:
    """Images as the processor prepares them; all that differs between images are its inputs and their number."""
    visual = visual_ids(config).get("image")
    if visual is None:
        raise FitPruneError(
            f"a {type(config).__name__} names no image token, so nothing says which tokens are visual: see docs/new_family.md"
        )

    def prepare(image: Image.Image) -> dict[str, Tensor]:
        made = run(image_processor, [(chat.render(image_processor, [(IMAGE, None)]), [image])], "left", False)
        return {key: value for key, value in made.items() if key not in ("input_ids", "attention_mask", "token_type_ids", TYPES)}

    @cache
    def counted(size: tuple[int, int]) -> int:
        made = run(image_processor, [(chat.render(image_processor, [(IMAGE, None)]), [Image.new("RGB", size)])], "left", False)
        return int((made["input_ids"] == visual).sum())

    return Images(prepare, lambda image: counted(image.size), lambda image: [])


def write(vlm: VLM, turns: Sequence[tuple[str, str | None]]) -> str:
    """As `VLM.write`."""
    return chat.render(vlm.processor, turns)


def token_ids(vlm: VLM, prompt: str, images: Sequence[Visual]) -> list[int]:
    """As `VLM.token_ids`; of images only the sizes are read."""
    sized = [one if isinstance(one, Video) else Image.new("RGB", one.size) for one in images]
    found: list[int] = encode(vlm, [(prompt, sized)], "left")["input_ids"][0].tolist()
    return found


def encode(vlm: VLM, questions: Sequence[Asked], padding_side: str) -> dict[str, Any]:
    """As `VLM.encode`, on the CPU: what the processor makes and the model's forward takes."""
    taken = arguments(vlm.model)
    made = run(vlm.processor, questions, padding_side, TYPES in taken)
    return {key: value for key, value in made.items() if key in taken}


def views(vlm: VLM, image: Image.Image) -> list[View]:
    """As `VLM.views`."""
    from .token_places import views

    return views(vlm, image)


def arguments(model: Any) -> set[str]:
    """The names that a model's forward takes: its own, and those that it hands on to the model inside."""
    own = inspect.signature(type(model).forward).parameters
    inner = inspect.signature(type(getattr(model, "base_model", model)).forward).parameters
    handed_on = any(one.kind is one.VAR_KEYWORD for one in own.values())
    return set(own) | (set(inner) if handed_on else set())


def run(processor: Any, questions: Sequence[Asked], padding_side: str, types: bool) -> dict[str, Any]:
    """What a processor makes of a batch of (whole prompt, its images and videos).

    Args:
        types: Whether the model wants to be told what each token is.
    Raises:
        FitPruneError: if a prompt has another number of images than it comes with, or the processor cannot take one.
    """
    texts = [prompt for prompt, _ in questions]
    shown = [[one.convert("RGB") for one in visuals if not isinstance(one, Video)] for _, visuals in questions]
    videos = [[one for one in visuals if isinstance(one, Video)] for _, visuals in questions]
    for text, pictures, clips in zip(texts, shown, videos, strict=True):
        check_marks(processor, text, "image", len(pictures))
        check_marks(processor, text, "video", len(clips))
    options: dict[str, Any] = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
    if types:
        options["return_mm_token_type_ids"] = True
    bos = processor.tokenizer.bos_token
    if bos is not None and all(text.startswith(bos) for text in texts):  # the template wrote it
        options["add_special_tokens"] = False
    if any(videos):
        check_videos(processor)
        options |= {"videos": [[clip.frames for clip in row] for row in videos], "do_sample_frames": False}
        options["video_metadata"] = [[clip.metadata() for clip in row] for row in videos]
    if any(videos) and len(questions) > 1:  # processors stack videos, or do not take them beside images
        return together(
            [run(processor, [one], padding_side, types) for one in questions], padding_side, processor.tokenizer.pad_token_id or 0
        )
    try:
        made = processor(text=texts, images=shown if any(shown) else None, **options)
    except FitPruneError:
        raise
    except Exception as error:  # a processor is its authors' code, and images are anybody's
        raise FitPruneError(f"the checkpoint's {type(processor).__name__} cannot take this prompt: {first_line(error)}") from error
    return {key: value for key, value in made.items() if isinstance(value, Tensor | list) and tensors(value)}


def together(rows: Sequence[dict[str, Any]], padding_side: str, pad: int) -> dict[str, Any]:
    """Inputs of single rows as a batch: what is a token's is filled up, everything else follows one after the other.

    Raises:
        FitPruneError: for videos of unlike numbers of frames, where the model wants them in one block.
    """
    width = max(row["input_ids"].shape[1] for row in rows)
    made: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [row[name] for row in rows if name in row]
        if all(name in row and row[name].shape == row["input_ids"].shape for row in rows):
            sides = [(width - part.shape[1], 0) if padding_side == "left" else (0, width - part.shape[1]) for part in parts]
            fill = pad if name == "input_ids" else 0
            made[name] = torch.cat([nn.functional.pad(part, side, value=fill) for part, side in zip(parts, sides, strict=True)])
            continue
        if len({part.shape[1:] for part in parts}) > 1 and all("pixel_attention_mask" in row for row in rows if "pixel_values" in row):
            most = max(part.shape[1] for part in parts)  # an image that is all zeros is none
            parts = [nn.functional.pad(part, (0, 0) * (part.ndim - 2) + (0, most - part.shape[1])) for part in parts]
        if len({part.shape[1:] for part in parts}) > 1:
            raise FitPruneError("these videos have unlike sizes or numbers of frames: ask about one at a time (--batch-size 1)")
        made[name] = torch.cat(parts)
    return made


def check_videos(processor: Any) -> None:
    """Raises a FitPruneError for a processor that reads no videos, or none here."""
    reader = getattr(processor, VIDEO, None)
    if isinstance(reader, WithoutVideos):
        reader()
    if reader is None:
        raise FitPruneError(f"{type(processor).__name__} reads no videos: ask about frames as images")


def tensors(value: Any) -> bool:
    """Whether a value is a tensor, or a list of nothing else."""
    return isinstance(value, Tensor) or (isinstance(value, list) and bool(value) and all(map(tensors, value)))


def check_marks(processor: Any, text: str, kind: str, given: int) -> None:
    """Raises a FitPruneError where a prompt has not as many marks of images (or videos) as there are."""
    names = ("image_token", "boi_token") if kind == "image" else ("video_token",)  # Gemma 3 writes the second, of either name
    marks = [mark for name in names if isinstance(mark := getattr(processor, name, None), str)]
    found = {mark: text.count(mark) for mark in marks}
    if marks and max(found.values()) != given:
        mark = max(marks, key=found.__getitem__)
        raise FitPruneError(
            f"the prompt has {found[mark]} {mark} but there are {given} {kind}(s): leave it out of the text, or look at the chat template"
        )
