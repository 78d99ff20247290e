"""A scene as pixels, in integer arithmetic: the same bytes on every machine.

The background is noise in octaves: a few random pixels, enlarged by Pillow's fixed-point resampling, more noise added,
enlarged again.
Shapes are inequalities between integers on a grid four times as fine, averaged. Pillow's own drawing is not used: its
polygons and ellipses have changed between versions.

    python -m embedded.render held-out 0 /tmp/picture.png
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import numpy as np
from PIL import Image

from .glyphs import string_mask
from .scene import SIDE, Scene, Split, Text, draw, stream

FINE = 4  # sub-pixels along a pixel's edge
OCTAVES = ((4, 52), (12, 36), (42, 16))  # (pixels along the edge, range of the noise added there)
Grid = np.ndarray[Any, np.dtype[np.int64]]

# Inside or not, for sub-pixel offsets x, y from the middle and a radius r (all in sub-pixels; y points down).
INSIDE: dict[str, Callable[[Grid, Grid, int], Any]] = {
    "circle": lambda x, y, r: x * x + y * y <= r * r,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) * 8 <= 7 * r,
    "triangle": lambda x, y, r: (y * 10 <= 8 * r) & (2 * abs(x) * 9 <= (y + r) * 11),
    "diamond": lambda x, y, r: 4 * abs(x) + 3 * abs(y) <= 3 * r,
    "star": lambda x, y, r: _star(x, y, r),
    "cross": lambda x, y, r: (np.minimum(abs(x), abs(y)) * 3 <= r) & (np.maximum(abs(x), abs(y)) <= r),
}


def _star(x: Grid, y: Grid, r: int) -> Any:
    """A five-pointed star: inside at least four of the five half-planes whose borders are its edges; its tips are cut by the mask."""
    normals = ((0, -1000), (951, -309), (588, 809), (-588, 809), (-951, -309))  # edges face these ways, in thousandths
    return sum((x * a + y * b <= 382 * r).astype(np.int64) for a, b in normals) >= 4


@cache
def shape_mask(kind: str, radius: int) -> np.ndarray:
    """How much of each pixel a shape covers, uint8 [2 radius + 1, 2 radius + 1]."""
    size = 2 * radius + 1
    offsets = 2 * np.arange(size * FINE, dtype=np.int64) + 1 - size * FINE  # in half sub-pixels
    inside = INSIDE[kind](offsets[None, :], offsets[:, None], 2 * FINE * radius)
    counts = inside.reshape(size, FINE, size, FINE).sum(axis=(1, 3), dtype=np.int64)
    return (counts * 255 // FINE**2).astype(np.uint8)


def background(random: np.random.RandomState) -> np.ndarray:
    """Coloured noise, uint8 [SIDE, SIDE, 3]."""
    canvas = np.full((1, 1, 3), random.randint(45, 200)) + random.randint(-20, 21, 3)
    for size, strength in OCTAVES:
        noise = random.randint(-strength // 2, strength // 2 + 1, (size, size, 3))
        canvas = (_enlarge(canvas, size).astype(np.int64) + noise).clip(0, 255)
    return _enlarge(canvas, SIDE)


def _enlarge(canvas: np.ndarray, size: int) -> np.ndarray:
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, SIDE pixels square."""
    canvas = background(stream(scene.split, scene.index, purpose=1))
    for shape in scene.shapes:
        mask = shape_mask(shape.kind, shape.radius)
        _blend(canvas, mask, shape.x - shape.radius, shape.y - shape.radius, shape.rgb)
    for text in scene.texts:
        _write(canvas, text)
    return Image.fromarray(canvas)


def _write(canvas: np.ndarray, text: Text) -> None:
    mask = string_mask(text.text, text.height)
    rows, columns = mask.shape
    area = canvas[text.y : text.y + rows, text.x : text.x + columns]
    if text.plate:
        light = text.plate == "light"
        canvas[text.y - 1 : text.y + rows + 1, text.x - 1 : text.x + columns + 1] = 240 if light else 20
    else:
        light = int(area.sum()) >= 128 * area.size
    _blend(canvas, mask, text.x, text.y, (15, 15, 15) if light else (245, 245, 245))


def _blend(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, rgb: tuple[int, int, int]) -> None:
    """Paints `rgb` where the mask says, in place."""
    area = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    alpha = mask.astype(np.int64)[..., None]
    area[:] = (area.astype(np.int64) * (255 - alpha) + np.array(rgb) * alpha + 127) // 255


def main(split: str, index: str, path: str) -> None:
    if split not in get_args(Split):
        raise SystemExit(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
    render(draw(split, int(index))).save(path)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
