"""Pictures of what pruning does: the patches that survive in an image, and recipes as curves.

    with fitprune.prune(llava.model, recipe) as trace:
        llava.generate(inputs)
    draw.survivors(image, trace).savefig("survivors.png")
    draw.recipes([Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 40, 60, 80)]).savefig("recipes.png")

Needs matplotlib, which `pip install 'fitprune[draw]'` brings. Figures are made without pyplot: no window, no display, no
state that outlives them. Colours are Okabe and Ito's, which colour-blind readers can tell apart; curves also differ in
their marks.

Left out: pictures of several tiles (LLaVA-NeXT), whose tokens are not one grid: draw each tile with `patches_first`.

    python scripts/readme_picture.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import FitPruneError
from .recipe import Recipe
from .trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less yellow
MARKS = "osD^vPX"
MEAN_COLOUR = (122, 116, 104)  # CLIP's, with which LLaVA-1.5 pads a picture to a square
OUTLINE = "#D55E00"
FADED = 0.9  # how far towards white a deleted patch goes


def _figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, drawn by Agg whatever the machine's default is."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise FitPruneError("drawing needs matplotlib: pip install 'fitprune[draw]'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(figure)
    return figure


def fade(image: Image.Image, kept: np.ndarray) -> Image.Image:
    """The picture with every patch that is not kept faded towards white.

    Args:
        image: Any picture; the grid is laid over the whole of it.
        kept: bool [rows, columns], True where the patch survives.
    """
    grid = Image.fromarray(np.where(kept, 0, round(255 * FADED)).astype(np.uint8))
    mask = grid.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, "white"), image.convert("RGB"), mask)


def kept_patches(
    trace: Trace, layer: int, row: int = 0, grid: tuple[int, int] | None = None, patches_first: int | None = None
) -> np.ndarray:
    """Which patches of a picture are alive after a layer; arguments and errors as `survivors`.

    Returns:
        bool [rows, columns]
    """
    if not len(trace):
        raise FitPruneError("this trace is empty: draw it after a forward with an image inside prune()")
    if not 0 <= layer < len(trace):
        raise FitPruneError(f"there is no layer {layer} to draw: this trace has layers 0 to {len(trace) - 1}")
    if not 0 <= row < len(trace.visual_tokens):
        raise FitPruneError(f"there is no row {row} to draw: this trace has rows 0 to {len(trace.visual_tokens) - 1}")
    tokens = trace.visual_tokens[row]
    rows, columns = grid or (math.isqrt(tokens), math.isqrt(tokens))
    if (patches_first is None and rows * columns != tokens) or rows * columns > tokens:
        raise FitPruneError(
            f"{tokens} visual tokens do not make a grid of {rows} × {columns}: pass grid=(rows, columns), and "
            "patches_first= where a row has several images"
        )
    first = trace.images[row][0][0] if patches_first is None else patches_first
    at = trace.visual[layer][row] - first
    kept = np.zeros(rows * columns, dtype=bool)
    kept[at[(at >= 0) & (at < len(kept))].numpy()] = True
    return kept.reshape(rows, columns)


def survivors(
    image: Image.Image,
    trace: Trace,
    row: int = 0,
    layers: Sequence[int] | None = None,
    grid: tuple[int, int] | None = None,
    patches_first: int | None = None,
    title: str | None = None,
) -> Figure:
    """The picture as the model sees it, then what is left of it after a few layers: deleted patches are faded.

    Args:
        image: The picture that was asked about. If it is not square it is padded as LLaVA-1.5 does; with a `grid` that
            is not square it is taken as it is.
        trace: From `prune`, after the forward.
        row: Row of the batch.
        layers: Layers to draw, from 0; default four, spread from the first layer that deletes to the last one.
        grid: (rows, columns) of patches; default a square.
        patches_first: Position of the picture's first token in the sequence; default that of the first visual one.
        title: A line above the panels.
    Returns:
        A matplotlib figure, one panel for the whole picture and one per layer.
    Raises:
        FitPruneError: no matplotlib, an empty trace, a layer or row that it does not have, a grid that does not fit.
    """
    shown = deleting_layers(trace, row) if layers is None else list(layers)
    kept = [kept_patches(trace, layer, row, grid, patches_first) for layer in shown]
    if grid is None or grid[0] == grid[1]:
        from .families.llava import pad_to_square

        image = pad_to_square(image.convert("RGB"), MEAN_COLOUR)
    side = 2.35
    figure = _figure(side * (len(shown) + 1), side * image.height / image.width + 0.52 + 0.24 * bool(title))
    panels = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    total = kept[0].size if kept else trace.visual_tokens[row]
    image = _enlarged(image.convert("RGB"))
    pictures = [image, *(fade(image, alive) for alive in kept)]
    captions = [("the picture", total), *(_caption(layer, alive) for layer, alive in zip(shown, kept, strict=True))]
    edges = [[], *map(outline, kept)]
    for panel, picture, lines, (caption, alive) in zip(panels, pictures, edges, captions, strict=True):
        panel.imshow(picture, extent=(0, 1, 1, 0), aspect=image.height / image.width)
        for (x0, y0), (x1, y1) in lines:
            panel.plot((x0, x1), (y0, y1), color=OUTLINE, linewidth=1, solid_capstyle="projecting")
        panel.set_title(f"{caption}\n{alive} of {total} tokens", fontsize=11, linespacing=1.35)
        panel.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        for spine in panel.spines.values():
            spine.set(color="#888888", linewidth=0.8)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _caption(layer: int, alive: np.ndarray) -> tuple[str, int]:
    return f"after layer {layer}", int(alive.sum())


def outline(kept: np.ndarray) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The edges between patches that are kept and patches that are not, as (x, y) pairs in a square of 1 × 1.

    Args:
        kept: bool [rows, columns]
    """
    rows, columns = kept.shape
    across, along = np.argwhere(kept[1:] != kept[:-1]), np.argwhere(kept[:, 1:] != kept[:, :-1])
    edges = [((column, row + 1), (column + 1, row + 1)) for row, column in across.tolist()]
    edges += [((column + 1, row), (column + 1, row + 1)) for row, column in along.tolist()]
    return [((x0 / columns, y0 / rows), (x1 / columns, y1 / rows)) for (x0, y0), (x1, y1) in edges]


