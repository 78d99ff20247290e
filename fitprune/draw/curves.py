"""Recipes as curves: how many visual tokens each layer deletes, and how many are left after it; several overlaid.

draw.recipes([Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 40, 60, 80)]).savefig("recipes.png")

fitprune draw --recipes llava-v1.5-7b:0.2,0.4,0.6,0.8
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FitPruneError
from ..recipe import Recipe
from . import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure = style.figure(7.0, 3.9 + 0.12 * len(shown))
    panel: Any = figure.subplots()
    for index, (recipe, name) in enumerate(zip(shown, names, strict=True)):
        reference = tokens or (100 if recipe.scaling == "fraction" else recipe.visual_tokens)
        alive = recipe.alive(reference, depth if recipe.num_layers is None else None)
        panel.step(
            range(len(alive)),
            [count * (tokens or 100) / reference for count in alive],
            where="mid",
            label=name,
            color=style.COLOURS[index % len(style.COLOURS)],
            linewidth=1.8,
            marker=style.MARKS[index % len(style.MARKS)],
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
