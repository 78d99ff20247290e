"""Reduction ratios: one unit inside (a fraction), two accepted at the edge (0.6 and 60).

The paper's loader takes percentages (`--reduction_ratio 60`), its fitting script fractions (`0.6`), and its documented
command cannot be parsed. Everything here that takes a ratio passes it through `parse_ratio` once.

    python -c "from fitprune.schedule.ratio import parse_ratio; print(parse_ratio('60'), parse_ratio(0.6))"
"""

from __future__ import annotations

from ..errors import FitPruneError


def parse_ratio(value: float | str) -> float:
    """The reduction ratio as a fraction in [0, 1).

    Args:
        value: A fraction in [0, 1) or a percentage in [2, 100), as a number or as text ("0.6", "60", "60%").
    Raises:
        FitPruneError: for anything else. 1 to 2 is refused because it could mean either unit, 100% and more because
            a prefill without visual tokens is not pruning.
    """
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise FitPruneError(f"reduction ratio {text!r} is not a number: give a fraction such as 0.6 or a percentage such as 60") from None
    if text.endswith("%") or number >= 2:
        number /= 100
    if not 0 <= number < 1:
        raise FitPruneError(
            f"reduction ratio {text} is out of range: give a fraction from 0 to below 1 (0.6) or a percentage from 2 to below 100 (60)"
        )
    return number