def _enlarged(image: Image.Image, at_least: int = 700) -> Image.Image:
    """A small picture made larger before patches are faded, so that their edges come out sharp."""
    times = max(1, math.ceil(at_least / max(image.size)))
    return image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)


def deleting_layers(trace: Trace, row: int = 0, count: int = 4) -> list[int]:
    """Up to `count` layers that delete tokens of a row, evenly spread from the first to the last; the last layer if none do."""
    if not len(trace):
        raise FitPruneError("this trace is empty: draw it after a forward with an image inside prune()")
    if not 0 <= row < len(trace.visual_tokens):
        raise FitPruneError(f"there is no row {row} to draw: this trace has rows 0 to {len(trace.visual_tokens) - 1}")
    alive = [trace.visual_tokens[row], *(len(rows[row]) for rows in trace.visual)]
    deleting = [layer for layer in range(len(trace)) if alive[layer + 1] < alive[layer]] or [len(trace) - 1]
    count = min(count, len(deleting))
    return [deleting[round(index * (len(deleting) - 1) / max(count - 1, 1))] for index in range(count)]


def recipes(shown: Sequence[Recipe], labels: Sequence[str] | None = None) -> Figure:
    """How many visual tokens each recipe leaves alive after each layer.

    Args:
        shown: Recipes, of any models; with different reference counts they are drawn as shares. Those that fit any
            model (`Recipe.step`) are drawn to the depth of the deepest other one.
        labels: One per recipe; default its source, model, and what it saves.
    Returns:
        A matplotlib figure with one curve per recipe.
    Raises:
        FitPruneError: no matplotlib, nothing to draw, or not one label per recipe.
    """
    if not shown:
        raise FitPruneError("no recipe to draw: give at least one")
    names = [_label(recipe) for recipe in shown] if labels is None else list(labels)
    if len(names) != len(shown):
        raise FitPruneError(f"{len(shown)} recipes with {len(names)} labels: give one label per recipe")
    counts = {recipe.visual_tokens for recipe in shown if recipe.scaling != "fraction"}
    tokens = counts.pop() if len(counts) == 1 else None  # None: shares
    depth = max(len(recipe.counts) for recipe in shown)
    figure = _figure(7.0, 3.9 + 0.12 * len(shown))
    panel: Any = figure.subplots()
    for index, (recipe, name) in enumerate(zip(shown, names, strict=True)):
        reference = tokens or (100 if recipe.scaling == "fraction" else recipe.visual_tokens)
        alive = recipe.alive(reference, depth if recipe.num_layers is None else None)
        panel.step(
            range(len(alive)),
            [count * (tokens or 100) / reference for count in alive],
            where="mid",
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linewidth=1.8,
            marker=MARKS[index % len(MARKS)],
            markersize=4,
            markevery=(index % 4, 4),
        )
    panel.axhline(tokens or 100, color="#888888", linewidth=1, linestyle="--", label="dense")
    panel.set_xlabel("decoder layer")
    panel.set_ylabel(
        f"visual tokens alive after the layer, of {tokens}" if tokens else "visual tokens alive after the layer, %"
    )
    panel.set_ylim(0, 1.04 * (tokens or 100))
    panel.margins(x=0.01)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _label(recipe: Recipe) -> str:
    if recipe.source == "step":
        return f"step: keep {1 - recipe.counts[-1]:.0%} after layer {len(recipe.counts) - 1}"
    parts = [recipe.source, recipe.model, None if recipe.reduction_ratio is None else f"{recipe.reduction_ratio:.0%}"]
    name = " ".join(part for part in parts if part)
    return name if recipe.achieved is None else f"{name}, saves {recipe.achieved:.1%}"
