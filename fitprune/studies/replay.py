"""The released code's fit, step by step: the layers run again at every alpha. For reproduction; `fit.py` is the product.

At each of seven values of alpha every sample is prefilled once more; each layer deletes the tokens that are both among
the least attended by the text and among the least attended by the image, as many as leave at least (1 - alpha) of the
attention that the *dense* run received (facts from `statistical_analysis.py`). The layers from the one at which the
budget is found met count nothing. The scheme of the last alpha tried is the result, met or not, which is why the
published recipes miss their nominal ratios.

One fault is not reproduced: where even the single most attended token holds the threshold, the released code takes
the count of an earlier layer or sample (and crashes where there is none). Here that count is "all but one", as the
criterion says. It happens only close to ratio 1.

    pytest tests/studies/test_replay.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..cost import CostModel
from ..decoder.attach import Prefill, find_decoder
from ..decoder.state import PrefillState
from ..decoder.upstream import forbidden_layers
from ..errors import FitPruneError, UnsupportedError
from ..kernels import TEXT
from ..kernels.select import DELETED, compact
from ..observe import attach_policy, observe, run_sample
from ..recipe import Recipe
from ..scores import Attended

TOLERANCE = 0.01 + 1e-6  # width of the bracket of alpha at which the released search stops


@dataclass
class ReplayStep:
    """One alpha: `scheme` [layer] is the floor of the average over samples; the lists are [layer][sample] up to `layers_run`.

    before: visual tokens entering the layer; by_cross, by_intra: lengths of the two lists of least attended tokens;
    removed: size of their intersection. `removed_at` [sample][token] is the layer that removed a token, or -1.
    """

    alpha: float
    reached: bool
    scheme: list[int]
    layers_run: int
    before: list[list[int]]
    by_cross: list[list[int]]
    by_intra: list[list[int]]
    removed: list[list[int]]
    removed_at: list[Tensor] = field(repr=False)


def largest_removal(weights: Tensor, threshold: float) -> int:
    """How many of the smallest weights can go so that at least `threshold` remains (never all of them).

    Args:
        weights: [t], not negative.
    """
    if len(weights) == 0:
        return 0
    ascending = weights.double().sort().values
    remaining = ascending.sum() - torch.nn.functional.pad(ascending.cumsum(0), (1, 0))[:-1]  # [t] after removing 0 … t-1
    return max(int((remaining >= threshold).sum()) - 1, 0)


class ThresholdState(PrefillState):
    """A prefill of one sample in which each layer deletes what a threshold on attention allows."""

    def __init__(self, policy: Thresholds, call: Prefill) -> None:
        super().__init__(call)
        self.policy = policy
        ((start, end),) = self.spans[0][0]
        self.text = int((self.host_group[0, end:] == TEXT).sum())
        policy.removed_at = torch.full((end - start,), -1)
        policy.rows = []

    def needs_scores(self, layer: int) -> bool:
        return True

    def select_survivors(self, seen: Attended) -> Tensor | None:
        policy = self.policy
        place = (self.token_group[0] > 0).nonzero().flatten()  # [t] columns that hold visual tokens
        cross, intra = (part[0, place].cpu() for part in seen.received)
        cross, intra = cross / self.text, intra / max(len(place), 1)
        dense_cross, dense_intra = policy.totals[seen.layer]
        counts = (
            largest_removal(cross, dense_cross - dense_cross * policy.alpha),
            largest_removal(intra, dense_intra - dense_intra * policy.alpha),
        )
        drop = torch.zeros(2, len(place), dtype=torch.bool)
        for chosen, weights, count in zip(drop, (cross, intra), counts, strict=True):
            chosen[weights.argsort(stable=True)[:count]] = True
        both = drop.all(0)
        policy.rows.append((len(place), *counts, int(both.sum())))
        gone = place[both.to(place.device)]
        if len(gone) == 0:
            return None
        original = gone if self.token_index is None else self.token_index[0, gone]
        policy.removed_at[original.cpu() - self.spans[0][0][0][0]] = seen.layer
        self.status[0, gone], self.token_group[0, gone] = DELETED, 0
        self.pad_slots = False
        return compact(self.status, self.status.shape[1] - len(gone))


class Thresholds:
    """The policy behind `replay`: totals of the dense run of the sample at hand, and what its prefill deleted."""

    alpha: float
    totals: list[tuple[float, float]]
    rows: list[tuple[int, int, int, int]]
    removed_at: Tensor

    def begin(self, call: Prefill) -> PrefillState:
        if len(call.spans) != 1 or len(call.spans[0]) != 1 or len(call.spans[0][0]) != 1 or call.real is not None:
            raise FitPruneError("replay takes samples of one row with one image and no padding, as the released code does")
        return ThresholdState(self, call)


def replay(
    model: nn.Module, samples: Sequence[Mapping[str, Any]], reduction_ratio: float, *, cost: CostModel | None = None, progress: bool = True
) -> tuple[Recipe, list[ReplayStep]]:
    """The recipe that the released fitting script prints, and every step of its search.

    Args:
        model: As for `prune`.
        samples: One sample each, as for `observe`; kept in memory.
        reduction_ratio: Fraction, compared with the paper's visual-only cost.
        cost: Default the model's own. The released script uses LLaVA-1.5-7B's sizes whatever the model (`cost.VICUNA_7B`).
    Returns:
        The recipe of the last step (`achieved` says what it really saves) and the steps.
    Raises:
        FitPruneError: as `observe`, and for samples of more than one row or image.
    """
    decoder = find_decoder(model)
    if forbidden := forbidden_layers(decoder):
        (layer, reason), *_ = forbidden.items()
        raise UnsupportedError(f"the released code's fit deletes in every layer, but layer {layer} {reason}: fit without replaying it")
    cost = cost or CostModel.of(decoder)
    dense = [observe(model, [sample], progress=False) for sample in samples]
    if not dense:
        raise FitPruneError("nothing to replay: give at least one sample")
    totals = [list(zip(stats.cross[0].sum(1).tolist(), stats.intra[0].sum(1).tolist(), strict=True)) for stats in dense]
    steps: list[ReplayStep] = []
    low, high = 0.0, 1.0
    with tqdm(desc="replaying", unit="alpha", disable=not progress) as bar:
        while high - low > TOLERANCE:
            alpha = (low + high) / 2
            step = _evaluate(model, samples, totals, alpha, reduction_ratio, cost)
            steps.append(step)
            low, high = (low, alpha) if step.reached else (alpha, high)
            bar.update()
    tokens = len(steps[-1].removed_at[0])
    scheme = steps[-1].scheme
    recipe = Recipe.from_deletions(
        scheme,
        visual_tokens=tokens,
        model=dense[0].model,
        reduction_ratio=reduction_ratio,
        achieved=cost.visual_reduction(scheme, tokens),
        alpha=steps[-1].alpha,
        samples=len(samples),
        source="replayed",
    )
    return recipe, steps


def _evaluate(
    model: nn.Module,
    samples: Sequence[Mapping[str, Any]],
    totals: Sequence[list[tuple[float, float]]],
    alpha: float,
    reduction_ratio: float,
    cost: CostModel,
) -> ReplayStep:
    """One alpha. Samples are independent of each other, so each runs through and the budget is examined afterwards."""
    policy = Thresholds()
    policy.alpha = alpha
    rows, removed_at = [], []
    attachment = attach_policy(model, policy)
    try:
        for sample, policy.totals in zip(samples, totals, strict=True):
            with torch.inference_mode():
                run_sample(model, sample)
            rows.append(policy.rows)
            removed_at.append(policy.removed_at)
    finally:
        attachment.detach()

    layers, count = len(rows[0]), len(samples)
    full = sum(cost.dense_macs(len(removed)) for removed in removed_at)
    allowed = full / count * (1 - reduction_ratio)
    used, stop = 0.0, layers
    for layer in range(layers):  # the budget is examined before the layer deletes anything
        entering = [row[layer][0] for row in rows]
        used += sum(cost.attention_macs(t, layer) for t in entering)
        dense_rest = sum(cost.rest_macs(t, layer) + cost.dense_macs(t, layer + 1) for t in entering)
        if (used + dense_rest) / count <= allowed:
            stop = layer
            break
        used += sum(cost.rest_macs(row[layer][0] - row[layer][3], layer) for row in rows)

    def column(part: int) -> list[list[int]]:
        return [[row[layer][part] for row in rows] for layer in range(stop)]

    removed = column(3)
    scheme = [sum(layer) // count for layer in removed] + [0] * (layers - stop)
    kept = [torch.where(removed < stop, removed, -1) for removed in removed_at]
    return ReplayStep(alpha, stop < layers, scheme, stop, column(0), column(1), column(2), removed, kept)
