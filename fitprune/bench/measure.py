"""One run of the benchmark: everything that was asked for, on one model, in one process, as plain numbers.

Order: make the model, warm all variants up, time them in turn, then measure the breakdown (memory, scoring, decoding, vision tower,
break-even). A prefill is timed from embeddings to the last token's logits, with the cache filled; the vision tower has a line of
its own.

    python -c "from fitprune.bench.measure import *; from fitprune.bench.shapes import SHAPES; \
        print(measure(SHAPES['small'].altered(layers=2), [0.6], repeats=3))"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import FitPruneError
from ..recipe import Recipe
from . import EAGER_MAPS, METHODS, PAPER, RECOMMENDED, breakdown
from .break_even import break_even
from .clock import Spread, alternate, faster, peak_bytes, repeated
from .machine import machine
from .models import Workload, within_memory
from .shapes import Shape, recipe_for, recommended, scheduled
from .variants import NamedRecipe, Prefill, dense_variants, pruned_variants

MERGED = "merged"
Key = tuple[str, str]  # name of the recipe ("" without one), name of the variant


@torch.inference_mode()
def measure(
    shape: Shape,
    ratios: Sequence[float],
    *,
    recipe_file: str | Path | None = None,
    schedule: str | None = None,
    score: str | None = None,
    methods: Iterable[str] | None = None,
    batch: int = 1,
    repeats: int = 7,
    dtype: str = "float32",
    device: str | None = None,
    attn: str = "sdpa",
    baselines: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    decode_tokens: int = 16,
    merge_steps: bool = False,
    find_break_even: bool = False,
) -> dict[str, Any]:
    """Times dense and pruned prefills of `shape`, and the breakdown.

    Args:
        ratios: Reduction ratios, one group of rows each.
        recipe_file: A recipe instead of the ratios. The recommended method then saves as much as it does.
        schedule: One of `schedule.candidates` by its name, at the ratios, instead of the published or step recipe.
        score: How tokens are ranked with these recipes, as `prune` takes it; None: as the recipe says.
        methods: Names in `bench.METHODS`. None: both, but with a recipe, schedule or score only what these say.
        repeats: Rounds in which all variants take turns.
        baselines: Names in `bench.BASELINES`; plain dense is always measured. None: the device's own choice.
        skip: Names in `bench.BREAKDOWN`.
        merge_steps: Measures what a step costs and adds the recipe with its steps merged.
        find_break_even: Also searches the length from which pruning pays.
    Returns:
        Plain numbers, in seconds and bytes; spreads as median, low and high quartile.
    Raises:
        FitPruneError: a recipe for another model, a device or attention that cannot be used, a baseline that was asked for and
            cannot run, out of memory.
    """
    skip, asked = set(skip), None if baselines is None else list(baselines)
    few = max(1, repeats // 2)
    notes: list[str] = []
    plain = [replace(named, recipe=replace(named.recipe, score=named.recipe.ranked_by(score)))
             for named in _recipes(shape, ratios, recipe_file, schedule)]  # fmt: skip
    chosen = methods is not None
    methods = set(methods or (METHODS if (recipe_file, schedule, score) == (None, None, None) else (PAPER,)))
    recipes = plain if PAPER in methods else []
    if RECOMMENDED in methods:
        recipes = recipes + _recommended(shape, plain, chosen, notes)
    with within_memory(f"{shape.cost.layers} layers x {shape.cost.hidden}, batch {batch}, {shape.length} tokens"), \
            ExitStack() as until:  # fmt: skip
        work = Workload.of(shape, batch=batch, dtype=dtype, device=device, attn=attn)
        variants: dict[Key, Prefill] = {("", name): prefill for name, prefill in dense_variants(work, asked, notes).items()}
        if merge_steps:
            recipes += _merged(work, plain if PAPER in methods else [], variants["", "dense"], few, notes)
        models = {("", "dense"): work.model}
        for named in recipes:
            made, models[named.name, "pruned"] = pruned_variants(work, named, asked or (), notes, until)
            variants |= {(named.name, name): prefill for name, prefill in made.items()}
        alternate(variants, 1, work.device)  # warm, with all in place: a compiled model is compiled again once a recipe is attached
        times = alternate(variants, repeats, work.device)
        rows = {key: _row(prefill, times[key], work.device, "memory" not in skip) for key, prefill in variants.items()}

        dense = {name: row for (recipe, name), row in rows.items() if not recipe}
        best = min(dense, key=lambda name: dense[name]["seconds"]["median"])
        results = {
            **machine(work.device),
            "dtype": dtype, "attn": attn, "batch": batch, "layers": shape.cost.layers, "hidden": shape.cost.hidden,
            "tokens": [shape.before, shape.visual, shape.after], "repeats": repeats, "notes": notes,
            "dense": dense, "best_dense": best, "dense_cache_bytes_by_cost": breakdown.recipe_bytes(work, None),
            "recipes": [_recipe(work, named, rows, best) for named in recipes],
        }  # fmt: skip
        for named, result in zip(recipes, results["recipes"], strict=True):
            if "overhead" not in skip:
                medians = (row["seconds"]["median"] for row in (dense["dense"], result["prefill"]["pruned"]))
                result["overhead"] = _overhead(work, named.recipe, few, *medians)
            if find_break_even:
                result["break_even"] = break_even(work, named.recipe, few)
        if "decode" not in skip:
            prefilled = {key[0] or "dense": (model, variants[key]()) for key, model in models.items()}
            results["decode"] = _decode(work, prefilled, decode_tokens)
        if "vision" not in skip:
            _add_vision(results, breakdown.vision(work, few))
    return results


def _recipes(shape: Shape, ratios: Sequence[float], file: str | Path | None, schedule: str | None) -> list[NamedRecipe]:
    if schedule is not None:
        return [NamedRecipe(f"{100 * ratio:.6g}%", scheduled(shape, ratio, schedule)) for ratio in dict.fromkeys(ratios)]
    if file is not None:
        return [NamedRecipe(Path(file).name.removesuffix(".json").removesuffix(".recipe"), recipe_for(shape, 0, file))]
    return [NamedRecipe(f"{100 * ratio:.6g}%", recipe_for(shape, ratio)) for ratio in dict.fromkeys(ratios)]


def _recommended(shape: Shape, others: Iterable[NamedRecipe], chosen: bool, notes: list[str]) -> list[NamedRecipe]:
    """The recommended method beside each of the recipes, at its ratio.

    One that is out of reach is left out with a line in `notes`, but a FitPruneError if the method was `chosen`.
    """
    found = []
    for named in others:
        ratio = named.recipe.reduction_ratio
        if ratio is None:
            ratio = shape.cost.visual_reduction(named.recipe.deletions(shape.visual, shape.cost.layers), shape.visual)
        try:
            found.append(NamedRecipe(f"{named.name} {RECOMMENDED}", recommended(shape, ratio)))
        except FitPruneError as error:
            if chosen:
                raise
            notes.append(f"{named.name} {RECOMMENDED}: left out, {error}")
    return found


def _merged(work: Workload, recipes: Sequence[NamedRecipe], dense: Prefill, rounds: int, notes: list[str]) -> list[NamedRecipe]:
    """Each recipe with its steps merged, by a cost of a step that is measured now; those without a step to merge are left out."""
    seconds = repeated(dense, rounds, work.device).median
    merged = []
    for named in recipes:
        cost = _overhead(work, named.recipe, rounds, seconds)["step"]["token_layers"]
        recipe = _at_length(named.recipe, work.shape).merge_steps(cost, work.shape.cost)
        before, after = (breakdown.steps(work, each) for each in (named.recipe, recipe))
        notes.append(f"{named.name}: a step costs {cost:.1f} token-layers, merging makes {after} steps of {before}")
        if recipe != named.recipe:
            merged.append(NamedRecipe(f"{named.name} {MERGED}", recipe))
    return merged


def _at_length(recipe: Recipe, shape: Shape) -> Recipe:
    """The recipe with the counts that it has at this shape's number of visual tokens."""
    if recipe.visual_tokens == shape.visual:
        return recipe
    deletions = recipe.deletions(shape.visual, shape.cost.layers)
    return replace(recipe, counts=tuple(deletions), visual_tokens=shape.visual, num_layers=len(deletions), scaling="proportional")


