"""Figures as text: rows in aligned columns, counts in a line, bars.

fitprune show llava-v1.5-7b 0.6
"""

from __future__ import annotations

from collections.abc import Sequence

BAR = 40  # characters of a full bar


def aligned(cells: Sequence[Sequence[str]], figures_right: bool = True) -> list[str]:
    """Rows as lines, a rule below the first; empty columns go. All but the first column stand to the right, unless said otherwise."""
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    pads = [str.rjust if at and figures_right else str.ljust for at in range(len(columns))]
    rows = [[pad(cell, width) for cell, pad, width in zip(row, pads, widths, strict=True)] for row in zip(*columns, strict=True)]
    lines = ["  ".join(row).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as the lines of a markdown table; the first is the head."""
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|---" * len(rows[0]) + "|", *others]


def format_counts(values: Sequence[float]) -> str:
    """`12, 11, …` with at most one decimal, for tables."""
    return " ".join(f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}" for value in values)


def duration(seconds: float) -> str:
    """A time to wait for, in words and as roughly as it is known: `40 seconds`, `12 minutes`, `5.3 hours`, `4 days`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def falling(alive: Sequence[int], deletions: Sequence[int], whole: int) -> list[str]:
    """A line per layer: its number, how many of the whole are alive after it, how many it deletes, and a bar."""
    width = len(str(whole))
    lines = [
        f"{layer:4d} {count:{width}d} {f'-{gone}' if gone else '':>{width + 1}} {_bar(count / whole)}"
        for layer, (count, gone) in enumerate(zip(alive, deletions, strict=True))
    ]
    return [line.rstrip() for line in lines]


def _bar(share: float) -> str:
    """A bar of block characters, in eighths of a character; a share of 1 is `BAR` characters."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
