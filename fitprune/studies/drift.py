"""How far a pruned model is from the dense one on the same question: divergence, attention kept, intervals. No model here.

Divergence is Kullback-Leibler, dense || pruned, in nats: how badly the pruned model's next-token distribution stands in
for the dense one's. Attention kept in a layer is the share of what the dense model's visual tokens receive there that is
received by tokens which pruning leaves alive after it (for the text's attention and for the image's own); one minus it is
the total variation distance between the dense distribution over visual tokens and that over the survivors, rescaled.

Shares come with Wilson's interval, means with a percentile bootstrap, as divergences are far from normal. Both take
questions as independent; many questions about one image are worth less than their number.

    python -c "from fitprune.studies.drift import wilson; print(wilson(3, 100))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Share:
    """A part of a whole, with Wilson's interval."""

    count: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean with its bootstrap interval, and the 95th percentile of the values themselves."""

    mean: float
    low: float
    high: float
    p95: float


def divergence(dense: Tensor, pruned: Tensor) -> Tensor:
    """Kullback-Leibler divergence dense || pruned, in nats.

    Args:
        dense: Logits [..., V]; -inf is a token that cannot come.
        pruned: The same of the other model.
    Returns:
        [...] float64, at least 0; infinite where the pruned model rules out what the dense one does not.
    """
    p, q = dense.double().log_softmax(-1), pruned.double().log_softmax(-1)
    terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
    return terms.sum(-1).clamp(min=0)


def kept(received: Tensor, alive: Sequence[Tensor]) -> Tensor:
    """Share of each layer's received attention that the survivors of that layer hold.

    Args:
        received: What each visual token of an image receives in the dense model, [L, n].
        alive: Tokens alive after each layer, [L] of indices into n.
    Returns:
        [L] float64; 1 in a layer where nothing is received, as nothing is lost there.
    """
    rows = received.double()
    held = torch.stack([row[index].sum() for row, index in zip(rows, alive, strict=True)])
    total = rows.sum(-1)
    return torch.where(total > 0, held / total, 1.0).clamp(max=1)


def wilson(count: int, total: int, confidence: float = CONFIDENCE) -> Share:
    """A share and its score interval.

    Source:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = count / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / weight
    half = z / weight * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Share(count, share, 0.0 if count == 0 else max(middle - half, 0.0), 1.0 if count == total else min(middle + half, 1.0))


def bootstrap(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """A mean and the percentile interval of means of samples drawn from the values again; always the same draws."""
    given = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    means = torch.stack([given[torch.randint(len(given), (len(given),), generator=generator)].mean() for _ in range(RESAMPLES)])
    low, high = torch.quantile(means, torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2]).double()).tolist()
    return Mean(float(given.mean()), low, high, float(torch.quantile(given, 0.95)))
