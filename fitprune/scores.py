"""How a visual token is ranked: the token with the lowest score is deleted first.

A score is one function from `Attended` (what a layer's attention saw) to one number per token. The paper's is the
product of the attention received from the text and from the image (section 3.2). Comparison methods differ in their
schedule (another `Recipe`) or in their score (another function here), not in machinery: method = schedule × score.
A new one is a function and a line in `SCORES`; it pays for attention only if it asks for `received` (blocks of the map)
or `from_last` (one row of it).

    python -c "from fitprune.scores import SCORES; print(*SCORES)"
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import FitPruneError

if TYPE_CHECKING:
    from torch import Tensor

    from .kernels.attended import Attended


MOST = 8  # of θ: beyond, float32 has no room for relevance

Score = Callable[["Attended"], "Tensor"]  # → [B, n], compared within one image of one row only


def product(seen: Attended) -> Tensor:
    """The paper's: attention received from the text × attention received from the image.

    For an image that no text follows the first factor is left out; else every token would score zero and position
    alone would decide.
    """
    cross, intra = seen.received
    return (cross * intra).where(seen.text_follows, intra)


def cross(seen: Attended) -> Tensor:
    """Attention received from the text after the image only."""
    return seen.received[0]


def intra(seen: Attended) -> Tensor:
    """Attention received from the image's own tokens only."""
    return seen.received[1]


def last(seen: Attended) -> Tensor:
    """FastV's: attention received from the last token of the prompt, averaged over heads.

    As its released code ranks (https://arxiv.org/abs/2403.06764; the paper's text averages over all asking tokens).
    """
    return seen.from_last.mean(dim=1)


def spread(seen: Attended, theta: float = 0.25) -> Tensor:
    """Relevant, and unlike what is more relevant: (attention from the last token × from others of the image)^θ × unlikeness of values.

    `kernels.spread` has the formula. Not the paper's; docs/how_it_works.md says what it keeps, docs/benchmarks.md how that compares.
    """
    return _spread(seen, last(seen) * seen.others, theta)


def spread_last(seen: Attended, theta: float = 0.25) -> Tensor:
    """`spread` with the attention from the last token alone for relevance: one row of the map is computed, and no causal map at all."""
    return _spread(seen, last(seen), theta)


def _spread(seen: Attended, relevance: Tensor, theta: float) -> Tensor:
    return relevance**theta * seen.unlikeness(relevance)


def random(seen: Attended) -> Tensor:
    """No information at all: the control that every method has to beat at equal FLOPs. Same seed, same tokens."""
    import torch  # here alone, so that a list of scores costs no import of torch

    generator = torch.Generator().manual_seed(seen.seed * 1_000_003 + seen.layer)
    return torch.rand(seen.token_group.shape, generator=generator).to(seen.token_group.device)


def ranks(score: Score, seen: Attended) -> Tensor:
    """What a score says of each token, [B, n] float32, the same in all processes that share the heads: the first one's counts."""
    said = score(seen).float()
    return said if seen.heads is None else seen.heads.broadcast_from_first(said.contiguous())


SCORES: dict[str, Score] = {
    "fitprune": product, "cross": cross, "self": intra, "last": last, "spread": spread, "spread-last": spread_last, "random": random,
}  # fmt: skip


def find_score(score: str | Score) -> Score:
    """A score by name, with its settings behind it ("spread theta=0.5"), or the function itself.

    Raises:
        FitPruneError: for a name that is not in `SCORES`, a setting that the score does not have, or a value that it cannot have.
    """
    if callable(score):
        return score
    name, *settings = score.split() or [""]
    if name not in SCORES:
        raise FitPruneError(f"unknown score {score!r}: use one of {', '.join(SCORES)}, or pass a function")
    known = list(inspect.signature(SCORES[name]).parameters)[1:]
    given: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in known or key in given:
            raise FitPruneError(
                f"score {score!r}: {setting} says nothing: {name} {'takes ' + '=, '.join(known) + '=' if known else 'has no settings'}"
            )
        try:
            given[key] = float(value)
        except ValueError:
            given[key] = math.nan
        if not 0 <= given[key] <= MOST:
            raise FitPruneError(f"score {score!r}: {key} must be a number from 0 to {MOST}, not {value!r}")
    return functools.partial(SCORES[name], **given) if given else SCORES[name]


def __getattr__(name: str) -> Any:
    """`Attended`, to annotate a score of one's own; loaded then, as it brings torch."""
    if name == "Attended":
        from .kernels.attended import Attended

        return Attended
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
