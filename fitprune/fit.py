"""Fitting: the gentlest schedule that meets a budget, from statistics alone (paper, section 3.3; no model runs here).

One number, alpha, says how much of the attention received in the unpruned model may be lost in every layer. For a given
alpha each sample is pruned on paper: in layer l the least attended tokens go as long as those left hold (1 - alpha) of
the layer's dense mass, judged by cross-attention and by self-attention, and a token goes only if both agree (`CRITERIA`
has others, for ablations). The curve of survivors, averaged over the samples, has a cost; bisection finds the alpha at
which it is the budget. Then the curve is rounded to whole tokens so that the budget holds (`schedule.round_to_budget`).
Where some layers cannot delete (`CostModel.deletable`), the curve is level there and the others delete the more.
The cost need not fall at every step of alpha (a layer that has lost too much to earlier ones deletes nothing); where it
meets the budget several times, bisection settles on one of them.

Left out: the released code's search runs the layers again at every alpha and reports whichever step came last, within
the budget or not; `fitprune.replay` does that. Here the dense statistics stand for every alpha, as the paper says.

    python -c "import torch; from fitprune.fit import fit; from fitprune.stats import AttentionStats as A; \
        from fitprune.cost import VICUNA_7B; c, s = torch.rand(2, 8, 32, 576).pow(4); n = torch.full((8,), 576); \
        print(fit(A(c, s, n, n), VICUNA_7B, 0.6))"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .choose import Judge, choose_all
from .cost import CostModel, deletions_of
from .errors import FitPruneError
from .recipe import Recipe
from .schedule.budget import round_to_budget, scale_to_budget, smallest
from .schedule.ratio import parse_ratio
from .schedule.validation import CRITERIA, SPREAD, WAYS
from .stats import AttentionStats

TIGHT = 0.002  # the bracket is tight once its two curves' reductions are this close; between them we interpolate
BLOCK = 131072  # elements of a layer that a thread works on: enough to outweigh starting an operation, few enough for a cache
FINEST = 2.0**-30  # or, where a few samples make the cost jump, once alpha is known this well


def alive_reference(
    cross: Sequence[Sequence[float]],
    intra: Sequence[Sequence[float]],
    alpha: float,
    criterion: str = "both",
    deletable: Collection[int] | None = None,
) -> list[int]:
    """The rule for one sample, slow and obvious; what the fast version is tested against.

    Args:
        cross: Dense attention received from the text, `[layer][visual]`.
        intra: The same from the image itself.
        alpha: Share of each layer's mass that may be lost, in [0, 1].
        criterion: One of `CRITERIA`: a token goes if it is on the list by cross-attention and on that by self-attention;
            on one of them alone; on the list by their product (which is what ranks tokens at run time).
        deletable: The layers that delete; None for all.
    Returns:
        Visual tokens alive after each layer, [layer].
    """
    alive = list(range(len(cross[0])))
    counts = []
    for layer, (by_text, by_image) in enumerate(zip(cross, intra, strict=True)):
        if deletable is not None and layer not in deletable:
            counts.append(len(alive))
            continue
        doomed = []
        lists: dict[str, list[Sequence[float]]] = {
            "both": [by_text, by_image],
            "cross": [by_text],
            "self": [by_image],
            "product": [[text * image for text, image in zip(by_text, by_image, strict=True)]],
        }
        for mass in lists[criterion]:
            threshold = sum(mass) * (1 - alpha)
            order = sorted(alive, key=lambda token, mass=mass: mass[token])  # type: ignore[misc]
            gone = 0
            while gone < len(order) - 1 and sum(mass[token] for token in order[gone + 1 :]) >= threshold:
                gone += 1
            doomed.append(set(order[:gone]))
        alive = [token for token in alive if token not in set.intersection(*doomed)]
        counts.append(len(alive))
    return counts


class _Block:
    """A few samples, each layer's attention sorted once; dead tokens are then masked rather than sorted away.

    In place and in narrow types where possible: about half of an alpha's time goes into reading memory.
    """

    def __init__(self, cross: Tensor, intra: Tensor, present: Tensor) -> None:
        samples, visual = present.shape
        received = torch.stack([cross, intra]).permute(2, 0, 1, 3).contiguous()  # [L, 2, N, n]
        mass, order = received.sort(stable=True)  # ties by position
        place = torch.arange(visual, dtype=torch.int16 if visual < 2**15 else torch.int32).expand_as(order)
        rank = torch.empty_like(order, dtype=place.dtype).scatter_(-1, order, place)  # a token's place in the order
        token = (order + visual * torch.arange(samples)[:, None]).int().flatten(1)  # [L, 2Nn], into a flat [Nn]
        mass = mass.double()
        total = mass.sum(-1, keepdim=True)  # [L, 2, N, 1]
        silent = (total == 0).flatten(1).any(1).tolist()
        self.layers = list(zip(mass, rank, token, total, silent, strict=True))
        self.present = present.double()  # [N, n]

    def alive(self, alpha: float) -> Tensor:
        """How many of each sample's tokens are alive after each layer, [L, N]."""
        alive, counts = self.present.clone(), []
        for mass, rank, token, total, silent in self.layers:
            living = alive.view(-1).index_select(0, token).view_as(mass)  # [2, N, n], least attended first
            last = None
            if alpha == 1 or silent:  # elsewhere the best token's own mass keeps it
                last = (living * torch.arange(living.shape[-1])).amax(-1, keepdim=True)
            gone = living.mul_(mass).cumsum_(-1)
            spare = gone[..., -1:] - total * (1 - alpha)  # the mass that may go; negative when too little is left
            count = torch.searchsorted(gone, spare, right=True)  # so many may go (with dead ones among them)
            if last is not None:
                count = count.minimum(last)
            cross, intra = rank - count.to(rank.dtype)
            alive *= cross.maximum(intra).ge_(0)  # below 0 in both: both agree
            counts.append(alive.sum(1))
        return torch.stack(counts)


