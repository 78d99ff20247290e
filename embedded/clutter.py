"""Cluttered pictures, for the judge: the same shapes, strings and questions, but nowhere a plain spot.

Backgrounds are patches of texture (textures.py); under and over the things that questions are about lies what no question
is about: lines, rings, blobs, scribbles. Everything stays answerable. Shapes are filled and of vivid colours, what lies
about is never of one of these; a thing in front hides at most a fifth of a shape, nothing lies in front of a string; strings
stand on the texture itself with a rim of the opposite tone, or on a plate with a texture of its own; scribbles are strokes
of random turns, taller or flatter than characters. 224 pixels and 5 × 5 cells, so that things are as small as ever.

    python -m embedded.clutter held-out 0 /tmp/picture.png
"""

from __future__ import annotations

import sys
from math import isqrt
from typing import get_args

import numpy as np
from PIL import Image

from .glyphs import string_mask
from .render import _blend, shape_mask
from .scene import Draw, Layout, Scene, Shape, Split, Text, draw, stream
from .textures import FIELDS, background, plane, ramp

CLUTTER = Layout(grid=5, cell=44, margin=2, purpose=10, shapes=9, strings=11)
SIDE = CLUTTER.side
DULL = (
    (120, 80, 45), (110, 108, 50), (28, 32, 78), (92, 26, 40), (128, 128, 128), (214, 196, 162), (238, 238, 238), (16, 16, 16),
    (22, 84, 86), (168, 164, 190), (172, 208, 184), (84, 64, 92), (158, 128, 120),
)  # colours of what no question is about  # fmt: skip
HIDDEN = 5  # one part in so many of a shape may be hidden, at most
FILLED = 0.66  # of its box a blob fills less; a circle fills 0.79
Random = np.random.RandomState


def scene(split: Split, index: int) -> Scene:
    """The cluttered scene of this number; independent of the plain one."""
    return draw(split, index, CLUTTER)


SCENES: dict[str, Draw] = {"plain": draw, "cluttered": scene}  # what `--scenes` can be


