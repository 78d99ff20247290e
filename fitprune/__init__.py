"""FitPrune: observe → fit → prune.

Watch where a few samples attend (`AttentionStats`), find the gentlest schedule that meets a budget (`Recipe`), run the
model with it (`prune`). Source: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large
Language Models", AAAI 2025, https://arxiv.org/abs/2409.10197.

    observe.py   fit.py   prune.py        three verbs
    stats.py     recipe.py   trace.py     what they hand to each other

Names are loaded when they are first used, so that `fitprune --help` does not wait for torch.

    python -c "import fitprune; print(fitprune.Recipe.published('llava-v1.5-7b', 0.6))"
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .cost import CostModel
    from .errors import FitPruneError, UnsupportedError
    from .families import load
    from .fit import fit, fit_all
    from .observe import observe
    from .prune import PrunedModel, attach, detach, prune
    from .recipe import Recipe
    from .stats import AttentionStats
    from .studies.replay import replay
    from .trace import Trace

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

_HOMES = {  # public name → the module that has it
    "AttentionStats": "stats",
    "CostModel": "cost",
    "FitPruneError": "errors",
    "PrunedModel": "prune",
    "Recipe": "recipe",
    "Trace": "trace",
    "UnsupportedError": "errors",
    "attach": "prune",
    "detach": "prune",
    "fit": "fit",
    "fit_all": "fit",
    "load": "families",
    "observe": "observe",
    "prune": "prune",
    "replay": "studies.replay",
}


class _Package(ModuleType):
    """This package. Python puts a module on its package under its own name; `fitprune.fit` is the verb, not the file."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
                return import_module(f".{name}", __name__)  # a module: `import fitprune; fitprune.scores.SCORES`
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
