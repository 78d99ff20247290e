"""FitPrune: observe → fit → prune.

Watch where a few samples attend (`AttentionStats`), find the gentlest schedule that meets a budget (`Recipe`), run the
model with it (`prune`). Source: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
Language Models", AAAI 2025, https://arxiv.org/abs/2409.10197.

    python -c "import fitprune; print(fitprune.Recipe.published('llava-v1.5-7b', 0.6))"
"""

from .cost import CostModel
from .errors import FitPruneError, UnsupportedError
from .families import load
from .fit import fit, fit_all
from .observe import observe
from .prune import PrunedModel, attach, detach, prune
from .recipe import Recipe
from .replay import replay
from .stats import AttentionStats
from .trace import Trace
from .version import __version__

__all__ = [
    "AttentionStats",
    "CostModel",
    "FitPruneError",
    "PrunedModel",
    "Recipe",
    "Trace",
    "UnsupportedError",
    "__version__",
    "attach",
    "detach",
    "fit",
    "fit_all",
    "load",
    "observe",
    "prune",
    "replay",
]
