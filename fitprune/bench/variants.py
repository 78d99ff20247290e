"""The variants of a prefill that are compared: dense ones, and for each recipe pruned, bare and the authors' way.

A variant is a function without arguments that runs the whole prompt and returns its cache. `bare` runs the same layers on as many
tokens as the recipe leaves and does nothing else: no hooks, no scores, no selection. Between it and the ideal lies what the machine
costs (shorter matrix products, a causal kernel that does half the attention that the FLOPs count), between `pruned` and it what
FitPrune costs.

A further variant is a function here and a line in `pruned_variants`, or in `WAYS` and `bench.DENSE`: tables and plot show it too.

    pytest tests/bench/test_bench.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..decoder.upstream import pass_cache
from ..errors import FitPruneError, first_line
from ..prune import prune
from ..recipe import Recipe
from . import DENSE, EAGER_MAPS, eager_maps
from .models import Workload, is_out_of_memory, twin

Prefill = Callable[[], Any]  # → the cache


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, and what the tables call it."""

    name: str
    recipe: Recipe


# Dense.


def dense(work: Workload) -> Prefill:
    """The model as it is."""
    return lambda: work.prefill(work.model)


def flash(work: Workload) -> Prefill:
    """Dense with flash attention: the flash-attn package where it is installed, else PyTorch's own kernel and no other."""
    from transformers.utils import is_flash_attn_2_available

    model = twin(work.model)
    if work.device.type == "cuda" and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
        return lambda: work.prefill(model)
    model.set_attn_implementation("sdpa")

    def prefill() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return work.prefill(model)

    return prefill


def compiled(work: Workload) -> Prefill:
    """Dense through torch.compile, for this one length."""
    model = torch.compile(twin(work.model), dynamic=False)
    return lambda: work.prefill(model)


WAYS: dict[str, Callable[[Workload], Prefill]] = dict(zip(DENSE, (dense, flash, compiled), strict=True))


def default_baselines(device: torch.device) -> tuple[str, ...]:
    """What is measured where nothing is asked for: every dense variant on a GPU, the plain one on a CPU."""
    return DENSE if device.type == "cuda" else ("dense",)


def dense_variants(work: Workload, asked: Iterable[str] | None, notes: list[str]) -> dict[str, Prefill]:
    """Plain dense, always, and the dense baselines asked for (None: the device's own choice), each run once to see that it can.

    Those that cannot run are left out with a line in `notes`, but one that was asked for raises a FitPruneError.
    """
    names = default_baselines(work.device) if asked is None else tuple(asked)
    variants: dict[str, Prefill] = {}
    for name, make in WAYS.items():
        if name != "dense" and name not in names:
            continue
        try:
            prefill = make(work)
            prefill()
            variants[name] = prefill
        except Exception as error:  # compilers raise anything
            if name == "dense":
                raise
            said = f"baseline {name} cannot run here: {_said(error)}"
            if asked is not None and not is_out_of_memory(error):
                raise FitPruneError(said) from None
            notes.append(said)
    return variants


# With a recipe.


def pruned_variants(
    work: Workload, named: NamedRecipe, asked: Iterable[str], notes: list[str], until: ExitStack
) -> tuple[dict[str, Prefill], Any]:
    """The variants of one recipe, and the model behind `pruned`, to which the recipe is attached until the end of `until`.

    asked: baselines, of which only the authors' way is made here. notes: gets a line if that runs out of memory.
    """
    model, recorded = twin(work.model), twin(work.model)
    until.enter_context(prune(model, named.recipe, visual_mask=work.visual_mask))
    variants: dict[str, Prefill] = {"pruned": lambda: work.prefill(model), "bare": bare(work, named.recipe)}
    if work.device.type == "cuda":
        until.enter_context(prune(recorded, named.recipe, visual_mask=work.visual_mask, graphs=1))
        variants["graphs"] = lambda: work.prefill(recorded)
    if EAGER_MAPS in asked:
        maps = authors_way(work, named.recipe)
        try:
            maps()
            variants[EAGER_MAPS] = maps
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            notes.append(f"baseline {EAGER_MAPS}, {named.name}: {_said(error)}")
    return variants, model


def bare(work: Workload, recipe: Recipe) -> Prefill:
    """The layers on as many tokens as the recipe leaves: the last ones go."""
    from transformers import DynamicCache

    shape, head, model = work.shape, work.model.lm_head, work.model.model
    alive = recipe.alive(shape.visual, shape.cost.layers)

    def prefill() -> Any:
        hidden, cache = work.embeds, DynamicCache()
        rotary = model.rotary_emb(hidden, torch.arange(shape.length, device=work.device)[None])
        for layer, left in zip(model.layers, alive, strict=True):
            near = tuple(part[:, : hidden.shape[1]] for part in rotary)
            attended, _ = layer.self_attn(layer.input_layernorm(hidden), near, None, **pass_cache(layer.self_attn, cache))
            hidden = (hidden + attended)[:, : left + shape.text]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        head(model.norm(hidden)[:, -1:])
        return cache

    return prefill


def authors_way(work: Workload, recipe: Recipe) -> Prefill:
    """The same recipe with whole maps (eager_maps.py)."""
    model = twin(work.model)
    model.set_attn_implementation("eager")
    shape = work.shape
    deletions = recipe.deletions(shape.visual, shape.cost.layers)
    return lambda: eager_maps.prefill(model.model, work.embeds, deletions, shape.before, shape.visual)[0]


def _said(error: BaseException) -> str:
    return "out of memory" if is_out_of_memory(error) else first_line(error)
