"""How LLaVA's families make model inputs of prompts and images: text in pieces, image by image, batches filled up.

Prompts are tokenised in pieces, as LLaVA does (checkpoints/tokenize.py). Images are processed one by one with Pillow, so that
one gives the same pixels alone and in a batch, with torchvision installed or not; where images have unlike numbers of
views (LLaVA-NeXT's tiles), a batch is filled up with empty ones, which the model cuts off again.

    python -c "import fitprune; print(fitprune.load('embedded').token_ids('What number is written?', []))"
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..checkpoints.tokenize import tokenize_with_images
from ..errors import FitPruneError
from ..images.video import Video
from .conversation import build_prompt, template_for
from .protocols import View, Visual

if TYPE_CHECKING:
    from .vlm import VLM


def template(config: Any, tokenizer: Any, name: str) -> str:
    """The template of conversation.py that a checkpoint was trained with."""
    return template_for(config.get_text_config().model_type, tokenizer, name)


def write(vlm: VLM, turns: Sequence[tuple[str, str | None]]) -> str:
    """As `VLM.write`, in the template that was chosen."""
    return build_prompt(vlm.template, turns)


def views(vlm: VLM, image: Image.Image) -> list[View]:
    """As `VLM.views`: known from the config."""
    return vlm.images.views(image)


def token_ids(vlm: VLM, prompt: str, images: Sequence[Visual]) -> list[int]:
    """As `VLM.token_ids`. A prompt that is too long for the checkpoint is cut, as in the original, but never in an image."""
    counts = [vlm.tokens_for(image) for image in pictures(vlm, images)]
    ids = tokenize_with_images(vlm.tokenizer, prompt, counts, vlm.image_token)
    longest = getattr(vlm.model.config, "tokenizer_model_max_length", None)
    if longest is not None and len(ids) > longest:  # as the original does with checkpoints that say so
        if vlm.image_token in ids[longest:]:
            raise FitPruneError(
                f"the prompt takes {len(ids)} tokens, the checkpoint {longest}, and the end of an image would be cut "
                "off: ask about fewer or smaller images"
            )
        warnings.warn(f"prompt of {len(ids)} tokens cut to the checkpoint's {longest}", stacklevel=2)
        ids = ids[:longest]
    return ids


def pictures(vlm: VLM, shown: Sequence[Visual]) -> list[Image.Image]:
    """The same, if all are images; a FitPruneError for a video."""
    found = [one for one in shown if not isinstance(one, Video)]
    if len(found) < len(shown):
        raise FitPruneError(f"{vlm.name} knows no videos: ask about frames of it as images")
    return found


def encode(vlm: VLM, questions: Sequence[tuple[str, Sequence[Visual]]], padding_side: str) -> dict[str, Tensor]:
    """As `VLM.encode`, on the CPU: ids and mask [B, S], pixels of all images."""
    rows = [vlm.token_ids(prompt, images) for prompt, images in questions]
    longest = max(map(len, rows))
    pad = vlm.tokenizer.pad_token_id if vlm.tokenizer.pad_token_id is not None else 0
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        where = slice(longest - len(tokens), None) if padding_side == "left" else slice(len(tokens))
        ids[row, where], mask[row, where] = torch.tensor(tokens), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    prepared = [vlm.prepare(image) for _, images in questions for image in pictures(vlm, images)]
    for key in prepared[0] if prepared else ():
        inputs[key] = _together([image[key] for image in prepared])
    return inputs


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Images [1, views, …] or [1, …] one after the other, filled up with zeros to the largest number of views."""
    if tensors[0].ndim == 5:  # [1, views, 3, height, width]
        most = max(tensor.shape[1] for tensor in tensors)
        tensors = [torch.nn.functional.pad(t, (0, 0) * 3 + (0, most - t.shape[1])) for t in tensors]
    return torch.cat(list(tensors))
