"""FitPrune: observe → fit → prune.

Watch where a few samples attend (`AttentionStats`), find the gentlest schedule that meets a budget (`Recipe`), run the
model with it (`prune`). Source: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
Language Models", AAAI 2025, https://arxiv.org/abs/2409.10197.
"""

from .cost import CostModel
from .errors import FitPruneError, UnsupportedError
from .prune import PrunedModel, attach, detach, prune
from .recipe import Recipe
from .trace import Trace
from .version import __version__

__all__ = [
    "CostModel",
    "FitPruneError",
    "PrunedModel",
    "Recipe",
    "Trace",
    "UnsupportedError",
    "__version__",
    "attach",
    "detach",
    "prune",
]
