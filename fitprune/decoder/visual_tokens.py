"""Where the visual tokens are: a set of positions per image or video, read from the inputs, never assumed.

The released code hard-codes 35 tokens before the image and 576 of the image. Here a prompt may have any prefix, any
number of images and any number of tokens per image; each image gets its own deletion budget. It is a list of *runs* (start, end)
of its row: one run for most models, one per row of patches (Pixtral) or per frame of a video (Qwen3-VL) for others. What stands
between the runs of one image (row ends, timestamps) belongs to its frame: it is never deleted and does not count as text that asks.

Visual tokens come from the ids of images and videos in `input_ids`, or from a boolean mask that the caller gives. Adjacent images make one
run. Where one ends and the next begins is known, in this order, by what the call says (image_sizes: images/lengths.py), by the features
that the model itself makes of each image in this call, or that `generate` made before it, and by a size that all images have.

    pytest tests/decoder/test_visual_tokens.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from ..errors import FitPruneError
from .upstream import MASK, encoded_features

Run = tuple[int, int]  # first position and one past the last
Image = tuple[Run, ...]  # ascending; a video is one as well
Spans = list[list[Image]]  # per row, per image
KINDS = ("image", "video")


def runs_of(mask: Tensor) -> list[list[Run]]:
    """Runs of True of [B, S] bool, row by row."""
    edges = torch.nn.functional.pad(mask.cpu().to(torch.int8), (1, 1)).diff(dim=1)  # one transfer for all rows
    ends = ((row == 1, row == -1) for row in edges)
    return [[(int(a), int(b)) for a, b in zip(start.nonzero(), end.nonzero(), strict=True)] for start, end in ends]


def find_spans(mask: Tensor, tokens_per_image: int | None = None) -> Spans:
    """Every run of True is an image.

    Args:
        mask: [B, S] bool, True at visual positions.
        tokens_per_image: Runs of a multiple of this length are split into images of this length.
    """
    spans: Spans = []
    for runs in runs_of(mask):
        spans.append([])
        for start, end in runs:
            size = tokens_per_image if tokens_per_image and (end - start) % tokens_per_image == 0 else end - start
            spans[-1] += [((at, at + size),) for at in range(start, end, size)]
    return spans


def tokens_of(image: Image) -> int:
    """How many visual tokens an image has."""
    return sum(end - start for start, end in image)


def positions_of(image: Image) -> Tensor:
    """Its positions, ascending [n]."""
    return torch.cat([torch.arange(start, end) for start, end in image])


def split(rows: Sequence[Sequence[Run]], lengths: Sequence[int], across: bool = False) -> Spans | None:
    """Runs cut into images of the given lengths, in order of appearance, row by row; None where they do not fit.

    Args:
        across: Whether an image may be several runs of its row; these are whole then.
    """
    left = iter(lengths)
    spans: Spans = []
    for runs in rows:
        spans.append([])
        image: list[Run] = []
        missing = 0  # tokens that the image at hand still lacks
        for start, end in runs:
            at = start
            while at < end:
                if not missing and (missing := next(left, 0)) <= 0:
                    return None
                stop = min(end, at + missing)
                image.append((at, stop))
                missing -= stop - at
                if (missing and not (across and at == start)) or (not missing and len(image) > 1 and stop != end):
                    return None
                if not missing:
                    spans[-1].append(tuple(image))
                    image = []
                at = stop
        if missing:
            return None
    return spans if next(left, None) is None else None


def without_padding(spans: Spans, real: Tensor) -> Spans:
    """Images less their padding: an image may come padded itself, in a batch of images of different sizes.

    Args:
        real: [B, S] bool, False at padding.
    """
    kept: Spans = []
    for images, row in zip(spans, real, strict=True):
        cut = (tuple((start + a, start + b) for start, end in image for a, b in runs_of(row[None, start:end])[0]) for image in images)
        kept.append([image for image in cut if image])
    return kept


def groups(spans: Spans, length: int) -> tuple[Tensor, Tensor]:
    """What each position belongs to, both on the CPU.

    Returns:
        [B, length] int, the number of the image (1, 2, …) that a position is a visual token of, else 0; and [B, length] bool, True for
        what stands between the runs of one image.
    """
    group = torch.zeros(len(spans), length, dtype=torch.long)
    within = torch.zeros_like(group, dtype=torch.bool)
    for row, inside, images in zip(group, within, spans, strict=True):
        for number, image in enumerate(images, 1):
            inside[image[0][0] : image[-1][1]] = True
            for start, end in image:
                row[start:end] = number
    return group, within & (group == 0)


class Lengths(Protocol):
    """How many tokens the images of a model take, as far as anything but the prompt says it."""

    each: int | None
    """What every image takes; None where they differ, or nobody knows."""
    mark: str | None
    """Where images come in tiles, whether an image is told by the token ahead of its "first" or of its "last" tile; else None."""

    def told(self, call: Mapping[str, Any]) -> list[int] | None:
        """What the images of this call take, in order, by what comes with them; None where that says nothing."""


class _NoLengths:
    each: int | None = None
    mark: str | None = None

    def told(self, call: Mapping[str, Any]) -> list[int] | None:
        return None


NO_LENGTHS = _NoLengths()


@dataclass
class Located:
    """The visual tokens of a call before it is known which image each belongs to.

    runs: Per kind of `KINDS`, row by row.
    told: Tokens of each image by what comes with the call; None where that says nothing.
    each: Tokens that every image has, if that is known.
    made: Tokens of each image and video by the features that the model makes of them, filled in while it does.
    count: How many images the call brings, by the sizes that come with them; None where that is not said.
    marks: Where images come in tiles, the token ahead of each run of `runs["image"]`; and which run has an image's mark: "first" or "last".
    """

    runs: dict[str, list[list[Run]]]
    told: list[int] | None = None
    each: int | None = None
    made: dict[str, list[int]] = field(default_factory=dict)
    count: int | None = None
    marks: tuple[list[list[int]], str] | None = None

    def __bool__(self) -> bool:
        return any(run for rows in self.runs.values() for run in rows)

    def spans(self) -> Spans:
        """The images and videos of each row, by their first position.

        Raises:
            FitPruneError: if images are not as long as their `image_sizes` say.
        """
        found = [self._of(kind, rows) for kind, rows in self.runs.items()]
        return [sorted(image for images in rows for image in images) for rows in zip(*found, strict=True)]

    def _of(self, kind: str, rows: list[list[Run]]) -> Spans:
        if kind == "image" and self.marks is not None:
            return [_joined(runs, marks, self.marks[1]) for runs, marks in zip(rows, self.marks[0], strict=True)]
        if kind == "image" and self.told is not None:
            return split(rows, self.told) or _misfit(rows, self.told)
        size = self.each if kind == "image" else None
        made = self.made.get(kind, [])
        if size and made and all(one % size == 0 for one in (*made, *(end - start for runs in rows for start, end in runs))):
            made = []  # some models make the features of a row's images in one piece (Idefics2)
        if kind == "image" and not made and not any(self.runs.get("video", [])):
            made = self.made.get("video", [])  # frames that stand at the places of images (GLM)
        if made and (images := split(rows, made, across=True)) is not None:
            return images
        if kind == "image" and size is None and self.count not in (None, sum(map(len, rows))):
            raise FitPruneError(
                f"this call brings {self.count} images, its tokens are {sum(map(len, rows))} runs of visual tokens, and nothing says "
                "which are whose: put text between images, or pass visual_mask= to prune() with one run for each"
            )
        return [list(_cut(runs, size)) for runs in rows]


def _cut(runs: Sequence[Run], size: int | None) -> Iterator[Image]:
    for start, end in runs:
        step = size if size and (end - start) % size == 0 else end - start
        yield from (((at, at + step),) for at in range(start, end, step))


def _joined(runs: Sequence[Run], marks: Sequence[int], which: str) -> list[Image]:
    """Tiles put together: an image begins (or ends) at each run that has the same token ahead as the row's first (or last) run."""
    images: list[list[Run]] = []
    done = True
    for run, mark in zip(runs, marks, strict=True):
        if done or (which == "first" and mark == marks[0]):
            images.append([])
        images[-1].append(run)
        done = which == "last" and mark == marks[-1]
    return [tuple(image) for image in images]


