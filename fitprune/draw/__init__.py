"""Drawings of what pruning does: which patches survive in an image, what was attended to, and recipes as curves.

    with fitprune.prune(llava.model, recipe) as trace:
        llava.generate(inputs)
    draw.survivors(image, trace, loaded=llava).savefig("survivors.png")
    draw.recipes([Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 40, 60, 80)]).savefig("recipes.png")

`places` says where a checkpoint's visual tokens lie on an image and `frames` fades the deleted ones; `panels`,
`animation` and `page` show that as a PNG, a GIF and an HTML page; `heat` draws what was attended to, `curves` recipes.
Needs matplotlib, which `pip install 'fitprune[draw]'` brings; frames and page do not.

    fitprune draw
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curves import recipes
    from .panels import survivors

__all__ = ["recipes", "survivors"]
HOMES = {"recipes": "curves", "survivors": "panels"}  # imported when asked for: both import torch


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f".{HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
