"""The prefill's times as a picture: a bar per kind with its quartiles, and the ideal as a line across each recipe's bars.

The ideal is the best dense time divided by the ideal speed-up. Colours are draw/style.py's, which colour-blind readers can tell
apart; every bar is also named below it and has its figure above it.

    fitprune bench --repeats 3 --skip vision decode --plot /tmp/bench.png
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..draw import style
from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("flash", "compiled", "pruned", "graphs", "bare", "eager-maps")
COLOURS = {"dense": "#999999", **dict(zip(KINDS, style.COLOURS, strict=False))}  # each kind has its own for good
GAP = 0.7  # between groups of bars, in bars


def check() -> None:
    """Finds out before anything is timed whether a picture can be made; FitPruneError if not."""
    style.figure(1, 1)


def save(figures: dict[str, Any], path: str | Path) -> None:
    """Draws the figures into a PNG file; FitPruneError without matplotlib or where it cannot be written."""
    made, data = prefill(figures), io.BytesIO()
    made.savefig(data, format="png")
    write_atomically(path, data.getvalue())


def prefill(figures: dict[str, Any]) -> Figure:
    """Bars of the prefill's times.

    Args:
        figures: What `measure` returns, with the shape's name.
    Raises:
        FitPruneError: no matplotlib.
    """
    groups = [("no pruning", figures["dense"], None)]
    groups += [(recipe["name"], recipe["prefill"], recipe["ideal_speedup"]) for recipe in figures["recipes"]]
    bars = sum(len(rows) for _, rows, _ in groups)
    unit, scale = ("s", 1.0) if figures["dense"]["dense"]["seconds"]["median"] >= 1 else ("ms", 1000.0)
    base = figures["dense"][figures["best_dense"]]["seconds"]["median"] * scale

    figure = style.figure(2.2 + 0.85 * bars + 0.5 * len(groups), 4.4)
    panel: Any = figure.subplots()
    at, ticks, labels, line = 0.0, [], [], None
    top = scale * max(row["seconds"]["high"] for _, rows, _ in groups for row in rows.values())
    for group, rows, ideal in groups:
        first = at
        for name, row in rows.items():
            middle, low, high = (scale * row["seconds"][key] for key in ("median", "low", "high"))
            panel.bar(at, middle, width=0.8, color=COLOURS.get(name, "white"), edgecolor="black", linewidth=0.6)
            panel.errorbar(at, middle, [[middle - low], [high - middle]], color="black", capsize=4, linewidth=1.2)
            panel.text(at, high + 0.015 * top, f"{middle:.3g}", ha="center", va="bottom", fontsize=9)
            ticks.append(at)
            labels.append(name)
            at += 1
        if ideal is not None:
            line = panel.hlines(base / ideal, first - 0.5, at - 0.5, color="black", linestyle="--", linewidth=1.6)
        panel.text((first + at - 1) / 2, -0.13, group, ha="center", va="top", transform=panel.get_xaxis_transform(), fontsize=11)
        at += GAP
    if line is not None:
        line.set_label(f"ideal: {figures['best_dense']} / ideal speed-up by FLOPs")
        figure.legend(loc="outside upper right", frameon=False, fontsize=9)
    panel.set_xticks(ticks, labels, fontsize=9)
    panel.set_ylim(0, 1.1 * top)
    panel.set_ylabel(f"prefill, {unit} (median, quartiles of {figures['repeats']})")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.3, linewidth=0.6)
    panel.set_axisbelow(True)
    before, visual, after = figures["tokens"]
    prompt = f"batch {figures['batch']}, {before}+{visual}+{after} tokens, {figures['dtype']}"
    made_on = f"{figures['device']}, {figures['date']}"
    panel.set_title(f"{figures['shape']}, {prompt}\n{made_on}", fontsize=10, loc="left")
    return figure
