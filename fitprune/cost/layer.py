"""What one decoder layer costs, whatever it is made of: six numbers.

Every kind of layer that transformers has comes down to weights that each token is multiplied with once, products of pairs of
tokens, and what is cached. Grouped heads, latent projections (MLA), gates, several experts of many, MLPs with and without a gate: all
of them are numbers of weights. A layer of linear attention has no pairs; its state is read and written once per token.

    python -c "from fitprune.cost import LayerCost; print(LayerCost.llama(4096, 11008, 32, 32, 128))"
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import FitPruneError


@dataclass(frozen=True)
class LayerCost:
    """A decoder layer.

    Attributes:
        entering: Multiply-accumulates of each token that enters: its projections to queries, keys and values; where a layer has
            linear attention, also what that does for one token.
        pair: Multiply-accumulates of each pair of a query and a key, over all heads: their product, and the value's.
        leaving: Multiply-accumulates of each token that leaves: output projection, MLP, router and the experts it goes through.
        cached: Values that the cache keeps for each token that enters.
        state: Values that it keeps besides, however many tokens there are.
        deletes: Whether tokens can be deleted here: something ranks them, and nothing later needs keys of earlier layers.
    Raises:
        FitPruneError: for values that are not whole numbers from 0.
    """

    entering: int
    pair: int
    leaving: int
    cached: int
    state: int = 0
    deletes: bool = True

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) != (name == "deletes") or value < 0:
                kind = "true or false" if name == "deletes" else "a whole number from 0"
                raise FitPruneError(f"cost model: {name} of a layer must be {kind}, not {value!r}")

    @classmethod
    def llama(cls, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> LayerCost:
        """Grouped-query attention and a gated MLP (three matrices)."""
        width = heads * head_dim
        return cls(
            entering=hidden * (heads + 2 * kv_heads) * head_dim,
            pair=2 * width,
            leaving=width * hidden + 3 * hidden * intermediate,
            cached=2 * kv_heads * head_dim,
        )

    @classmethod
    def from_dict(cls, data: Any) -> LayerCost:
        """The inverse of `dataclasses.asdict`.

        Raises:
            FitPruneError: for missing or unknown keys and for values that are no sizes.
        """
        try:
            return cls(**data)
        except TypeError:
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            raise FitPruneError(f"cost model: a kind of layer is an object with {names}, not {data!r}") from None

    def attention_macs(self, t: float) -> float:
        """Projections to queries, keys and values, scores and weighted sum, for the t tokens that enter."""
        return t * self.entering + t * t * self.pair

    def rest_macs(self, t: float) -> float:
        """Output projection and MLP, for the t tokens that leave."""
        return t * self.leaving
