"""The breakdown, each measurement on its own: the vision tower, what pruning adds to a prefill, decoding, the cache.

What pruning adds is measured in separate pruned prefills, by a stopwatch around the few functions that do it: `scoring` makes scores,
`selection` sorts them and picks the survivors, `gather` picks survivors' rows, masks and positions. On a GPU the stopwatch waits for
the device at each of them, so these sums are upper bounds there; what pruning costs without a stopwatch is the difference between
`pruned` and `bare` (variants.py).

A *step* is a layer that deletes. Its cost is told in token-layers: how many tokens one dense layer processes in the same time.

    pytest tests/bench/test_bench_breakdown.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..decoder.upstream import pass_cache
from ..prune import attach
from ..recipe import Recipe
from ..scores import find_score
from .clock import Spread, Stopwatch, repeated, timed
from .models import Workload, random_tower, twin

SCORING, SELECTION, GATHER = "scoring", "selection", "gather"
WATCHED = {"on_attention": SELECTION, "cut": GATHER, "narrow": GATHER, "record_cache": GATHER}  # of a `LayerPass`; scoring is in the first
WARM_STEPS = 2  # decoded tokens that are not timed


def overhead(work: Workload, recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Seconds of scoring, selection and gathering in each of so many pruned prefills, [round]."""
    model, spent = twin(work.model), []
    watch = Stopwatch(work.device)
    score = watch.wrap(SCORING, find_score(recipe.ranked_by()))
    attached = attach(model, recipe, score=score, visual_mask=work.visual_mask)
    begin = attached.policy.begin

    def watched(call: Any) -> Any:
        state: Any = begin(call)
        enter = watch.wrap(GATHER, state.enter)

        def entered(*args: Any) -> Any:
            here = enter(*args)
            for name, label in WATCHED.items():
                setattr(here, name, watch.wrap(label, getattr(here, name)))
            return here

        state.enter = entered
        return state

    attached.policy.begin = watched  # type: ignore[method-assign]
    try:
        for _ in range(1 + rounds):  # the first one warms up
            watch.spent = dict.fromkeys((SCORING, SELECTION, GATHER), 0.0)
            work.prefill(model)
            spent.append(watch.spent)
    finally:
        attached.detach()
    return {label: [each[label] for each in spent[1:]] for label in (SCORING, SELECTION, GATHER)}


def steps(work: Workload, recipe: Recipe) -> int:
    """In how many layers the recipe deletes something."""
    return sum(count > 0 for count in recipe.deletions(work.shape.visual, work.shape.cost.layers))


def token_layers(seconds: float, dense_seconds: float, work: Workload) -> float:
    """Seconds as the number of tokens (of every row of the batch) that one dense layer processes in that time."""
    return seconds / dense_seconds * work.shape.length * work.shape.cost.layers


def attaching(work: Workload, recipe: Recipe, rounds: int) -> Spread:
    """Seconds that putting a recipe onto the model and taking it off again costs, once per `with` block."""
    model = twin(work.model)
    return repeated(lambda: attach(model, recipe, visual_mask=work.visual_mask).detach(), rounds, work.device)


def vision(work: Workload, rounds: int) -> Spread | None:
    """Seconds that vision tower and projector take for the batch's images; None for a shape without a tower."""
    if work.shape.tower is None:
        return None
    dtype = work.embeds.dtype
    tower, side = random_tower(work.shape.tower, work.shape.cost.hidden, dtype, work.device)
    pixels = torch.randn(work.batch * work.shape.tower.views, 3, side, side, device=work.device, dtype=dtype)
    return repeated(lambda: tower.get_image_features(pixel_values=pixels), rounds, work.device)  # type: ignore[operator]


def decode(models: Mapping[str, tuple[Any, Any]], work: Workload, tokens: int) -> dict[str, list[float]]:
    """Seconds for each of so many tokens after the prefill, [token], of each model (given with its prefill's cache) in turn."""
    token = work.embeds[:, :1]
    times: dict[str, list[float]] = {name: [] for name in models}
    for count in range(WARM_STEPS + tokens):
        for name, (model, cache) in models.items():
            step = partial(model, inputs_embeds=token, use_cache=True, **pass_cache(model, cache))
            seconds, _ = timed(step, work.device)
            if count >= WARM_STEPS:
                times[name].append(seconds)
    return times


def cache_bytes(cache: Any) -> int:
    """Memory that the keys and values of a cache hold, whatever part of it they show."""
    storages = [tensor.untyped_storage() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def recipe_bytes(work: Workload, recipe: Recipe | None) -> int:
    """What a prefill's cache takes by the cost model, for all rows of the batch; without a recipe the dense one."""
    shape = work.shape
    deletions = [0] * shape.cost.layers if recipe is None else recipe.deletions(shape.visual, shape.cost.layers)
    per_row = shape.cost.kv_bytes(deletions, shape.visual, shape.text, work.embeds.dtype.itemsize)
    return work.batch * sum(per_row)