def judged_by(stats: AttentionStats, criterion: str) -> AttentionStats:
    """The statistics as a criterion sees them: where it has one list, that list agrees with itself.

    Raises:
        FitPruneError: for a criterion that is not in `CRITERIA`.
    """
    if criterion not in CRITERIA:
        raise FitPruneError(f"unknown criterion {criterion!r}: use one of {', '.join(CRITERIA)}")
    if criterion == "both":
        return stats
    one = {"cross": stats.cross, "self": stats.intra}.get(criterion, stats.cross * stats.intra)  # [N, L, n]
    return dataclasses.replace(stats, cross=one, intra=one)


def alive_fractions(stats: AttentionStats) -> Callable[[float], Tensor]:
    """A function from alpha to the share of each sample's visual tokens alive after each layer, [N, L] float64."""
    threads = torch.get_num_threads()
    rounds = math.ceil(2 * stats.samples * stats.cross.shape[2] / (BLOCK * threads))  # each keeps every thread busy
    rows = math.ceil(stats.samples / (rounds * threads))
    present = torch.arange(stats.cross.shape[2]) < stats.visual_tokens[:, None]  # [N, n]
    which = slice(None) if len(stats.deletable) == stats.layers else list(stats.deletable)
    parts = zip(stats.cross[:, which].split(rows), stats.intra[:, which].split(rows), present.split(rows), strict=True)
    deleted = [sum(one <= layer for one in stats.deletable) for layer in range(stats.layers)]  # layers that have deleted by then, [L]
    blocks = [_Block(*part) for part in parts]

    def at(alpha: float) -> Tensor:
        try:  # one thread per block: many that share each short operation cost more than they save
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                counts = torch.cat(list(pool.map(lambda block: block.alive(alpha), blocks)), 1)  # [layers that delete, N]
        finally:
            torch.set_num_threads(threads)  # theirs is also what threads to come start with
        alive = torch.cat([stats.visual_tokens[None].double(), counts])[deleted]  # [L, N]
        return alive.T / stats.visual_tokens[:, None]

    return at