def _row(prefill: Prefill, times: list[float], device: torch.device, memory: bool) -> dict[str, Any]:
    """A variant's times and, where asked for, its memory."""
    row: dict[str, Any] = {"seconds": Spread.of(times).to_dict(), "times": times}
    if memory:
        caches: list[Any] = []
        row["peak_bytes"] = peak_bytes(lambda: caches.append(prefill()), device)
        row["cache_bytes"] = breakdown.cache_bytes(caches[0])
    return row


def _recipe(work: Workload, named: NamedRecipe, rows: Mapping[Key, dict[str, Any]], best: str) -> dict[str, Any]:
    """What one recipe saves, and each of its variants against the dense ones and the ideal."""
    shape, recipe = work.shape, named.recipe
    deletions = recipe.deletions(shape.visual, shape.cost.layers)
    alive = recipe.alive(shape.visual, shape.cost.layers)
    ideal = shape.cost.speedup(alive, shape.visual, shape.text)
    own = {name: row for (owner, name), row in rows.items() if owner == named.name}
    for row in own.values():
        row["speedup"] = {base: faster(rows["", base]["times"], row["times"]).to_dict() for base in dict.fromkeys(("dense", best))}
        row["share_of_ideal"] = {base: gain["median"] / ideal for base, gain in row["speedup"].items()}
        row["share_of_bare"] = faster(own["bare"]["times"], row["times"]).median
    ratio = None if recipe.reduction_ratio is None else f"{recipe.reduction_ratio:g}"
    origin = " ".join(word for word in (recipe.model, ratio) if word)
    result = {
        "name": named.name, "recipe": f"{origin}; {recipe.source}" if origin else recipe.source, "score": recipe.ranked_by(),
        "deletions": deletions,
        "steps": breakdown.steps(work, recipe), "alive": alive[-1],
        "visual_reduction": shape.cost.visual_reduction_of_alive(alive, shape.visual),
        "prefill_reduction": shape.cost.prefill_reduction(alive, shape.visual, shape.text),
        "ideal_speedup": ideal, "prefill": own, "cache_bytes_by_cost": breakdown.recipe_bytes(work, recipe),
    }  # fmt: skip
    if EAGER_MAPS in own:
        result["faster_than_eager_maps"] = faster(own[EAGER_MAPS]["times"], own["pruned"]["times"]).to_dict()
    return result