def visual_ids(config: Any) -> dict[str, int]:
    """Token ids of images and of videos by kind, as the config names them; a kind that it does not name is left out."""
    found = {}
    for kind in KINDS:
        names = [f"{kind}_token_id", f"{kind}_token_index"]
        values = (getattr(place, name, None) for place in (config, getattr(config, "vision_config", None)) for name in names)
        if (value := next((value for value in values if isinstance(value, int)), None)) is not None:
            found[kind] = value
    return found


def brings_images(call: Mapping[str, Any]) -> bool:
    """Whether anything in a call could be images, or what was made of them: numbers that are no ids, whatever their name."""
    for name, value in call.items():
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, Mapping) or (name != MASK and isinstance(first, Tensor) and first.is_floating_point()):
            return True
    return False


def visual_inputs(call: Mapping[str, Any]) -> list[str]:
    """Names of a call's arguments that bring pixels of images or videos."""
    return [name for name, value in call.items() if "pixel_values" in name and isinstance(value, Tensor | list | tuple)]


class ByTokenId:
    """Finds images and videos by the ids of their tokens in `input_ids`, as transformers' own models do."""

    def __init__(self, config: Any, lengths: Lengths = NO_LENGTHS) -> None:
        """Raises FitPruneError if the config names no image token."""
        self.ids = visual_ids(config)
        if not self.ids:
            raise FitPruneError(
                f"a {type(config).__name__} names no image token, so nothing says which tokens are visual: "
                "pass visual_mask= (bool [batch, sequence], True at visual positions)"
            )
        self.lengths = lengths

    def __call__(self, call: Mapping[str, Any]) -> Located:
        """The visual tokens of this call (`input_ids` [B, n]).

        Raises:
            FitPruneError: if text and images cannot be told apart, or pixels come without any visual token.
        """
        ids = call.get("input_ids")
        embeds = call.get("inputs_embeds")
        if ids is None and embeds is not None and embeds.shape[1] == 1:
            return Located({"image": [[] for _ in range(embeds.shape[0])]})
        if ids is None:
            raise FitPruneError("called with inputs_embeds only, which do not tell visual tokens from text: pass visual_mask= to prune()")
        if ids.shape[1] == 1:  # decoding: no need to look, and no wait for the device
            return Located({"image": [[] for _ in range(ids.shape[0])]})
        found = Located({kind: runs_of(ids == token) for kind, token in self.ids.items()}, self.lengths.told(call), self.lengths.each)
        sizes = [call.get(name) for name in ("image_sizes", "image_grid_thw")]
        if visual_inputs(call) and (given := next((one for one in sizes if one is not None), None)) is not None:
            found.count = len(given)
        if self.lengths.mark and found.runs.get("image"):
            rows = zip(ids.tolist(), found.runs["image"], strict=True)
            found.marks = [[row[start - 1] if start else -1 for start, _ in runs] for row, runs in rows], self.lengths.mark
        if not found and (brings := visual_inputs(call)):
            raise FitPruneError(
                f"this call brings {' and '.join(brings)}, but none of its tokens is {' or '.join(map(str, self.ids.values()))}, by which "
                "the config names visual tokens: check the prompt, or pass visual_mask= to prune()"
            )
        if found and not brings_images(call):
            tokens = sum(end - start for rows in found.runs.values() for runs in rows for start, end in runs)
            raise FitPruneError(
                f"this call has {tokens} visual tokens and brings no images: pass what the processor makes (pixel_values, …), "
                "or remove these tokens from the text"
            )
        for kind, features in encoded_features(call).items():
            found.made[kind] = image_lengths(features)
        return found


def image_lengths(features: Any) -> list[int]:
    """Tokens of each image, from what a model makes of them: a list of [n, hidden] or [frames, n, hidden], or one tensor
    [images, n, hidden]; empty if it is neither."""
    between = getattr(features, "deepstack_features", None) or [None]
    if isinstance(between[0], tuple) and isinstance(
        between[0][0], int
    ):  # (layer, features of each image): there is nothing else then (Granite 4)
        features = between[0][1]
    features = getattr(features, "pooler_output", features)
    if isinstance(features, Tensor):
        return [features.shape[1]] * features.shape[0] if features.ndim == 3 else []
    if not isinstance(features, list | tuple) or not all(isinstance(one, Tensor) and one.ndim in (2, 3) for one in features):
        return []
    return [one.shape[:-1].numel() for one in features]


def _misfit(rows: Sequence[Sequence[Run]], lengths: Sequence[int]) -> NoReturn:
    runs = [end - start for row in rows for start, end in row]
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
