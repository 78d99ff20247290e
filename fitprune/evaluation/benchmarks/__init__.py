"""The benchmarks, one file each: whatever module here sets `BENCHMARK` is one.

fitprune eval --benchmark gqa --data playground/data/eval/gqa
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from ...embedded import MODELS, embedded
from ...errors import FitPruneError
from ..benchmark import PLAYGROUND, Benchmark


@cache
def _all() -> dict[str, Benchmark]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = [module.BENCHMARK for module in modules if hasattr(module, "BENCHMARK")]
    return {benchmark.name: benchmark for benchmark in found}


def __getattr__(name: str) -> Any:
    """`BENCHMARKS`, by name; made when it is asked for, so that a benchmark's own module can be run as a script."""
    if name == "BENCHMARKS":
        return _all()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find(name: str) -> Benchmark:
    """A benchmark by name; of an unknown one the error lists those that there are."""
    if name not in _all():
        raise FitPruneError(f"unknown benchmark {name!r}: choose from {', '.join(_all())}")
    return _all()[name]


def default_data(model: str, playground: str | None, benchmark: Benchmark) -> Path:
    """A benchmark's folder where none is named: for an embedded model its embedded counterpart, else that in the playground."""
    shipped = embedded().data / benchmark.folder
    if model in MODELS and shipped.is_dir():
        return shipped
    return Path(playground or PLAYGROUND) / benchmark.folder
