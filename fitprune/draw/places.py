"""Where the visual tokens of an image lie: a box on a canvas for every patch, in the order in which the model reads them.

The canvas shows the image as the model reads it, at the model's resolution: LLaVA-1.5's and LLaVA-HR's padded square; for LLaVA-NeXT
the whole image, squashed to a square, beside its tiles joined and unpadded. A patch is equally large in both. Which views there are
is the family's knowledge (`Images.views`); this module lays them out.

A token that is no patch has no box. LLaVA-NeXT's newlines get a mark instead, a narrow strip at the end of their row.

    python -c "import fitprune; from PIL import Image; from fitprune.draw.places import places; \
        print(places(fitprune.load('embedded-next'), Image.new('RGB', (300, 200))))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..errors import FitPruneError
from ..families import VLM
from ..families.clip import CLIP_MEAN, pad_to_square
from ..families.protocols import View

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive
PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Places:
    """An image as the model reads it, and where each of its n visual tokens lies on it.

    canvas: all views side by side on white. views: the boxes of the views on it. boxes: per token its patch, None for one that is no
    patch. marks: per token where such a one is shown, None for patches and for tokens that lie nowhere (CLIP's class token).
    """

    canvas: Image.Image = field(repr=False)
    views: tuple[Box, ...]
    boxes: tuple[Box | None, ...] = field(repr=False)
    marks: tuple[Box | None, ...] = field(repr=False)

    @property
    def tokens(self) -> int:
        """n, the number of visual tokens."""
        return len(self.boxes)

    def panel(self, side: float) -> tuple[float, float]:
        """Width and height of a panel of a figure that shows the canvas, where a square one is that wide."""
        aspect = self.canvas.width / self.canvas.height
        wide = side * max(aspect, 1.0) ** 0.5
        return wide, wide / aspect


def places(vlm: VLM, image: Image.Image) -> Places:
    """Where the visual tokens of an image of any size lie; FitPruneError if the family's views and its number of tokens disagree."""
    image = image.convert("RGB")
    found = laid_out(vlm.views(image))
    if found.tokens != vlm.tokens_for(image):
        raise FitPruneError(
            f"{vlm.name} has {vlm.tokens_for(image)} visual tokens for this image, but its family's views have "
            f"{found.tokens}: see docs/new_family.md"
        )
    return found


def on_grid(image: Image.Image, rows: int, columns: int) -> Places:
    """Places without a checkpoint: one grid over the image, which is first padded to a square where the grid is one."""
    image = image.convert("RGB")
    if rows == columns:
        image = pad_to_square(image, tuple(int(255 * mean) for mean in CLIP_MEAN))
    return laid_out([View(image, rows, columns)])


def laid_out(views: Sequence[View]) -> Places:
    """The views from left to right, each in the middle of the height, with room for marks at the end of rows; tiles of a picture joined."""
    unit = max((view.pixels.width // max(1, view.columns) for view in views), default=1) or 1  # the gap between views
    room = max(1, unit // 2)  # the width of a mark
    shift = max(1, unit // 5)  # from a row to its mark
    corners: list[Box] = []
    boxes: list[Box | None] = []
    marks: list[Box | None] = []
    pictures = _pictures(views)
    height = max((high for *_, high in pictures), default=1)
    right = 0
    for tiles, across, tall in pictures:
        for view in tiles:
            x, y = view.at or (0, 0)
            left, top = right + x, (height - tall) // 2 + y
            wide, high = view.pixels.size
            corners.append((left, top, left + wide, top + high))
            boxes += [None] * view.before
            marks += [None] * view.before
            for row in range(view.rows):
                up, down = top + row * high // view.rows, top + (row + 1) * high // view.rows
                for column in range(view.columns):
                    x0, x1 = (left + at * wide // view.columns for at in (column, column + 1))
                    boxes.append((x0, up, x1, down))
                    marks.append(None)
                if view.newlines:
                    boxes.append(None)
                    marks.append((left + wide + shift, up, left + wide + shift + room, down))
        right += across + (shift + room) * any(view.newlines for view in tiles) + unit
    canvas = Image.new("RGB", (max(1, right - unit), height), PAPER)
    for view, (left, top, _, _) in zip(views, corners, strict=True):
        canvas.paste(view.pixels, (left, top))
    return Places(canvas, tuple(corners), tuple(boxes), tuple(marks))


def _pictures(views: Sequence[View]) -> list[tuple[list[View], int, int]]:
    """What is drawn as one: a view, or neighbouring tiles of one picture; with its width and height."""
    found: list[list[View]] = []
    for view in views:
        if view.at is None or not found or found[-1][0].at is None:
            found.append([view])
        else:
            found[-1].append(view)
    edges = [[((one.at or (0, 0))[0] + one.pixels.width, (one.at or (0, 0))[1] + one.pixels.height) for one in tiles] for tiles in found]
    return [(tiles, max(x for x, _ in ends), max(y for _, y in ends)) for tiles, ends in zip(found, edges, strict=True)]