def _overhead(work: Workload, recipe: Recipe, rounds: int, dense: float, pruned: float | None = None) -> dict[str, Any]:
    """What pruning adds to a prefill: scoring, selection, gathering, per step, and as a share of the pruned prefill where that is known."""
    spent = breakdown.overhead(work, recipe, rounds)
    total = Spread.of([sum(each) for each in zip(*spent.values(), strict=True)])
    per_step = total.median / max(1, breakdown.steps(work, recipe))
    result: dict[str, Any] = {name: Spread.of(values).to_dict() for name, values in spent.items()}
    result["total"] = total.to_dict()
    result["attaching"] = breakdown.attaching(work, recipe, rounds).to_dict()
    result["step"] = {"seconds": per_step, "token_layers": breakdown.token_layers(per_step, dense, work)}
    if pruned is not None:
        result["scoring_share"] = result[breakdown.SCORING]["median"] / pruned
        result["share"] = total.median / pruned
    return result


def _decode(work: Workload, prefilled: Mapping[str, tuple[Any, Any]], tokens: int) -> dict[str, Any]:
    """Seconds per token after the prefill, on the dense cache and on each pruned one."""
    times = breakdown.decode(prefilled, work, tokens)
    return {
        name: {"seconds": Spread.of(each).to_dict(), "times": each, "speedup": faster(times["dense"], each).to_dict()}
        for name, each in times.items()
    }


def _add_vision(results: dict[str, Any], seconds: Spread | None) -> None:
    """The tower's time, and with it the speed-up of everything up to the first token."""
    results["vision"] = None if seconds is None else {"seconds": seconds.to_dict()}
    if seconds is None:
        results["notes"].append("this shape's vision tower makes another number of visual tokens: not timed")
        return
    for row in results["recipes"]:
        both = (results["dense"]["dense"], row["prefill"]["pruned"])
        dense, pruned = (seconds.median + each["seconds"]["median"] for each in both)
        row["speedup_with_vision"] = dense / pruned
