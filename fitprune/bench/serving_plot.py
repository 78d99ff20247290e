"""Load curves: requests a second and time to the first token by how many ask at once, a line for each server.

python -m fitprune.bench.serving --output runs/serving
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..draw import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"  # the server without the plugin


def plot(results: dict[str, Any]) -> Figure:
    """Two panels, from what `serving.measure` returns; the ideal is dense times the speed-up by FLOPs."""
    figure = style.figure(9, 3.6)
    rate, first = figure.subplots(1, 2)
    servers = results["servers"]
    for (name, rows), colour, mark in zip(servers.items(), style.COLOURS, style.MARKS, strict=False):
        label = "dense (vLLM as it is)" if name == DENSE else f"pruned, ranked by {name}"
        at = [row["concurrency"] for row in rows]
        rate.plot(at, [row["request_throughput"] for row in rows], color=colour, marker=mark, label=label)
        first.plot(at, [row["mean_ttft_ms"] / 1000 for row in rows], color=colour, marker=mark)
    if DENSE in servers:
        rows = servers[DENSE]
        promised = [row["request_throughput"] * results["ideal"]["request"] for row in rows]
        rate.plot([row["concurrency"] for row in rows], promised, color="black", linestyle="--", label="ideal by FLOPs")
    rate.set_ylabel("requests a second")
    first.set_ylabel("time to first token, mean s")
    for panel in (rate, first):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted({row["concurrency"] for rows in servers.values() for row in rows}), minor=False)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        panel.set_xlabel("requests at once")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3, linewidth=0.6)
    rate.legend(frameon=False, fontsize=9)
    return figure
