"""Recipes as curves: how many visual tokens each layer deletes, and how many are left after it; several overlaid.

draw.recipes([Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 40, 60, 80)]).savefig("recipes.png")

fitprune draw --recipes llava-v1.5-7b:0.2,0.4,0.6,0.8
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import FitPruneError
from ..recipe import Recipe
from . import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def recipes(
    shown: Sequence[Recipe], labels: Sequence[str] | None = None, visual_tokens: int | None = None, title: str | None = None
) -> Figure:
    """How many visual tokens each recipe deletes in each layer, and how many it leaves alive after it.

    Args:
        shown: Recipes of any models, drawn as shares where their reference counts differ; those for any model (`Recipe.step`) to the
            depth of the deepest other one.
        labels: One per recipe; default its source, model, and what it saves.
        visual_tokens: Draw them all for an image of that many tokens.
        title: A line above the panels.
    Returns:
        A matplotlib figure of two panels, deletions above what is alive, with one curve per recipe in each.
    Raises:
        FitPruneError: no matplotlib, nothing to draw, or not one label per recipe.
    """
    if not shown:
        raise FitPruneError("no recipe to draw: give at least one")
    names = [label(recipe) for recipe in shown] if labels is None else list(labels)
    if len(names) != len(shown):
        raise FitPruneError(f"{len(shown)} recipes with {len(names)} labels: give one label per recipe")
    counts = {recipe.visual_tokens for recipe in shown if recipe.scaling != "fraction"}
    tokens = visual_tokens or (counts.pop() if len(counts) == 1 else None)  # None: shares
    depth = max(len(recipe.counts) for recipe in shown)
    figure = style.figure(7.4, 5.6 + 0.12 * len(shown) + 0.3 * bool(title))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    for index, (recipe, name) in enumerate(zip(shown, names, strict=True)):
        reference = tokens or (100 if recipe.scaling == "fraction" else recipe.visual_tokens)
        alive = recipe.alive(reference, depth if recipe.num_layers is None else None)
        kept = [count * (tokens or 100) / reference for count in alive]
        gone = [before - after for before, after in pairwise([float(tokens or 100), *kept])]
        look = style.curve(index)
        above.step(range(len(gone)), gone, where="mid", label=name, **look)
        below.step(range(len(kept)), kept, where="mid", label=name, **look, markevery=(index % 4, 4))
    below.axhline(tokens or 100, color=style.BORDER, linewidth=1, linestyle="--", label="dense")
    unit = f"of {tokens}" if tokens else "in %"
    above.set_ylabel(f"visual tokens deleted\nin the layer, {unit}")
    below.set_ylabel(f"visual tokens alive\nafter the layer, {unit}")
    below.set_xlabel("decoder layer, counted from 0")
    below.set_ylim(0, 1.04 * (tokens or 100))
    below.xaxis.get_major_locator().set_params(integer=True)
    for panel in (above, below):
        panel.margins(x=0.01)
        style.style_axes(panel)
    above.set_ylim(bottom=0)
    if title:
        above.set_title(title, fontsize=11)
    handles, labels = below.get_legend_handles_labels()
    style.legend(figure, handles, labels, 2)
    return figure


def label(recipe: Recipe) -> str:
    """A recipe's source, model, ratio and saving in a few words."""
    if recipe.source == "step":
        return f"step: keep {1 - recipe.counts[-1]:.0%} after layer {len(recipe.counts) - 1}"
    words = [recipe.source, recipe.model, None if recipe.reduction_ratio is None else f"{recipe.reduction_ratio:.0%}"]
    name = " ".join(word for word in words if word)
    return name if recipe.achieved is None else f"{name}, saves {recipe.achieved:.1%}"
