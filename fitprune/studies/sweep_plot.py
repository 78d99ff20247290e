"""A sweep as a plot: a row per benchmark, its score against prefill FLOPs, time and key-value cache, a line per method.

The dense run is a point of its own, and its score a dashed line across. Colours and marks are draw/style.py's. An ablation, whose
runs cost the same, has a second plot: its score against what was varied, a line per ratio.

    fitprune sweep --ratios 30,60 --benchmarks gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..draw import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sweep_table import Point


STYLES = ("-", "--", ":")  # one after the other where there are more methods than colours


def save(points: Sequence[Point], folder: Path, varied: Mapping[str, Mapping[str, str]] | None = None) -> list[Path]:
    """Draws sweep.png and, of an ablation, ablation.png into a folder.

    Args:
        varied: As `ablation`.
    Returns:
        The files; none where a server scores every benchmark, so that there is nothing to draw.
    Raises:
        FitPruneError: no matplotlib, or a file cannot be written.
    """
    scored = [point for point in points if point.row.headline is not None]
    figures = {"sweep.png": curves(scored)} if scored else {}
    if scored and varied and any(point.ratio for point in scored):
        figures["ablation.png"] = ablation(scored, varied)
    for name, figure in figures.items():
        style.save(figure, folder / name)
    return [folder / name for name in figures]


def curves(points: Sequence[Point]) -> Figure:
    """Scores against what a question costs.

    Args:
        points: Runs that have a score.
    Raises:
        FitPruneError: no matplotlib.
    """
    costs = {
        "prefill GFLOPs": lambda point: point.row.prefill_gflops,
        "ms per question": lambda point: point.row.milliseconds,
        "key-value cache, MiB": lambda point: point.kv_bytes / 2**20,
    }
    titles = list(dict.fromkeys(point.row.benchmark for point in points))
    methods = [name for name in dict.fromkeys(point.method for point in points) if name != "dense"]
    figure = style.figure(10.5, 0.6 + 2.9 * len(titles))
    panels: Any = figure.subplots(len(titles), len(costs), squeeze=False)
    shown: dict[str, Any] = {}
    for title, line in zip(titles, panels, strict=True):
        here = [point for point in points if point.row.benchmark == title]
        for panel, (label, cost) in zip(line, costs.items(), strict=True):
            for index, method in enumerate(["dense", *methods]):
                found = [(cost(point), point.row.headline) for point in here if point.method == method]
                placed = sorted(pair for pair in found if pair[0] is not None)
                if not placed:
                    continue
                colour = "#888888" if not index else style.COLOURS[(index - 1) % len(style.COLOURS)]
                dashes = STYLES[(index - 1) // len(style.COLOURS) % len(STYLES)] if index else "-"
                if method == "dense":
                    panel.axhline(placed[0][1], color=colour, linewidth=1, linestyle="--")
                (shown[method],) = panel.plot(
                    *zip(*placed, strict=True), color=colour, linestyle=dashes, linewidth=1.5, markersize=4,
                    marker="*" if not index else style.MARKS[(index - 1) % len(style.MARKS)], label=method,
                )  # fmt: skip
            style.style_axes(panel, label)
        line[0].set_ylabel(f"{title}: {here[0].row.metric}")
    style.legend(figure, shown.values(), shown.keys(), 5)
    return figure


def ablation(points: Sequence[Point], varied: Mapping[str, Mapping[str, str]]) -> Figure:
    """Scores against what an ablation varies: a row per benchmark, a panel per choice, a line per ratio.

    Args:
        points: Runs that have a score.
        varied: By choice, the method of each value (`ablate.panels`).
    Raises:
        FitPruneError: no matplotlib.
    """
    titles = list(dict.fromkeys(point.row.benchmark for point in points))
    ratios = sorted({point.ratio for point in points if point.ratio})
    figure = style.figure(3.5 * max(len(varied), 2), 0.6 + 2.9 * len(titles))
    panels: Any = figure.subplots(len(titles), len(varied), squeeze=False, sharey="row")
    shown: dict[str, Any] = {}
    for title, line in zip(titles, panels, strict=True):
        here = {(one.method, one.ratio): one.row for one in points if one.row.benchmark == title}
        for panel, (choice, methods) in zip(line, varied.items(), strict=True):
            if dense := here.get(("dense", 0.0)):
                shown["dense"] = panel.axhline(dense.headline, color="#888888", linewidth=1, linestyle="--")
            for index, ratio in enumerate(ratios):
                rows = [here.get((method, ratio)) for method in methods.values()]
                heights = [float("nan") if row is None else row.headline for row in rows]
                (shown[f"{100 * ratio:.6g}% saved"],) = panel.plot(
                    range(len(methods)), heights, color=style.COLOURS[index % len(style.COLOURS)], markersize=5,
                    marker=style.MARKS[index % len(style.MARKS)], linestyle="-" if choice == "samples" else "",
                )  # fmt: skip
            panel.set_xticks(range(len(methods)), list(methods))
            panel.margins(x=0.15)
            style.style_axes(panel, choice)
        line[0].set_ylabel(f"{title}: {next(iter(here.values())).metric}")
    style.legend(figure, shown.values(), shown.keys(), 5)
    return figure