def picture(scene: Scene) -> Image.Image:
    """The picture of a cluttered scene, RGB, SIDE pixels square."""
    random = stream(scene.split, scene.index, purpose=11)
    canvas = background(random, SIDE)
    for _ in range(int(random.randint(9, 18))):
        mask, corner = (_line, _ring, _blob, _blob, _scribble, _scribble)[random.randint(6)](random)
        _stain(canvas, mask, corner, random)
    taken = np.zeros((SIDE, SIDE), dtype=np.uint8)  # 1 + number of the shape that a pixel belongs to
    for number, shape in enumerate(scene.shapes, start=1):
        _put(canvas, taken, number, shape, random)
    _cover(canvas, taken, scene, random)
    for text in scene.texts:
        _write(canvas, text, random)
    canvas = (canvas + random.randint(-7, 8, (SIDE, SIDE, 1))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(canvas)


def _line(random: Random, wide: int = 5) -> tuple[np.ndarray, tuple[int, int]]:
    """A straight line between two random places: a mask [h, w] of the whole picture, and its corner (x, y)."""
    ends = random.randint(0, SIDE, (2, 2))
    return _stroke(*plane(SIDE), ends[0], ends[1], int(random.randint(1, wide))), (0, 0)


def _stroke(x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray, wide: int) -> np.ndarray:
    """Where pixels (x, y) lie within half of `wide` of the segment, bool."""
    along_x, along_y = int(end[0] - start[0]), int(end[1] - start[1])
    from_x, from_y = x - int(start[0]), y - int(start[1])
    length = along_x**2 + along_y**2
    dot, cross = from_x * along_x + from_y * along_y, from_x * along_y - from_y * along_x
    return (2 * np.abs(cross) <= wide * isqrt(length)) & (dot >= -isqrt(length)) & (dot <= length + isqrt(length))


def _ring(random: Random) -> tuple[np.ndarray, tuple[int, int]]:
    """An open ring, thin enough not to be a filled circle."""
    radius, wide = int(random.randint(8, 40)), int(random.randint(2, 5))
    x, y = (axis - radius for axis in np.mgrid[: 2 * radius + 1, : 2 * radius + 1][::-1])
    away = x * x + y * y
    mask = (away <= radius**2) & (away >= (radius - wide) ** 2)
    cut = random.randint(-3, 4, 2)
    return mask & ~((x * cut[0] + y * cut[1] > 0) & (abs(x * cut[1] - y * cut[0]) * 2 < radius * 3)), _place(random, mask)


def _blob(random: Random) -> tuple[np.ndarray, tuple[int, int]]:
    """Three to six ellipses, each with its middle in the one before, too ragged for a shape with a name: they fill little of their box."""
    size = int(random.randint(30, 71))
    y, x = np.mgrid[:size, :size]
    while True:
        mask = np.zeros((size, size), dtype=bool)
        middle_x, middle_y = (size // 2, size // 2)
        for _ in range(int(random.randint(3, 7))):
            wide, high = random.randint(size // 9, size // 4, 2)
            mask |= ((x - middle_x) * high) ** 2 + ((y - middle_y) * wide) ** 2 <= (wide * high) ** 2
            middle_x += int(random.randint(-wide, wide + 1))
            middle_y += int(random.randint(-high, high + 1))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if mask.mean() < FILLED:
            return mask, _place(random, mask)


def _scribble(random: Random) -> tuple[np.ndarray, tuple[int, int]]:
    """A stroke of random turns from left to right, as if written, but of no characters."""
    count, step, high = int(random.randint(4, 12)), int(random.randint(3, 9)), int(random.randint(5, 26))
    x = 2 + np.arange(count) * step
    y = 2 + random.randint(0, high, count)
    mask = np.zeros((high + 4, int(x[-1]) + 3), dtype=bool)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    wide = int(random.randint(1, 4))
    for at in range(count - 1):
        mask |= _stroke(columns, rows, np.array((x[at], y[at])), np.array((x[at + 1], y[at + 1])), wide)
    return mask, _place(random, mask)


def _place(random: Random, mask: np.ndarray) -> tuple[int, int]:
    """A random corner (x, y) for a mask; it may stick out of the picture by a third."""
    high, wide = mask.shape
    return int(random.randint(-wide // 3, SIDE - wide + wide // 3)), int(random.randint(-high // 3, SIDE - high + high // 3))


def _inside(mask: np.ndarray, corner: tuple[int, int]) -> tuple[np.ndarray, slice, slice]:
    """The part of a mask that lies in the picture, and its rows and columns there."""
    x, y = corner
    top, left = max(0, -y), max(0, -x)
    kept = mask[top : SIDE - y, left : SIDE - x]
    return kept, slice(y + top, y + top + kept.shape[0]), slice(x + left, x + left + kept.shape[1])


def _stain(canvas: np.ndarray, mask: np.ndarray, corner: tuple[int, int], random: Random) -> None:
    """Paints a mask in place, in a dull colour or, every third time, in a texture."""
    kept, rows, columns = _inside(mask, corner)
    if random.randint(3):
        paint = (np.array(DULL[random.randint(len(DULL))]) + random.randint(-12, 13, 3)).clip(0, 255).astype(np.uint8)
        canvas[rows, columns][kept] = paint
    else:
        field = FIELDS[random.randint(len(FIELDS))](random, max(8, *kept.shape))[: kept.shape[0], : kept.shape[1]]
        canvas[rows, columns][kept] = ramp(random)[field][kept]


def _put(canvas: np.ndarray, taken: np.ndarray, number: int, shape: Shape, random: Random) -> None:
    """Paints a shape, lit from one side."""
    mask = shape_mask(shape.kind, shape.radius)
    size = len(mask)
    x, y = shape.x - shape.radius, shape.y - shape.radius
    slope = random.randint(-14, 15, 2)
    column, row = plane(size)
    light = ((column - shape.radius) * slope[0] + (row - shape.radius) * slope[1]) // shape.radius
    paint = (np.array(shape.rgb) + light[..., None]).clip(0, 255)
    area = canvas[y : y + size, x : x + size]
    alpha = mask.astype(np.int64)[..., None]
    area[:] = (area.astype(np.int64) * (255 - alpha) + paint * alpha + 127) // 255
    taken[y : y + size, x : x + size][mask > 127] = number


def _cover(canvas: np.ndarray, taken: np.ndarray, scene: Scene, random: Random) -> None:
    """Puts a few things in front of shapes; whatever would hide too much of one is left out."""
    whole = np.bincount(taken.ravel(), minlength=len(scene.shapes) + 1)
    left = whole.copy()
    for _ in range(int(random.randint(1, 6))):
        shape = scene.shapes[random.randint(len(scene.shapes))]
        if random.randint(2):
            ends = random.randint(0, SIDE, (2, 2))
            ends[1] = 2 * np.array((shape.x, shape.y)) - ends[0] + random.randint(-12, 13, 2)  # through the shape
            mask, corner = _stroke(*plane(SIDE), ends[0], ends[1], int(random.randint(1, 3))), (0, 0)
        else:
            mask, (high, wide) = _blob(random)[0], (0, 0)
            high, wide = mask.shape
            side = shape.radius + max(high, wide) // 4
            turn = random.randint(-side, side + 1, 2)
            corner = (shape.x + int(turn[0]) - wide // 2, shape.y + int(turn[1]) - high // 2)
        kept, rows, columns = _inside(mask, corner)
        hides = np.bincount(taken[rows, columns][kept], minlength=len(whole))
        if ((whole - left + hides) * HIDDEN > whole)[1:].any():
            continue
        left -= hides
        taken[rows, columns][kept] = 0
        _stain(canvas, mask, corner, random)


def _write(canvas: np.ndarray, text: Text, random: Random) -> None:
    """Writes a string: on a plate with a texture, or on what is there with a rim of the opposite tone."""
    mask = string_mask(text.text, text.height)
    rows, columns = mask.shape
    light = bool(random.randint(2)) if not text.plate else text.plate == "light"  # the ground's
    area = canvas[text.y - 1 : text.y + rows + 1, text.x - 1 : text.x + columns + 1]
    if text.plate:
        field = FIELDS[random.randint(len(FIELDS))](random, max(area.shape))[: area.shape[0], : area.shape[1]].astype(np.int64)
        tint = random.randint(-18, 19, 3)
        area[:] = ((195 if light else 5) + field[..., None] * 45 // 255 + tint).clip(0, 255)
    else:
        rim = np.zeros((rows + 2, columns + 2), dtype=np.uint8)
        for down in range(3):
            for right in range(3):
                part = rim[down : down + rows, right : right + columns]
                np.maximum(part, mask, out=part)
        _blend(canvas, rim, text.x - 1, text.y - 1, (235, 235, 235) if light else (20, 20, 20))
    ink = (15 if light else 240) + random.randint(-15, 16, 3)
    _blend(canvas, mask, text.x, text.y, tuple(ink.clip(0, 255)))


def main(split: str, index: str, path: str) -> None:
    if split not in get_args(Split):
        raise SystemExit(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
    picture(scene(split, int(index))).save(path)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
