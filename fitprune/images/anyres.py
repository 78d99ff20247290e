"""Any resolution: into which grid of tiles an image is cut, and how many visual tokens it then takes.

LLaVA-NeXT looks at an image twice: as a whole, squashed to the vision tower's square, and as a grid of such squares ("tiles")
that the image is fitted into. The tiles' patches are joined to one map, rows or columns of nothing but padding are dropped, and
every remaining row is ended by a newline vector. Its tokens are therefore

    patches of one view + kept rows × (kept columns + 1)

and differ from image to image. Here is only arithmetic on sizes; tensors are transformers' business. A size and a pinpoint are
(width, height), as in the original. transformers reads both the other way round, which matters where two pinpoints are equally
good and the first one wins: `turned` makes its list of ours.

Two roundings are worth knowing. The choice of the pinpoint truncates floating-point products, here as in the original and in transformers.
The kept rows are exact in transformers, while the original truncates there too and so loses two rows of the map for a few sizes
(106 of the 9 million up to 3000 × 3000, such as 1408 × 792): `reported` is the size to tell transformers for the original's rows.
Left out: `anyres_max_9` and the other ways of merging tiles, which transformers' LLaVA-NeXT does not have.

    python -c "from fitprune.images.anyres import *; print(AnyRes(((672, 336), (672, 672)), 336, 14).tokens((640, 480)))"
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FitPruneError

Size = tuple[int, int]  # (width, height)
FIELD = "image_grid_pinpoints"


@dataclass(frozen=True)
class AnyRes:
    """How one model cuts images.

    pinpoints: the sizes in pixels that an image may be fitted into, in order of preference.
    side: pixels along one side of the vision tower's square. patch: pixels along one side of a patch.
    """

    pinpoints: tuple[Size, ...]
    side: int
    patch: int

    def __post_init__(self) -> None:
        if not self.pinpoints or any(edge <= 0 or edge % self.side for size in self.pinpoints for edge in size):
            raise FitPruneError(f"{FIELD} must be sizes in whole tiles of {self.side} pixels, got {list(map(list, self.pinpoints))}")

    @property
    def patches(self) -> int:
        """Patches along one side of a view."""
        return self.side // self.patch

    def resolution(self, size: Size) -> Size:
        """The pinpoint that an image is fitted into.

        The one that keeps most of the image's pixels; among equals the one with the least waste, then the first.
        Source: LLaVA, llava/mm_utils.py (select_best_resolution).
        """
        width, height = size

        def merit(pinpoint: Size) -> tuple[int, int]:
            wide, high = pinpoint
            scale = min(wide / width, high / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            return effective, effective - wide * high

        return max(self.pinpoints, key=merit)  # max keeps the first of equals

    def tiles(self, size: Size) -> tuple[int, int]:
        """(columns, rows) of the grid of tiles."""
        wide, high = self.resolution(size)
        return wide // self.side, high // self.side

    def kept(self, size: Size, truncated: bool = False) -> tuple[int, int]:
        """(rows, columns) of the map of patches once the padding is dropped; either may be 0 for a sliver.

        As transformers reckons it, or with the original's truncated products; `reported` sizes are those for which they agree.
        Source: LLaVA, llava/model/llava_arch.py (unpad_image).
        """
        width, height = size
        columns, rows = (count * self.patches for count in self.tiles(size))
        if width / height > columns / rows:  # padded above and below, equally: half a band stays
            filled = int(height * (columns / width)) if truncated else height * columns // width
            return rows - 2 * ((rows - filled) // 2), columns
        filled = int(width * (rows / height)) if truncated else width * rows // height
        return rows, columns - 2 * ((columns - filled) // 2)

    def reported(self, size: Size) -> Size:
        """The size to give to transformers' model as this image's: its own, or a pixel more or less in one direction, where
        only that makes it keep as much of the map as the original does."""
        (width, height), original = size, self.kept(size, truncated=True)
        for told in (size, (width, height - 1), (width - 1, height), (width, height + 1), (width + 1, height)):
            if min(told) > 0 and self.tiles(told) == self.tiles(size) and self.kept(told) == original:
                return told
        return size

    def tokens(self, size: Size) -> int:
        """Visual tokens of an image of a `reported` size: the whole view, then the map's rows, each with its newline."""
        rows, columns = self.kept(size)
        return self.patches**2 + rows * (columns + 1)


def read_pinpoints(value: Any) -> list[Size]:
    """Pinpoints of a config: a list of pairs, or such a list as text.

    Raises:
        FitPruneError: if it is neither; names the field.
    """
    given = value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    pairs = [tuple(pair) if isinstance(pair, Sequence) else () for pair in value] if isinstance(value, Sequence) else []
    if not pairs or any([type(edge) for edge in pair] != [int, int] for pair in pairs):
        raise FitPruneError(f"{FIELD} must be a list of pairs of pixels, such as [[336, 672], [672, 336]], got {given!r}")
    return [(pair[0], pair[1]) for pair in pairs]


def turned(pinpoints: Sequence[Size]) -> list[list[int]]:
    """Pinpoints in the other order, (height, width) for (width, height), as lists that JSON can hold."""
    return [[second, first] for first, second in pinpoints]


def of_config(config: Any) -> AnyRes | None:
    """How the transformers model of this config cuts images; None if it is not one that does so in this way.

    Its pinpoints are read as transformers reads them, (height, width).
    """
    if getattr(config, "model_type", None) != "llava_next" or config.vision_feature_select_strategy != "default":
        return None
    pinpoints = tuple((width, height) for height, width in read_pinpoints(config.image_grid_pinpoints))
    return AnyRes(pinpoints, config.vision_config.image_size, config.vision_config.patch_size)
