"""What a sweep writes down: a table of its runs for people, for spreadsheets and for programs.

`sweep.md` has a table per benchmark and, after an ablation, one of the recipes; `sweep.csv` a line per run; `sweep.json` all
that is known of each run, and what was left out. The plot is sweep_plot.py's.

    fitprune sweep --ratios 30,60 --benchmarks gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import tables
from ..evaluation.rows import Row, error_cell
from ..files import write_atomically
from . import ablate

COLUMNS = (
    *("benchmark", "method", "score", "ratio", "metric", "headline", "standard_error", "questions"),
    *("visual_reduction", "prefill_gflops", "prefill_reduction", "kv_bytes", "milliseconds", "timed", "answers"),
)


@dataclass
class Point:
    """One run: its row of `fitprune eval`'s table, and what the sweep adds.

    `kv_bytes` is the cache of a question after the prefill, `timed` how many questions the time is from.
    """

    method: str
    score: str | None
    ratio: float
    kv_bytes: float
    timed: int
    row: Row

    @property
    def figures(self) -> dict[str, Any]:
        """The columns of the CSV file; no score where every layer keeps all of its tokens or none, so that nothing is ranked."""
        every = {**asdict(self.row), **{name: value for name, value in vars(self).items() if name != "row"}}
        if all(count == 0 or math.isclose(count, self.row.visual_tokens) for count in self.row.alive):
            every["score"] = None
        return {name: every[name] for name in COLUMNS}


def write(
    output: Path, points: Sequence[Point], notes: Sequence[str], about: dict[str, Any], compared: Sequence[ablate.Difference] = ()
) -> None:
    """sweep.md, sweep.csv and sweep.json.

    Raises:
        FitPruneError: where they cannot be written.
    """
    write_atomically(output / "sweep.md", markdown(points, notes, about, compared).encode())
    lines = io.StringIO()
    table = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(point.figures for point in points)
    write_atomically(output / "sweep.csv", lines.getvalue().encode())
    runs = [{**asdict(point.row), **point.figures} for point in points]
    whole = {"about": about, "left_out": list(notes), "recipes": list(map(asdict, compared)), "runs": runs}
    write_atomically(output / "sweep.json", json.dumps(whole, indent=1).encode())


def markdown(points: Sequence[Point], notes: Sequence[str], about: dict[str, Any], compared: Sequence[ablate.Difference] = ()) -> str:
    """A table per benchmark, a row per run; of an ablation a table of its recipes."""
    lines = ["# Sweep", "", ", ".join(f"{name} {value}" for name, value in about.items() if value is not None), ""]
    for title in dict.fromkeys(point.row.benchmark for point in points):
        here = [point for point in points if point.row.benchmark == title]
        head = ["method", "ratio", str(here[0].row.metric), "±", "against dense", "questions", "visual MACs saved"]
        head += ["prefill GFLOPs", "KV MiB", "ms/question"]
        rows, dense = [head], here[0].row.headline
        for point in here:
            row = point.row
            value = "-" if row.headline is None else f"{row.headline:.2f}"
            change = "-" if row.headline is None or dense is None else f"{row.headline - dense:+.2f}"
            time = "-" if row.milliseconds is None else f"{row.milliseconds:.1f}"
            cells = [point.method, f"{100 * point.ratio:.6g}%", value, error_cell(row), change, str(row.questions)]
            cells += [f"{row.visual_reduction:.1%}", f"{row.prefill_gflops:.3f}", f"{point.kv_bytes / 2**20:.2f}", time]
            rows.append(cells)
        lines += [f"## {title}", "", *tables.markdown(rows), ""]
    lines += ablate.recipes_compared(compared)
    lines += [f"Left out: {note}." for note in notes]
    return "\n".join(lines).rstrip() + "\n"
