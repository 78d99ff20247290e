"""What a model answered rightly, run by run: shares, differences between methods, and the table of them.

A difference between two methods is taken picture by picture, as they answer the same questions: its standard error is that of a
mean over pictures. Nothing is corrected for the number of comparisons.

    pytest tests/embedded/test_embedded_judges.py
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

DRIFT = "drift"  # the recommended method
CLEAR = 1.96  # standard errors beyond which a difference is called significant
Run = tuple[str, float]  # method, ratio; dense: 0


@dataclass(frozen=True)
class Judged:
    """Right answers of every run, picture by picture: {run: [picture][question]}; reasons why others are left out."""

    model: str
    right: dict[Run, list[list[bool]]]
    notes: list[str]

    @property
    def questions(self) -> int:
        return sum(map(len, self.right["dense", 0.0]))

    def share(self, run: Run) -> float:
        """Exact answers, from 0 to 1."""
        return fmean(one for picture in self.right[run] for one in picture)

    def above(self, run: Run, other: Run) -> tuple[float, float]:
        """By how much a run's share is above another's, and the standard error of that over pictures."""
        gained = [sum(mine) - sum(its) for mine, its in zip(self.right[run], self.right[other], strict=True)]
        each = len(gained) / self.questions
        return each * fmean(gained), each * stdev(gained) / math.sqrt(len(gained)) if len(gained) > 1 else math.inf


def table(judged: Judged, recommended: str = DRIFT) -> str:
    """A row per ratio, a column per method, in percent; then what is significantly above the recommended method, and notes."""
    names = list(dict.fromkeys(name for name, ratio in judged.right if ratio))
    ratios = list(dict.fromkeys(ratio for _, ratio in judged.right if ratio))
    dense = judged.share(("dense", 0.0))
    pictures = len(judged.right["dense", 0.0])
    lines = [f"**{judged.model}**: {judged.questions} questions about {pictures} pictures, dense {100 * dense:.1f}", ""]
    lines += [f"| saved | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for ratio in ratios:
        cells = [f"{100 * judged.share((name, ratio)):.1f}" if (name, ratio) in judged.right else "out of reach" for name in names]
        lines.append(f"| {ratio:.0%} | {' | '.join(cells)} |")
    lines += ["", *_misses(judged, names, ratios, recommended), *judged.notes, ""]
    return "\n".join(lines)


def _misses(judged: Judged, names: Sequence[str], ratios: Sequence[float], recommended: str) -> list[str]:
    """What the recommended method loses, and where another one is significantly above it."""
    lines = []
    for ratio in ratios:
        run = recommended, ratio
        if run not in judged.right:
            continue
        lost, error = judged.above(("dense", 0.0), run)
        found = []
        for name in names:
            if name == recommended or (name, ratio) not in judged.right:
                continue
            more, its_error = judged.above((name, ratio), run)
            if more > CLEAR * its_error:
                found.append(f"{name} by {100 * more:.1f} ± {100 * its_error:.1f}")
        above = ", ".join(found) or "none"
        lines.append(f"{ratio:.0%}: {recommended} loses {100 * lost:.1f} ± {100 * error:.1f} points; significantly above it: {above}")
    return [*lines, ""] if lines else []


def summary(found: Sequence[Judged], paper: str = "fitprune", recommended: str = DRIFT) -> str:
    """A row per model and ratio: dense, the paper's method, the best of the others by name, and the recommended one."""
    lines = ["| | dense | saved | paper | best other | recommended |", "|---|---|---|---|---|---|"]
    for judged in found:
        for ratio in dict.fromkeys(ratio for _, ratio in judged.right if ratio):
            at: Mapping[str, float] = {name: judged.share((name, ratio)) for name, its in judged.right if its == ratio}
            others = {name: share for name, share in at.items() if name != paper and "spread" not in name and recommended not in name}
            if not {paper, recommended} <= at.keys() or not others:
                continue
            best = max(others, key=lambda name: others[name])
            lines.append(
                f"| `{judged.model}` | {100 * judged.share(('dense', 0.0)):.1f} | {ratio:.0%} | {100 * at[paper]:.1f} | "
                f"{100 * others[best]:.1f} ({best}) | **{100 * at[recommended]:.1f}** |"
            )
    return "\n".join(lines)
