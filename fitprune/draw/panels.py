"""Survivors side by side: the image as the model reads it, then what is left of it after each of some layers.

    with fitprune.prune(llava.model, recipe) as trace:
        llava.generate(inputs)
    draw.survivors(image, trace, loaded=llava).savefig("survivors.png")

Without `loaded` the tokens are taken for one square grid over the padded image, as LLaVA-1.5's are.

    fitprune draw --formats png
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import FitPruneError
from ..families import VLM
from ..trace import Trace
from . import style
from .frames import alive, check_number, fade, image_positions, stages
from .places import Places, on_grid, places

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 2.35  # inches along a square panel
WIDEST = 14.2  # inches of a row of panels


def survivors(
    image: Image.Image,
    trace: Trace,
    row: int = 0,
    layers: Sequence[int] | None = None,
    grid: tuple[int, int] | None = None,
    picture: int = 0,
    title: str | None = None,
    loaded: VLM | None = None,
) -> Figure:
    """The image as the model reads it, then what is left of it after a few layers: deleted patches are faded.

    Args:
        image: The one that was asked about.
        trace: From `prune`, after the forward.
        row: Row of the batch.
        layers: Layers to draw, from 0; default four, spread from the first layer that deletes to the last one.
        grid: (rows, columns) of patches, where `loaded` does not say it; default a square.
        picture: Which of the images of the row, from 0.
        title: Lines above the panels.
        loaded: The checkpoint that was asked; its family says where tokens lie.
    Returns:
        A matplotlib figure, one panel for the whole image and one per layer.
    Raises:
        FitPruneError: no matplotlib, an empty trace, a layer, row or image that it does not have, an image or a grid that does not fit.
    """
    where = _placed(image, trace, row, picture, grid, loaded)
    kept = alive(trace, where.tokens, row, picture)
    return panels(where, kept, deleting_layers(kept) if layers is None else layers, title)


def panels(where: Places, kept: np.ndarray, layers: Sequence[int], title: str | None = None) -> Figure:
    """`survivors` where it is known which tokens are alive after each layer: kept, bool [L, n]."""
    for layer in layers:
        check_number("layer", layer, len(kept), "this model")
    shown = [("the picture", stages(kept)[0]), *((f"after layer {at}", kept[at]) for at in layers)]
    wide, high = where.panel(SIDE)
    columns = _columns(len(shown), max(1, int(WIDEST / wide)))
    rows = -(-len(shown) // columns)
    lines = style.wrapped(title, wide * columns, 13)
    figure = style.figure(wide * columns, rows * (high + 0.52) + 0.24 * len(lines) + 0.05 * bool(lines))
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for cell, (caption, living) in zip(cells, shown, strict=False):
        style.image(cell, fade(where, living))
        cell.set_title(f"{caption}\n{int(living.sum())} of {where.tokens} tokens", fontsize=11, linespacing=1.35)
    for cell in cells[len(shown) :]:
        cell.set_axis_off()
    style.title(figure, lines, 13)
    return figure


def deleting_layers(kept: np.ndarray, count: int = 4) -> list[int]:
    """Up to `count` layers that delete tokens, evenly spread from the first to the last; the last layer if none do. kept: bool [L, n]."""
    living = [kept.shape[1], *kept.sum(1).tolist()]
    deleting = [layer for layer in range(len(kept)) if living[layer + 1] < living[layer]] or [len(kept) - 1]
    count = min(count, len(deleting))
    return [deleting[round(index * (len(deleting) - 1) / max(count - 1, 1))] for index in range(count)]


def _placed(image: Image.Image, trace: Trace, row: int, picture: int, grid: tuple[int, int] | None, vlm: VLM | None) -> Places:
    if vlm is not None:
        return places(vlm, image)
    tokens = len(image_positions(trace, row, picture))
    side = math.isqrt(tokens)
    rows, columns = grid or (side, side)
    if rows * columns != tokens:
        raise FitPruneError(
            f"{tokens} visual tokens do not make a grid of {rows} × {columns}: pass loaded=, the checkpoint that was "
            "asked, or grid=(rows, columns)"
        )
    return on_grid(image, rows, columns)


def _columns(panels: int, most: int) -> int:
    """How many panels to put into a row: all of them if they fit, else the number that leaves the fewest gaps."""
    if panels <= most:
        return panels
    return min(range(most, max(1, most // 2), -1), key=lambda columns: -panels % columns, default=1)
