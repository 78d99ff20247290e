"""The plain control that many methods lose to: show the model a smaller picture (VTC-Bench, https://arxiv.org/abs/2510.07143).

A picture is shrunk, in its own proportions, until the model itself makes about as many visual tokens of it as a budget allows, and not
more. Everything then runs as it always does, with fewer tokens from the first layer on, so that time is really saved, the tower's too.

- Models whose tokens grow with the picture (Qwen-VL and other native resolutions) get it resized ahead of their processor, whose least
  number of pixels, to which it would enlarge it again, is set aside for that.
- A LLaVA whose CLIP sees one square gets a square of g × g patches, g as large as the budget allows; CLIP's position embeddings
  are interpolated, by transformers' own `interpolate_pos_encoding`. CLIP was trained on squares of one size only.

Refused by name: towers that see one size (LLaVA-HR's pair, others at a fixed size), and a picture of which no size makes about as many
tokens as are wanted (tiles come in whole ones, and LLaVA-NeXT's whole view never shrinks). Videos are not shrunk.

    pytest tests/studies/test_downsample.py
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..cost.parts import parameters
from ..errors import FitPruneError
from ..families import VLM
from ..families.protocols import View, Visual

Keep = Callable[[int], int]  # the most tokens that a picture may make, by how many it makes now
SMOOTH = "interpolate_pos_encoding"  # of transformers' vision towers: positions for another number of patches
GRID = "image_grid_thw"  # of inputs in native resolution: patches of each picture
SIZES = ((64, 64), (128, 192), (512, 512), (1024, 1536))  # if pictures of all of these make as many tokens, every picture does

LARGEST = 2048  # pixels along an edge: no processor enlarges larger pictures


@contextmanager
def downsampled(vlm: VLM, keep: Keep) -> Iterator[VLM]:
    """The same model for smaller pictures, inside the `with` block: ask it as any other, through its `encode`.

    Args:
        keep: The most visual tokens that a picture may make, by how many it makes in its own size.
    Raises:
        FitPruneError: for a model that sees one size only. The VLM that is yielded raises it for single pictures and for videos.
    """
    if len({vlm.tokens_for(Image.new("RGB", size)) for size in SIZES}) > 1:
        yield SmallerPictures(**vars(vlm), whole=_without_least(vlm), keep=keep)
        return
    smaller, tower = _smaller_square(vlm, keep)
    hook = tower.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, SMOOTH: True}), with_kwargs=True)
    try:
        yield smaller
    finally:
        hook.remove()


@dataclass
class SmallerPictures(VLM):
    """A model whose tokens grow with the picture, and which is given smaller ones.

    whole: What makes inputs of them. keep: As of `downsampled`. sizes: of pictures, and what they become, as found so far.
    """

    whole: VLM = field(kw_only=True)
    keep: Keep = field(kw_only=True)
    sizes: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict, repr=False)

    def shrunk(self, picture: Visual) -> Image.Image:
        """The picture in the largest size that makes no more tokens than it may.

        Raises:
            FitPruneError: for a video, and where that is fewer by more than what rows and columns of tokens explain.
        """
        if not isinstance(picture, Image.Image):
            raise FitPruneError(f"{self.name}: downsample shrinks images, not videos")
        if picture.size not in self.sizes:
            self.sizes[picture.size] = self._smaller(*picture.size)
        size = self.sizes[picture.size]
        return picture if size == picture.size else picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)

    def _smaller(self, width: int, height: int) -> tuple[int, int]:
        most = self.keep(super().tokens_for(Image.new("RGB", (width, height))))

        def scaled(longer: int) -> tuple[int, int]:
            return max(1, width * longer // max(width, height)), max(1, height * longer // max(width, height))

        def tokens(longer: int) -> int:
            return self.whole.tokens_for(Image.new("RGB", scaled(longer)))

        low, high = 1, max(width, height)
        while tokens(high) <= most and high < LARGEST:  # a picture that the processor enlarges
            low, high = high, 2 * high
        while low + 1 < high:  # low makes few enough, high too many
            middle = (low + high) // 2
            low, high = (middle, high) if tokens(middle) <= most else (low, middle)
        if not most - 4 * math.sqrt(most) <= (found := tokens(low)) <= most:  # two rows and two columns of a square
            raise FitPruneError(
                f"{self.name}: downsample would make {found} visual tokens of a picture of {width} by {height} pixels, where about {most} "
                "are wanted: they do not grow with the picture as they would have to"
            )
        return scaled(low)

    def tokens_for(self, image: Image.Image) -> int:
        return self.whole.tokens_for(self.shrunk(image))

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        return self.whole.prepare(self.shrunk(image))

    def views(self, image: Image.Image) -> list[View]:
        return self.whole.views(self.shrunk(image))

    def token_ids(self, prompt: str, images: Sequence[Visual]) -> list[int]:
        return self.whole.token_ids(prompt, [self.shrunk(one) for one in images])

    def encode(self, questions: Sequence[tuple[str, Sequence[Visual]]], padding_side: str = "left") -> dict[str, Tensor]:
        return self.whole.encode([(prompt, [self.shrunk(one) for one in images]) for prompt, images in questions], padding_side)


def _without_least(vlm: VLM) -> VLM:
    """The model, its processor without the least number of pixels that a picture in native resolution is enlarged to."""
    reader: Any = getattr(vlm.processor, "image_processor", None)
    if reader is None or GRID not in vlm.prepare(Image.new("RGB", SIZES[0])):
        return vlm
    processor, reader = copy.copy(vlm.processor), copy.copy(reader)
    reader.size = type(reader.size)(**{**dict(reader.size), "shortest_edge": 1})  # which is a number of pixels there
    processor.image_processor = reader
    return replace(vlm, images=vlm.family.images(vlm.model.config, processor), processor=processor)


def _smaller_square(vlm: VLM, keep: Keep) -> tuple[VLM, nn.Module]:
    """The model for smaller squares, and its vision tower.

    Raises:
        FitPruneError: where the tower, or what prepares images for it, knows one size only.
    """
    base: Any = getattr(vlm.model, "base_model", vlm.model)
    tower, maker = getattr(base, "vision_tower", None), vlm.processor
    patch = getattr(getattr(vlm.model.config, "vision_config", None), "patch_size", None)
    if not isinstance(tower, nn.Module) or SMOOTH not in parameters(tower) or not hasattr(maker, "crop_size") or not isinstance(patch, int):
        raise FitPruneError(
            f"{vlm.name}: downsample needs a vision tower that takes pictures of other sizes, and this one sees one size only"
        )
    most = keep(vlm.tokens_for(Image.new("RGB", (1, 1))))

    def of(side: int) -> VLM:
        """The model for squares of side × side patches."""
        config: Any = copy.deepcopy(vlm.model.config)
        smaller = copy.deepcopy(maker)
        config.vision_config.image_size = side * patch
        for name in ("size", "crop_size"):
            edges = getattr(maker, name)
            setattr(smaller, name, type(edges)(**{edge: side * patch for edge, value in dict(edges).items() if value is not None}))
        return replace(vlm, images=vlm.family.images(config, smaller), processor=smaller)

    for side in range(math.isqrt(most), 0, -1):
        if (smaller := of(side)).tokens_for(Image.new("RGB", (1, 1))) <= most:  # a class token may be one more
            return smaller, tower
    raise FitPruneError(
        f"{vlm.name}: downsample would have to make {most} visual tokens of a picture, fewer than one patch makes: ask for less"
    )
