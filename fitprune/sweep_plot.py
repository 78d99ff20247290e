"""A sweep as a picture: a row per benchmark, its score against prefill FLOPs, time and key-value cache, a line per method.

The dense run is a point of its own, and its score a dashed line across. Colours and marks are draw/style.py's.

    fitprune sweep --ratios 30,60 --benchmarks gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .draw import style
from .files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sweep import Point


def save(points: Sequence[Point], path: str | Path) -> bool:
    """Draws the points into a PNG file; False where a server scores every benchmark, so that there is nothing to draw.

    Raises:
        FitPruneError: no matplotlib, or the file cannot be written.
    """
    scored = [point for point in points if point.row.headline is not None]
    if not scored:
        return False
    data = io.BytesIO()
    curves(scored).savefig(data, format="png")
    write_atomically(path, data.getvalue())
    return True


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
                dashes = "--" if index > len(style.COLOURS) else "-"  # more methods than colours
                if method == "dense":
                    panel.axhline(placed[0][1], color=colour, linewidth=1, linestyle="--")
                (shown[method],) = panel.plot(
                    *zip(*placed, strict=True), color=colour, linestyle=dashes, linewidth=1.5, markersize=4,
                    marker="*" if not index else style.MARKS[(index - 1) % len(style.MARKS)], label=method,
                )  # fmt: skip
            panel.set_xlabel(label)
            panel.grid(alpha=0.3, linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"{title}: {here[0].row.metric}")
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=5, frameon=False, fontsize=8.5)
    return figure
