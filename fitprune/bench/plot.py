"""The prefill's times as a plot: a bar per variant with its quartiles, and the ideal as a line across each recipe's bars.

The ideal is the best dense time divided by the ideal speed-up. Colours are draw/style.py's, which colour-blind readers can tell
apart; every bar is also named below it and has its figure above it.

    fitprune bench --repeats 3 --skip vision decode --plot /tmp/bench.png
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..draw import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIANTS = ("flash", "compiled", "pruned", "graphs", "bare", "eager-maps")
COLOURS = {"dense": "#999999", **dict(zip(VARIANTS, style.COLOURS, strict=False))}  # by variant, the same in every plot
GAP = 0.7  # between groups of bars, in bars


def plot(results: dict[str, Any]) -> Figure:
    """Bars of the prefill's times, from what `measure` returns, with the shape's name; FitPruneError without matplotlib."""
    groups = [("no pruning", results["dense"], None)]
    groups += [(recipe["name"], recipe["prefill"], recipe["ideal_speedup"]) for recipe in results["recipes"]]
    bars = sum(len(rows) for _, rows, _ in groups)
    unit, scale = ("s", 1.0) if results["dense"]["dense"]["seconds"]["median"] >= 1 else ("ms", 1000.0)
    base = results["dense"][results["best_dense"]]["seconds"]["median"] * scale

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
        line.set_label(f"ideal: {results['best_dense']} / ideal speed-up by FLOPs")
        figure.legend(loc="outside upper right", frameon=False, fontsize=9)
    panel.set_xticks(ticks, labels, fontsize=9)
    panel.set_ylim(0, 1.1 * top)
    panel.set_ylabel(f"prefill, {unit} (median, quartiles of {results['repeats']})")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", alpha=0.3, linewidth=0.6)
    panel.set_axisbelow(True)
    before, visual, after = results["tokens"]
    prompt = f"batch {results['batch']}, {before}+{visual}+{after} tokens, {results['dtype']}"
    panel.set_title(f"{results['shape']}, {prompt}\n{results['device']}, {results['date']}", fontsize=10, loc="left")
    return figure
