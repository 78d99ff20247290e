"""One run of a comparison, and the line of the table that it becomes: score, tokens kept, compute by either convention, time.

Compute is counted from the sizes of the prompts, not measured; time is that of generation, over the questions answered in this call.

    pytest tests/evaluation/test_compare.py
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from ..cost import CostModel
from ..recipe import Recipe
from ..tables import aligned, format_counts
from .answer import AnswerRun, Reduction
from .benchmark import Benchmark, Result


@dataclass(frozen=True)
class Plan:
    """One run of a comparison: its name in the table, the stem of its files, what is pruned and how tokens are ranked.

    before: What shrinks images before the decoder; then there is no recipe.
    """

    name: str
    stem: str
    recipe: Recipe | None
    score: str | None
    before: Reduction | None = None


@dataclass
class Row:
    """One line of the table: reductions are shares of the dense cost; time and tokens alive are per question.

    `headline`, `details`, `report` and `written` are the benchmark's `Result`, `metric` says what the headline is, `standard_error`
    how far chance moves it. `questions` counts those answered, now or before.
    """

    name: str
    benchmark: str | None
    metric: str | None
    headline: float | None
    standard_error: float | None
    questions: int
    details: dict[str, float]
    visual_reduction: float
    prefill_gflops: float
    prefill_reduction: float
    visual_tokens: float
    alive: list[float]
    milliseconds: float | None
    answers: str
    written: list[str]
    report: str


def row_of(
    plan: Plan,
    benchmark: Benchmark | None,
    result: Result | None,
    run: AnswerRun,
    cost: CostModel,
    prompts: Counter[tuple[int, int]],
    entering: Counter[tuple[int, int]] | None = None,
) -> Row:
    """Compute is summed over the questions that have an image, before shares are taken of it.

    Args:
        prompts: Of the dense run, as `prompt_sizes`.
        entering: Of this one, where fewer visual tokens enter the decoder.
    """
    recipe, result = plan.recipe, result or Result(None)
    count = max(prompts.total(), 1)
    macs, flops = [0.0, 0.0], [0.0, 0.0]  # dense, as run
    alive = [0.0] * cost.layers
    for at, sizes in enumerate((prompts, prompts if entering is None else entering)):
        for (visual, text), times in sizes.items():
            kept = recipe.alive(visual, cost.layers) if at and recipe else [visual] * cost.layers
            macs[at] += times * sum(cost.visual_macs(kept, visual))
            flops[at] += times * sum(cost.prefill_flops(kept, visual, text))
            if at:
                alive = [total + times * here / count for total, here in zip(alive, kept, strict=True)]
    return Row(
        name=plan.name,
        benchmark=benchmark.name if benchmark else None,
        metric=benchmark.metric if benchmark else None,
        headline=result.headline,
        standard_error=standard_error(result),
        questions=run.answered + run.skipped + run.resumed,
        details=result.details,
        visual_reduction=1 - macs[1] / macs[0] if macs[0] else 0.0,
        prefill_gflops=flops[1] / count / 1e9,
        prefill_reduction=1 - flops[1] / flops[0] if flops[0] else 0.0,
        visual_tokens=run.visual_tokens or sum(visual * times for (visual, _), times in prompts.items()) / count,
        alive=(run.alive or alive) if recipe or entering is not None else [],
        milliseconds=run.milliseconds,
        answers=str(run.path),
        written=[str(path) for path in result.written],
        report=result.report,
    )


def standard_error(result: Result) -> float | None:
    """Standard error of a headline that is the mean of what its answers are worth, in percent: sample deviation / √ of their number.

    Takes questions as independent; several about one image make it too small. None for headlines made otherwise, and where all
    answers are worth the same, which does not show how much they vary.
    """
    worth = result.per_answer or []
    if result.headline is None or len(set(worth)) < 2 or not math.isclose(result.headline, 100 * mean(worth)):
        return None
    return 100 * stdev(worth) / math.sqrt(len(worth))


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, then the tokens alive after each layer."""
    metric = next((row.metric for row in rows if row.metric), "")
    known = any(row.standard_error is not None for row in rows)
    base = next((row.milliseconds for row in rows if row.name == "dense"), None)
    cells = [
        ["run", metric, "±", "visual MACs saved", "prefill GFLOPs", "saved", "visual tokens left", "ms/question", "speed-up"],
        *(
            [
                row.name,
                _headline(row) if metric else "",
                error_cell(row) if known else "",
                f"{row.visual_reduction:.1%}",
                f"{row.prefill_gflops:.2f}",
                f"{row.prefill_reduction:.1%}",
                f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}" if row.alive else f"{row.visual_tokens:.0f}",
                "resumed" if row.milliseconds is None else f"{row.milliseconds:.1f}",
                f"{base / row.milliseconds:.2f}x" if base and row.milliseconds else "-",
            ]
            for row in rows
        ),
    ]
    kept = [f"visual tokens alive after each layer, {row.name}: {format_counts(row.alive)}" for row in rows if row.alive]
    return "\n".join([*aligned(cells, figures_right=False), *([""] if kept else []), *kept])


def error_cell(row: Row) -> str:
    """The standard error as tables show it."""
    return "-" if row.standard_error is None else f"{row.standard_error:.2f}"


def _headline(row: Row) -> str:
    """The figure, else the file that a server turns into one."""
    if row.headline is not None:
        return f"{row.headline:.2f}"
    return Path(row.written[0]).name if row.written else "-"
