"""How far pruning drifts from the dense model on questions of one's own, so that a ratio can be chosen
without labels.

For each ratio: how many greedy answers and first tokens change, how far the next-token distributions move (first token, and
every token of the dense answer), how much of the dense model's attention the surviving tokens hold in each layer, and
what is saved. A changed answer need not be a wrong one, so this bounds what pruning can cost, not what it does cost.
Recipes are chosen as in `fitprune eval` (published, else fitted here), all from one pass.

    fitprune report --reduction-ratio 0.3 0.5 0.7 --limit 64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cost import CostModel
from ..resolve import Choice
from ..tables import aligned
from .against_dense import Drift
from .drift import CONFIDENCE, Mean, Share, bootstrap, wilson


@dataclass(frozen=True)
class DriftRow:
    """One recipe over all questions: changes, divergences (nats), attention kept and tokens alive in each layer [L], savings."""

    name: str
    ratio: float
    source: str
    deletions: list[float]
    answers: Share
    first_tokens: Share
    divergence_first: Mean
    divergence_answer: Mean
    cross: list[float]
    intra: list[float]
    visual_tokens: float
    alive: list[float]
    visual_reduction: float
    prefill_reduction: float
    changed: list[dict[str, Any]]


def summarise(choice: Choice, drifts: Sequence[Drift], cost: CostModel) -> DriftRow:
    """One row from the drift of every question; compute is summed over the questions before shares are taken of it."""
    count, recipe = len(drifts), choice.recipe
    macs, flops = [0.0, 0.0], [0.0, 0.0]  # dense, pruned
    for drift in drifts:
        for at, curve in enumerate(([drift.visual_tokens] * cost.layers, drift.alive)):
            macs[at] += sum(cost.visual_macs(curve, drift.visual_tokens))
            flops[at] += sum(cost.prefill_flops(curve, drift.visual_tokens, drift.text_tokens))
    changed = [drift for drift in drifts if drift.dense != drift.pruned]
    return DriftRow(
        name=choice.name.removeprefix("recipe "),
        ratio=(recipe.reduction_ratio or recipe.achieved or 0.0) if recipe else 0.0,
        source=choice.source,
        deletions=list(recipe.counts) if recipe else [],
        answers=wilson(len(changed), count),
        first_tokens=wilson(sum(drift.first_changed for drift in drifts), count),
        divergence_first=bootstrap([drift.divergence_first for drift in drifts]),
        divergence_answer=bootstrap([drift.divergence_answer for drift in drifts]),
        cross=_means([drift.cross for drift in drifts]),
        intra=_means([drift.intra for drift in drifts]),
        visual_tokens=sum(drift.visual_tokens for drift in drifts) / count,
        alive=_means([drift.alive for drift in drifts]),
        visual_reduction=1 - macs[1] / macs[0],
        prefill_reduction=1 - flops[1] / flops[0],
        changed=[
            {"question_id": drift.question.question_id, "image": drift.question.image, "text": drift.question.text,
             "dense": drift.dense, "pruned": drift.pruned}
            for drift in changed
        ],
    )  # fmt: skip


def table(rows: Sequence[DriftRow]) -> str:
    """The rows as aligned text, what the columns are, then the attention kept in every layer."""
    cells = [
        ["run", "answers changed", "first token", "KL first", "p95", "KL per token", "p95", "MACs saved", "FLOPs saved",
         "tokens left"]
    ]  # fmt: skip
    for row in rows:
        cells.append(
            [row.name, _share(row.answers), _share(row.first_tokens), _mean(row.divergence_first), f"{row.divergence_first.p95:.3g}",
             _mean(row.divergence_answer), f"{row.divergence_answer.p95:.3g}", f"{row.visual_reduction:.1%}",
             f"{row.prefill_reduction:.1%}", f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}"]
        )  # fmt: skip
    legend = (
        f"in brackets {CONFIDENCE:.0%} intervals: Wilson's of shares, percentile bootstrap of means; p95: 95th percentile over questions\n"
        "first token: share of questions where it changes; KL: dense || pruned in nats, of the first token and over the dense answer's;\n"
        "saved: visual MACs, prefill FLOPs; left: visual tokens after the last layer"
    )
    kept = [
        f"{whose} attention that survivors hold, % in each layer, {row.name}: {' '.join(f'{100 * value:.0f}' for value in values)}"
        for row in rows
        for whose, values in (("text's", row.cross), ("image's", row.intra))
    ]
    return "\n".join([*aligned(cells), legend, "", *kept])


def advise(rows: Sequence[DriftRow], at_most: float) -> DriftRow | None:
    """The pruned row that saves most among those that change no larger share of the answers; None if all change more."""
    fitting = [row for row in rows if row.alive[-1] < row.visual_tokens and row.answers.share <= at_most]
    return max(fitting, key=lambda row: row.visual_reduction, default=None)


def advice(advised: DriftRow | None, at_most: float) -> str:
    """One line that says which ratio to take."""
    if advised is None:
        return f"advice: none of these ratios changes at most {100 * at_most:.6g}% of the answers: try smaller ones, or a larger --at-most"
    sure = advised.answers.high <= at_most
    caution = "" if sure else f"; the interval reaches {advised.answers.high:.1%}, more questions would narrow it"
    return (
        f"advice: {advised.name} is the largest that changes at most {100 * at_most:.6g}% of the answers "
        f"({advised.answers.share:.1%}{caution})"
    )


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(values) for column in zip(*values, strict=True)]


def _share(share: Share) -> str:
    return f"{share.share:.1%} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _mean(mean: Mean) -> str:
    return f"{mean.mean:.3g} [{mean.low:.3g}, {mean.high:.3g}]"
