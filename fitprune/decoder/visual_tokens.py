"""Where the visual tokens are: one span per image, read from the inputs, never assumed.

The released code hard-codes 35 tokens before the image and 576 of the image. Here a prompt may have any prefix, any
number of images and any number of tokens per image; each image is a *span* (start, end) of its row and gets its own
deletion budget. Spans come from the image-token id in `input_ids` or from a boolean mask that the caller gives.

Adjacent images make one run of image tokens. It is split by `Lengths`, which are handed in (all images have one size, or the
call says how large they are: images/lengths.py), or where the call brings images encoded, as transformers' `generate`
does since it encodes them before the prefill: then their lengths are at hand for any model.

    pytest tests/decoder/test_visual_tokens.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ..errors import FitPruneError
from .upstream import encoded_images

Spans = list[list[tuple[int, int]]]  # per row, per image: first position and one past the last


def find_spans(mask: Tensor, tokens_per_image: int | None = None) -> Spans:
    """Runs of True, row by row.

    Args:
        mask: [B, S] bool, True at visual positions.
        tokens_per_image: Runs of a multiple of this length are split into images of this length.
    """
    edges = torch.nn.functional.pad(mask.cpu().to(torch.int8), (1, 1)).diff(dim=1)  # one transfer for all rows
    spans: Spans = []
    for row in edges:
        starts, ends = (row == 1).nonzero().flatten().tolist(), (row == -1).nonzero().flatten().tolist()
        images: list[tuple[int, int]] = []
        for start, end in zip(starts, ends, strict=True):
            size = tokens_per_image if tokens_per_image and (end - start) % tokens_per_image == 0 else end - start
            images += [(at, at + size) for at in range(start, end, size)]
        spans.append(images)
    return spans


def split(spans: Spans, lengths: Sequence[int]) -> Spans | None:
    """Spans cut into images of the given lengths, in order of appearance, row by row; None where they do not fit."""
    left = iter(lengths)
    images: Spans = []
    for row in spans:
        images.append([])
        for start, end in row:
            while start < end:
                length = next(left, 0)
                if not 0 < length <= end - start:
                    return None
                images[-1].append((start, start + length))
                start += length
    return images if next(left, None) is None else None


def without_padding(spans: Spans, real: Tensor) -> Spans:
    """Spans less their padding: an image may come padded itself, in a batch of images of different sizes.

    Args:
        real: [B, S] bool, False at padding.
    """
    kept: Spans = []
    for images, row in zip(spans, real, strict=True):
        kept.append([])
        for start, end in images:
            kept[-1] += [(start + a, start + b) for a, b in find_spans(row[None, start:end])[0]]
    return kept


def groups(spans: Spans, length: int) -> Tensor:
    """[B, length] int on the CPU: the number of the image (1, 2, …) that each position belongs to, else 0."""
    group = torch.zeros(len(spans), length, dtype=torch.long)
    for row, images in zip(group, spans, strict=True):
        for number, (start, end) in enumerate(images, 1):
            row[start:end] = number
    return group


class Lengths(Protocol):
    """How many tokens the images of a model take, as far as anything but the prompt says it."""

    each: int | None
    """What every image takes; None where they differ, or nobody knows."""

    def told(self, call: Mapping[str, Any]) -> list[int] | None:
        """What the images of this call take, in order, by what comes with them; None where that says nothing."""


class _NoLengths:
    each: int | None = None

    def told(self, call: Mapping[str, Any]) -> list[int] | None:
        return None


NO_LENGTHS = _NoLengths()


class ByTokenId:
    """Finds images by the id of the image token in `input_ids`, as transformers' own LLaVA models do."""

    def __init__(self, config: Any, lengths: Lengths = NO_LENGTHS) -> None:
        """Raises FitPruneError if the config names no image token."""
        token = getattr(config, "image_token_id", None)
        if token is None:
            token = getattr(config, "image_token_index", None)
        if token is None:
            raise FitPruneError(
                f"a {type(config).__name__} names no image token, so nothing says which tokens are visual: "
                "pass visual_mask= (bool [batch, sequence], True at visual positions)"
            )
        self.token = int(token)
        self.lengths = lengths

    def __call__(self, call: Mapping[str, Any]) -> Spans:
        """Spans within the tokens of this call (`input_ids` [B, n]).

        Raises:
            FitPruneError: if images are not as long as their `image_sizes` say, or text and images cannot be told apart.
        """
        ids = call.get("input_ids")
        if ids is None:
            embeds = call.get("inputs_embeds")
            if embeds is not None and embeds.shape[1] == 1:
                return [[] for _ in range(embeds.shape[0])]
            raise FitPruneError("called with inputs_embeds only, which do not tell visual tokens from text: pass visual_mask= to prune()")
        if ids.shape[1] == 1:  # decoding: no need to look, and no wait for the device
            return [[] for _ in range(ids.shape[0])]
        mask = ids == self.token
        if (told := self.lengths.told(call)) is not None:
            runs = find_spans(mask)
            return split(runs, told) or _misfit(runs, told)
        encoded = _encoded_lengths(call)  # a prefill in chunks brings parts of images, which fit no run
        images = split(find_spans(mask), encoded) if encoded else None
        return images or find_spans(mask, self.lengths.each)


def _encoded_lengths(call: Mapping[str, Any]) -> list[int]:
    """Tokens of each image that the call brings encoded; empty if it brings none, or not one by one."""
    images = encoded_images(call)  # a list of [n, hidden], or [images, n, hidden]
    if images is None or any(image.ndim != 2 for image in images):
        return []
    return [len(image) for image in images]


def _misfit(spans: Spans, lengths: Sequence[int]) -> NoReturn:
    runs = [end - start for row in spans for start, end in row]
    hint = "give each image as many image tokens as it takes, and images in the order of their tokens"
    if sum(runs) == sum(lengths):
        hint += " (older transformers repeat them in another order for beams: several images in a prompt need num_beams=1)"
    raise FitPruneError(f"by image_sizes the images take {lengths} tokens, but runs of image tokens are {runs} long: {hint}")


class ByMask:
    """Finds images by a mask that the caller gave for the whole prompt, for decoders fed with `inputs_embeds`."""

    def __init__(self, mask: Tensor) -> None:
        if not isinstance(mask, Tensor):
            raise FitPruneError(f"visual_mask must be a bool tensor [batch, sequence], not a {type(mask).__name__}")
        if mask.ndim != 2 or mask.dtype != torch.bool:
            raise FitPruneError(f"visual_mask must be bool [batch, sequence], got {mask.dtype} with shape {tuple(mask.shape)}")
        self.mask = mask.cpu()

    def window(self, rows: int, past: int, length: int) -> Spans:
        """Spans within the `length` tokens that follow `past` earlier ones; rows may be repeated (beams).

        Raises:
            FitPruneError: if the mask does not fit the prompt.
        """
        given, total = self.mask.shape
        if rows % given:
            raise FitPruneError(f"visual_mask has {given} rows but the batch has {rows}")
        if past == 0 and length != total:
            hint = "" if length < total else " (generate needs its cache with visual_mask, and an assistant_model is not supported)"
            raise FitPruneError(f"visual_mask covers {total} tokens but the prompt has {length}{hint}")
        if past >= total:
            return [[] for _ in range(rows)]
        mask = self.mask[:, past : past + length]
        mask = torch.nn.functional.pad(mask, (0, length - mask.shape[1]))
        return find_spans(mask.repeat_interleave(rows // given, dim=0))
