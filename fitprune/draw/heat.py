"""Heat maps: the attention that each visual token receives in the dense model, layer by layer, where it lies on the image.

Three rows per layer: cross-attention (from the text after the image), self-attention (from the image's own tokens), and their product,
by which FitPrune ranks. They are the numbers that recipes are fitted on (`observe`): for each query token the maximum over heads, then
the mean over the query tokens. Each quantity has one logarithmic scale for all layers, which spans three powers of ten at most; weaker
values have its darkest colour. The colour map is cividis, which is even in lightness and made for colour-blind readers.

Left out: attention between single tokens (a map per pair), and single heads.

    fitprune draw --formats heat
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FitPruneError
from ..stats import AttentionStats
from . import style
from .frames import check_number, fade
from .places import Places

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "cividis"
DECADES = 3  # powers of ten that a scale spans at most
SIDE = 1.25  # inches along a square panel
WIDEST = 13.0  # inches of a row of panels
UNITS = {  # row: what its colour bar says
    "cross": "cross-attention received,\nmean over the asking text tokens",
    "self": "self-attention received,\nmean over the asking visual tokens",
    "product": "product of the two",
}


def received(stats: AttentionStats, sample: int = 0) -> dict[str, np.ndarray]:
    """The three quantities of one sample, [L, n] each, by the names of `UNITS`."""
    tokens = int(stats.visual_tokens[sample])
    cross, intra = (tensor[sample, :, :tokens].numpy() for tensor in (stats.cross, stats.intra))
    return {"cross": cross, "self": intra, "product": cross * intra}


def heat(where: Places, stats: AttentionStats, sample: int = 0, layers: Sequence[int] | None = None, title: str | None = None) -> Figure:
    """Attention received per visual token: blocks of layers, three rows each.

    Args:
        where: Of the image that was observed.
        stats: From `observe`.
        sample: Which of its samples.
        layers: Layers to draw, from 0; default all. Those without attention (linear attention) are left out.
        title: Lines above the panels.
    Raises:
        FitPruneError: no matplotlib, no layer or one that there is not, an image of another number of tokens.
    """
    shown = list(range(stats.layers)) if layers is None else list(layers)
    if not shown:
        raise FitPruneError("there is nothing to draw: name a layer")
    for layer in shown:
        check_number("layer", layer, stats.layers, "the observed model")
    quantities = received(stats, sample)
    shown = [layer for layer in shown if layer in stats.deletable or quantities["self"][layer].any()]
    if not shown:
        raise FitPruneError("there is nothing to draw: none of these layers has attention")
    if (seen := quantities["cross"].shape[1]) != where.tokens:
        raise FitPruneError(f"statistics of {seen} visual tokens for an image of {where.tokens}: observe this image")
    wide, high = where.panel(SIDE)
    cells: list[int | None] = [None, *shown]  # the image itself, then the layers
    blocks = -(-len(cells) // max(1, int(WIDEST / wide)))
    columns = -(-len(cells) // blocks)  # blocks of one width, as far as it goes
    rows = len(UNITS) * blocks
    width = max(wide * columns + 0.4, 6.5)
    lines = style.wrapped(title, width, 11)
    total = rows * high + 0.3 * blocks + 0.22 * len(lines) + 0.05 * bool(lines)
    figure = style.figure(width, total + 0.8)
    parts: Any = figure.subfigures(2, 1, height_ratios=(total, 0.8))
    maps, legend = parts
    panels: Any = maps.subplots(rows, columns, squeeze=False)
    bars = legend.subplots(1, len(UNITS))
    for row, (name, values) in enumerate(quantities.items()):
        scale = _scale(values[shown])
        for index in range(blocks * columns):
            panel = panels[index // columns * len(UNITS) + row, index % columns]
            at = cells[index] if index < len(cells) else None
            if index == row == 0:
                style.image(panel, fade(where, np.ones(where.tokens, dtype=bool)))
                panel.set_title("the picture", fontsize=10)
            elif at is None:
                panel.set_axis_off()
            else:
                drawn = style.image(panel, spread(where, values[at]), cmap=COLOURS, norm=scale, interpolation="nearest")
                if row == 0:
                    panel.set_title(f"layer {at}", fontsize=10)
                if index == 1 or index % columns == 0:
                    panel.set_ylabel(name, fontsize=10)
        bar = legend.colorbar(drawn, cax=bars[row], orientation="horizontal", extend="min")
        ticks = np.geomspace(scale.vmin, scale.vmax, 4)
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], minor=False)
        bar.minorticks_off()
        bar.set_label(UNITS[name], fontsize=8)
        bar.ax.tick_params(labelsize=8)
    style.title(maps, lines, 11)
    return figure


def spread(where: Places, values: np.ndarray) -> np.ndarray:
    """Values [n] painted over the boxes and marks of their tokens, [height, width] of the canvas, NaN where there is none."""
    painted = np.full((where.canvas.height, where.canvas.width), np.nan, dtype=np.float32)
    for box, mark, value in zip(where.boxes, where.marks, values.tolist(), strict=True):
        if (place := box or mark) is not None:
            x0, y0, x1, y1 = place
            painted[y0:y1, x0:x1] = value
    return painted


def _scale(values: np.ndarray) -> Any:
    """A logarithmic scale up to the largest value."""
    from matplotlib.colors import LogNorm

    most = float(values.max()) or 1.0
    least = float(values[values > 0].min()) if (values > 0).any() else most / 10
    return LogNorm(min(max(least, most / 10**DECADES), most / 1.01), most, clip=True)
