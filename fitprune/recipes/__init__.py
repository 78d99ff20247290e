"""The authors' published deletion tables, one JSON file per checkpoint, and their catalogue.

Each table maps a nominal reduction ratio in percent to visual tokens deleted per layer at `reference_visual_tokens`.
A new checkpoint's table is a new file here and nothing else. `Recipe.published` makes recipes of them.

    python -c "from fitprune.recipes import *; print({name: published_ratios(name) for name in published_names()})"
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from ..errors import FitPruneError
from ..files import model_names

__all__ = ["published_names", "published_ratios"]


def published_names() -> list[str]:
    """The checkpoints that have published recipes."""
    return sorted(_tables())


def published_ratios(name: str) -> list[float]:
    """The nominal reduction ratios published for a checkpoint: fractions, ascending, 0 first.

    Raises:
        FitPruneError: when nothing is published for it; lists what is.
    """
    return sorted(schedules(published_table(name)))


def published_table(name: str) -> dict[str, Any]:
    """A checkpoint's file, by any usual spelling of its name: "llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf", a path.

    Raises:
        FitPruneError: when nothing is published for it; lists what is.
    """
    tables = {_plain(model): table for model, table in _tables().items()}
    for called in map(_plain, model_names(name)):
        if called in tables:
            return tables[called]
    raise FitPruneError(f"no recipe is published for {name}: choose from {', '.join(published_names())}, or fit one")


def schedules(table: dict[str, Any]) -> dict[float, list[int]]:
    """A table's deletions per layer, [layer], by nominal reduction ratio (a fraction)."""
    by_percent = table["reduction_ratio_percent_to_deletions_per_layer"]
    return {int(percent) / 100: counts for percent, counts in by_percent.items()}


@cache
def _tables() -> dict[str, dict[str, Any]]:
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".json")]
    return {table["model"]: table for table in (json.loads(file.read_text(encoding="utf-8")) for file in files)}


def _plain(name: str) -> str:
    """A checkpoint's name without case, "-hf" and the "v" before its version."""
    return re.sub(r"-v(?=\d)", "-", name.lower().removesuffix("-hf"))
