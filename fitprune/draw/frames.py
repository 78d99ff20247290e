"""What is left of an image after each layer: deleted patches faded, survivors outlined.

pytest tests/draw/test_draw_frames.py
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from ..errors import FitPruneError
from ..families import VLM
from ..trace import Trace
from .places import PAPER, Box, Places, places

OUTLINE, MARK = "#D55E00", "#0072B2"  # Okabe and Ito's vermilion and blue, which colour-blind readers can tell apart
FADED = 0.88  # how far a deleted patch goes
FADED_TO = (222, 222, 222)  # a grey, so that white patches that are kept look another
AT_LEAST = 700  # pixels along the longer side of a frame, so that edges come out sharp

Edge = tuple[int, int, int, int]  # from x0, y0 to x1, y1


def frames(vlm: VLM, image: Image.Image, trace: Trace, row: int = 0, picture: int = 0) -> list[Image.Image]:
    """The whole image, then what is left of it after each of the L layers: L + 1 images of one size.

    Args:
        vlm: The checkpoint that was asked; its family says where tokens lie.
        image: The one that was asked about.
        trace: From `prune`, after the forward.
        row: Row of the batch.
        picture: Which of the images of that row, from 0.
    Raises:
        FitPruneError: an empty trace, a row or image that it does not have, another image than was asked about.
    """
    where = places(vlm, image)
    return [fade(where, kept) for kept in stages(alive(trace, where.tokens, row, picture))]


def stages(kept: np.ndarray) -> list[np.ndarray]:
    """Which tokens are there in the whole image, then after each layer, [L + 1] of bool [n]; kept: bool [L, n]."""
    return [np.ones(kept.shape[1], dtype=bool), *kept]


def alive(trace: Trace, tokens: int, row: int = 0, picture: int = 0) -> np.ndarray:
    """Which of an image's n visual tokens are alive after each layer, bool [L, n]; arguments and errors as `frames`."""
    positions = image_positions(trace, row, picture)
    if len(positions) != tokens:
        raise FitPruneError(
            f"the trace has {len(positions)} visual tokens where the image would have {tokens}: "
            "draw the image that was asked about, with the model that was asked"
        )
    return np.stack([np.isin(positions, rows[row].numpy()) for rows in trace.visual])


def image_positions(trace: Trace, row: int = 0, picture: int = 0) -> np.ndarray:
    """Positions of an image's visual tokens in its row, [n]; errors as `frames`."""
    if not len(trace):
        raise FitPruneError("this trace is empty: draw it after a forward with an image inside prune()")
    images = trace.image_tokens
    check_number("row", row, len(images), "this trace")
    check_number("image", picture, len(images[row]), f"row {row}")
    return images[row][picture].numpy()


def check_number(what: str, number: int, count: int, owner: str) -> None:
    """Raises a FitPruneError where there is no such row, image or layer."""
    if not 0 <= number < count:
        raise FitPruneError(f"there is no {what} {number}: {owner} has {what}s 0 to {count - 1}")


def fade(where: Places, kept: np.ndarray, at_least: int = AT_LEAST) -> Image.Image:
    """The canvas, enlarged to so many pixels along its longer side, with all but the kept patches (bool [n]) faded, these outlined."""
    times = max(1, math.ceil(at_least / max(where.canvas.size)))
    size = (where.canvas.width * times, where.canvas.height * times)
    image, mask = Image.new("RGB", size, PAPER), Image.new("L", size)
    for view in where.views:  # each by itself, so that none is blurred into the white beside it
        if view[0] < view[2] and view[1] < view[3]:
            part = where.canvas.crop(view)
            part = part.resize((part.width * times, part.height * times), Image.Resampling.BICUBIC)
            image.paste(part, (view[0] * times, view[1] * times))
    pen = ImageDraw.Draw(mask)
    for box, stays in zip(where.boxes, kept.tolist(), strict=True):
        if box is not None and not stays:
            pen.rectangle(_pixels(box, times), fill=round(255 * FADED))
    image.paste(Image.new("RGB", size, FADED_TO), mask=mask)
    pen = ImageDraw.Draw(image)
    thick = max(2, round(max(size) / 220))
    for x0, y0, x1, y1 in outline(where, kept):
        half = thick // 2
        pen.rectangle((x0 * times - half, y0 * times - half, x1 * times - half + thick - 1, y1 * times - half + thick - 1), fill=OUTLINE)
    for mark, stays in zip(where.marks, kept.tolist(), strict=True):
        if mark is not None:
            x0, y0, x1, y1 = _pixels(mark, times)
            pen.rectangle((x0, y0 + times, x1, y1 - times), fill=MARK if stays else "#E4E4E4")
    return image


def outline(where: Places, kept: np.ndarray) -> list[Edge]:
    """The edges between patches that are kept and patches that are not, in pixels of the canvas, sorted."""
    sides: dict[bool, set[Edge]] = {True: set(), False: set()}
    for box, stays in zip(where.boxes, kept.tolist(), strict=True):
        if box is not None:
            x0, y0, x1, y1 = box
            sides[stays] |= {(x0, y0, x1, y0), (x0, y1, x1, y1), (x0, y0, x0, y1), (x1, y0, x1, y1)}
    return sorted(sides[True] & sides[False])


def _pixels(box: Box, times: int) -> Box:
    """A box of an enlarged canvas with its last pixels included, as Pillow's rectangles are."""
    x0, y0, x1, y1 = (edge * times for edge in box)
    return x0, y0, x1 - 1, y1 - 1
