"""Methods that shrink an image before the language model: fewer visual tokens from the first layer on.

A recipe lets tokens go layer by layer, and its first layer has all n of them in its attention. These settle once how many enter the
decoder at all: the largest m for which all layers with m tokens save at least the ratio of the visual compute of n.

- `divprune`, `cdpruner` (diverse.py) choose m of the tokens that the decoder is given. They run as their exact oracle, the whole model with
  the others masked (masked.py): answers, FLOPs and bytes are those of a model that got m tokens, its time is not, so none is shown.
- `downsample` (downsample.py) shows a smaller picture, of which the model makes at most m tokens by itself. Its time is real.

Left out: methods inside the vision tower, and merging, after which a token is no longer one that the decoder would have been given.

    python -c "from fitprune.studies.before import *; from fitprune.cost import VICUNA_7B as c; print(Before('divprune', 0.6).keep(576, c))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from ..cost import CostModel
from ..schedule.budget import unreachable

if TYPE_CHECKING:
    from ..families import VLM

Way = Callable[["VLM", Callable[[int], int]], AbstractContextManager["VLM"]]  # a model, how many of n tokens stay → the model to ask


@dataclass(frozen=True)
class Before:
    """A way in `WAYS`, and the share of visual compute that it saves."""

    way: str
    reduction_ratio: float

    @property
    def timed(self) -> bool:
        """Whether it takes as long as what it stands for: an oracle does not."""
        return self.way == "downsample"

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its answers from others'."""
        return {"reduction_ratio": self.reduction_ratio, "before": self.way}

    def keep(self, visual_tokens: int, cost: CostModel) -> int:
        """The most tokens that may enter a decoder, of so many.

        Raises:
            FitPruneError: if not even one may.
        """
        return most_entering(visual_tokens, self.reduction_ratio, cost)

    def applied(self, vlm: VLM) -> AbstractContextManager[VLM]:
        """The model to ask, inside the `with` block; errors as of the way's own function, for what the model cannot do."""
        return WAYS[self.way](vlm, partial(self.keep, cost=vlm.cost))


@lru_cache(maxsize=1024)
def most_entering(visual_tokens: int, reduction_ratio: float, cost: CostModel) -> int:
    """As `Before.keep`."""
    whole = cost.dense_macs(visual_tokens)

    def saved(tokens: int) -> float:
        return 1 - cost.dense_macs(tokens) / whole

    if not visual_tokens or not reduction_ratio:
        return visual_tokens
    if saved(1) < reduction_ratio:
        raise unreachable(reduction_ratio, visual_tokens, saved(1), cost.deleting_in(range(cost.layers)))
    low, high = 1, visual_tokens  # low saves enough, high saves nothing
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if saved(middle) >= reduction_ratio else (low, middle)
    return low


def _selecting(select: str) -> Way:
    @contextmanager
    def way(vlm: VLM, keep: Callable[[int], int]) -> Iterator[VLM]:
        from . import diverse  # here, so that a list of methods costs no import of torch
        from .masked import masked

        with masked(vlm.model, keep, getattr(diverse, select)):
            yield vlm

    return way


def _downsample(vlm: VLM, keep: Callable[[int], int]) -> AbstractContextManager[VLM]:
    from .downsample import downsampled

    return downsampled(vlm, keep)


WAYS: dict[str, Way] = {"divprune": _selecting("divprune"), "cdpruner": _selecting("cdpruner"), "downsample": _downsample}