def fit_all(
    stats: AttentionStats,
    cost: CostModel | None,
    ratios: Iterable[float | str],
    criterion: str = "both",
    *,
    by: str = "mass",
    judge: Judge | None = None,
    scores: Sequence[str] = SPREAD,
    absorb: float | None = None,
    progress: bool = True,
) -> dict[float, Recipe]:
    """One recipe per reduction ratio, each the same as `fit` gives; the work is shared.

    Args:
        cost: The model's cost; None for the one that the statistics carry.
        ratios: As `parse_ratio` takes them.
        criterion: As `fit`, and so are `by`, `judge`, `scores`, `absorb` and `progress`.
    Returns:
        Recipes by ratio (a fraction), in the order given.
    Raises:
        FitPruneError: for a ratio out of range or out of reach, an unknown criterion, and when there is no cost model or
            it does not fit.
    """
    if by not in WAYS:
        raise FitPruneError(f"unknown way to fit {by!r}: use one of {', '.join(WAYS)}")
    if (judge is None) == (by == "drift"):
        raise FitPruneError(
            "a judge=, such as fitprune.studies.judge.DriftJudge(vlm, calibration), goes with by='drift': give both or neither"
        )
    if isinstance(ratios, float | int | str):
        ratios = [ratios]
    cost = cost if cost is not None else stats.cost
    if not isinstance(cost, CostModel):
        raise FitPruneError("fitting needs a cost model: these statistics carry none, so pass CostModel.from_config(...)")
    if cost.layers != stats.layers:
        raise FitPruneError(f"the statistics have {stats.layers} layers but the cost model {cost.layers}")
    if not (allowed := tuple(layer for layer in stats.deletable if layer in cost.deletable)):
        raise FitPruneError("no layer of this model can delete visual tokens: there is nothing to fit")
    stats, cost = dataclasses.replace(stats, deletable=allowed), cost.deleting_in(allowed)
    tokens = int(stats.visual_tokens.max())
    fractions = alive_fractions(judged_by(stats, criterion))
    source = "fitted" if criterion == "both" else f"fitted by {criterion}"

    @cache
    def curve(alpha: float) -> list[float]:
        return (fractions(alpha).mean(0) * tokens).tolist() if alpha else [float(tokens)] * cost.layers

    fitted = {ratio: _fit(stats, cost, tokens, curve, ratio, source) for ratio in map(parse_ratio, ratios)}
    made = {ratio: dataclasses.replace(recipe, absorb=absorb) for ratio, recipe in fitted.items()}
    if judge is None:
        return made
    return {ratio: chosen.recipe for ratio, chosen in choose_all(made, judge, scores, progress).items()}


def fit(
    stats: AttentionStats,
    cost: CostModel | None = None,
    reduction_ratio: float | str = 0.6,
    criterion: str = "both",
    *,
    by: str = "mass",
    judge: Judge | None = None,
    scores: Sequence[str] = SPREAD,
    absorb: float | None = None,
    progress: bool = True,
) -> Recipe:
    """The gentlest recipe that meets the budget: alpha as small as bisection finds it.

    By drift it is the one among many candidates, this one included, that moves the dense model's answers least (choose.py).

    Args:
        stats: What the unpruned model attends to, from `observe`.
        cost: The model's cost; None for the one that the statistics carry.
        reduction_ratio: Share of the visual tokens' compute to save (`CostModel.visual_reduction`), 0.6 or 60.
        criterion: One of `CRITERIA`, "both" being the paper's (`alive_reference` says what they are). The recipe's
            `source` names any other.
        by: "mass", the paper's, or "drift".
        judge: What says how far a recipe moves the answers, for "drift": `studies.judge.DriftJudge`.
        scores: What tokens may be ranked by, for "drift"; the recipe names the one that was best.
        absorb: As `Recipe.absorb`, for every candidate.
        progress: Whether to show how far that is.
    Returns:
        A recipe at the samples' visual-token count (the largest, where they differ) that saves at least the ratio, and
        less than one token in one layer more.
    Raises:
        FitPruneError: for a ratio out of range or out of reach, an unknown criterion, and when there is no cost model or
            it does not fit.
    """
    options: dict[str, Any] = {"by": by, "judge": judge, "scores": scores, "absorb": absorb, "progress": progress}
    return next(iter(fit_all(stats, cost, [reduction_ratio], criterion, **options).values()))


def _fit(stats: AttentionStats, cost: CostModel, tokens: int, curve: Callable[[float], list[float]], ratio: float, source: str) -> Recipe:
    def saved(alive: list[float]) -> float:
        return cost.visual_reduction_of_alive(alive, tokens)

    def between(share: float) -> list[float]:
        return [(1 - share) * more + share * less for more, less in zip(curve(low), curve(high), strict=True)]

    low, high = 0.0, 1.0 if ratio else 0.0
    if saved(curve(high)) < ratio:  # losing all that can be lost is not enough: go on in the same shape
        alive = scale_to_budget([count / tokens for count in curve(high)], tokens, cost, ratio)
    else:
        while high - low > FINEST and saved(curve(high)) - saved(curve(low)) > TIGHT:
            middle = (low + high) / 2
            low, high = (low, middle) if saved(curve(middle)) >= ratio else (middle, high)
        alive = between(smallest(lambda share: saved(between(share)) >= ratio, 0, 1) if ratio else 0)
    whole = round_to_budget(alive, tokens, cost, ratio)
    counts = deletions_of(whole, tokens)
    return Recipe.from_deletions(
        counts,
        visual_tokens=tokens,
        scaling="budget",
        model=stats.model,
        reduction_ratio=ratio,
        achieved=cost.visual_reduction(counts, tokens),
        alpha=high,
        samples=stats.samples,
        fingerprint=stats.fingerprint,
        cost=cost,
        source=source,
    )
