"""One run of the benchmark: everything that was asked for, on one model, in one process, as plain figures.

Order: make the model, warm every kind up, time all kinds in turn, then each part on its own (memory, scoring, decoding,
vision tower, break-even). The time to first token here is that of the decoder, from embeddings to the last
token's logits, with the cache filled; the vision tower has a line of its own.

    python -c "from fitprune.bench.measure import *; from fitprune.bench.shapes import SHAPES; \
        print(measure(SHAPES['small'].altered(layers=2), [0.6], repeats=3))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..recipe import Recipe
from . import EAGER_MAPS, breakdown
from .break_even import break_even
from .clock import Spread, alternate, faster, peak_bytes
from .machine import machine
from .models import Workload, within_memory
from .shapes import Shape, recipe_for
from .variants import Plan, Prefill, dense_kinds, pruned_kinds

MERGED = "merged"


@torch.inference_mode()
def measure(
    shape: Shape,
    ratios: Sequence[float],
    *,
    recipe_file: str | Path | None = None,
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
    """Times dense and pruned prefills of `shape`, and the parts that are not left out.

    Args:
        ratios: Reduction ratios, one group of rows each.
        recipe_file: A recipe instead of the ratios.
        repeats: Rounds in which all kinds take turns.
        baselines: Names in `bench.BASELINES`; plain dense is always measured. None: the device's own choice.
        skip: Names in `bench.PARTS`.
        merge_steps: Measures what a step costs and adds the recipe with its steps merged.
        find_break_even: Also searches the length from which pruning pays.
    Returns:
        Plain figures, in seconds and bytes; spreads as median, low and high quartile.
    Raises:
        FitPruneError: a recipe for another model, a device or attention that cannot be used, a baseline that was asked for and
            cannot run, out of memory.
    """
    skip, asked = set(skip), None if baselines is None else list(baselines)
    few = max(1, repeats // 2)
    plans = _plans(shape, ratios, recipe_file)
    notes: list[str] = []
    with within_memory(f"{shape.cost.layers} layers x {shape.cost.hidden}, batch {batch}, {shape.length} tokens"), \
            ExitStack() as until:  # fmt: skip
        work = Workload.of(shape, batch=batch, dtype=dtype, device=device, attn=attn)
        kinds: dict[tuple[str, str], Prefill] = {("", name): kind for name, kind in dense_kinds(work, asked, notes).items()}
        if merge_steps:
            plans += _merged(work, plans, kinds["", "dense"], few, notes)
        models = {"dense": work.model}
        for plan in plans:
            made, models[plan.name] = pruned_kinds(work, plan, asked or (), notes, until)
            kinds |= {(plan.name, name): kind for name, kind in made.items()}
        alternate(kinds, 1, work.device)  # warm, with all in place: attaching a recipe makes a compiled model look again
        times = alternate(kinds, repeats, work.device)
        memory = {} if "memory" in skip else {key: _memory(kind, work.device) for key, kind in kinds.items()}

        dense = {name: _kind(times, memory, ("", name)) for plan, name in kinds if not plan}
        best = min(dense, key=lambda name: dense[name]["seconds"]["median"])
        figures = {
            **machine(work.device),
            "dtype": dtype, "attn": attn, "batch": batch, "layers": shape.cost.layers, "hidden": shape.cost.hidden,
            "tokens": [shape.before, shape.visual, shape.after], "repeats": repeats, "notes": notes,
            "dense": dense, "best_dense": best, "dense_cache_bytes_by_cost": breakdown.recipe_bytes(work, None),
            "recipes": [_recipe(work, plan, times, memory, best) for plan in plans],
        }  # fmt: skip
        middle = dense["dense"]["seconds"]["median"]
        for plan, row in zip(plans, figures["recipes"], strict=True):
            if "overhead" not in skip:
                row["overhead"] = _overhead(work, plan, few, middle, row["prefill"]["pruned"]["seconds"]["median"])
            if find_break_even:
                row["break_even"] = break_even(work, plan.recipe, few)
        if "decode" not in skip:
            _add_decode(figures, work, models, kinds, decode_tokens)
        if "vision" not in skip:
            _add_vision(figures, breakdown.vision(work, few))
    return figures


def _plans(shape: Shape, ratios: Sequence[float], file: str | Path | None) -> list[Plan]:
    if file is not None:
        return [Plan(Path(file).name.removesuffix(".json").removesuffix(".recipe"), recipe_for(shape, 0, file))]
    return [Plan(f"{100 * ratio:.6g}%", recipe_for(shape, ratio)) for ratio in dict.fromkeys(ratios)]


def _merged(work: Workload, plans: Sequence[Plan], dense: Prefill, rounds: int, notes: list[str]) -> list[Plan]:
    """For each plan the one with its steps merged, by a cost of a step that is measured now."""
    seconds = Spread.of(alternate({"dense": dense}, 1 + rounds, work.device)["dense"][1:]).median
    merged = []
    for plan in plans:
        cost = _overhead(work, plan, rounds, seconds)["step"]["token_layers"]
        recipe = _here(plan.recipe, work.shape).merge_steps(cost, work.shape.cost)
        before, after = (breakdown.steps(work, each) for each in (plan.recipe, recipe))
        notes.append(f"{plan.name}: a step costs {cost:.1f} token-layers, merging makes {after} steps of {before}")
        if recipe != plan.recipe:
            merged.append(Plan(f"{plan.name} {MERGED}", recipe))
    return merged


def _here(recipe: Recipe, shape: Shape) -> Recipe:
    """The recipe as it is at this shape's number of visual tokens, where its steps are merged."""
    if recipe.visual_tokens == shape.visual:
        return recipe
    deletions = recipe.deletions(shape.visual, shape.cost.layers)
    return replace(recipe, counts=tuple(deletions), visual_tokens=shape.visual, num_layers=len(deletions), scaling="proportional")


Key = tuple[str, str]  # name of the plan ("" for dense), name of the kind


def _memory(kind: Prefill, device: torch.device) -> dict[str, int | None]:
    caches: list[Any] = []
    peak = peak_bytes(lambda: caches.append(kind()), device)
    return {"peak_bytes": peak, "cache_bytes": breakdown.cache_bytes(caches[0])}


def _kind(times: Mapping[Key, list[float]], memory: Mapping[Key, dict[str, Any]], key: Key) -> dict[str, Any]:
    return {"seconds": Spread.of(times[key]).to_dict(), "times": times[key], **memory.get(key, {})}


def _recipe(
    work: Workload, plan: Plan, times: Mapping[Key, list[float]], memory: Mapping[Key, dict[str, Any]], best: str
) -> dict[str, Any]:
    """The figures of one recipe: what it saves, and each of its kinds against the dense ones and the ideal."""
    shape, recipe = work.shape, plan.recipe
    deletions = recipe.deletions(shape.visual, shape.cost.layers)
    alive = recipe.alive(shape.visual, shape.cost.layers)
    ideal = shape.cost.speedup(alive, shape.visual, shape.text)
    rows = {}
    for name in [name for owner, name in times if owner == plan.name]:
        row = _kind(times, memory, (plan.name, name))
        row["speedup"] = {base: faster(times["", base], row["times"]).to_dict() for base in dict.fromkeys(("dense", best))}
        row["share_of_ideal"] = {base: gain["median"] / ideal for base, gain in row["speedup"].items()}
        rows[name] = row
    figures = {
        "name": plan.name, "recipe": _named(recipe), "deletions": deletions, "steps": breakdown.steps(work, recipe),
        "alive": alive[-1],
        "visual_reduction": shape.cost.visual_reduction_of_alive(alive, shape.visual),
        "prefill_reduction": shape.cost.prefill_reduction(alive, shape.visual, shape.text),
        "ideal_speedup": ideal, "prefill": rows, "cache_bytes_by_cost": breakdown.recipe_bytes(work, recipe),
    }  # fmt: skip
    if EAGER_MAPS in rows:
        figures["faster_than_eager_maps"] = faster(rows[EAGER_MAPS]["times"], rows["pruned"]["times"]).to_dict()
    return figures


def _named(recipe: Recipe) -> str:
    ratio = None if recipe.reduction_ratio is None else f"{recipe.reduction_ratio:g}"
    of = " ".join(part for part in (recipe.model, ratio) if part)
    return f"{of}; {recipe.source}" if of else recipe.source


def _overhead(work: Workload, plan: Plan, rounds: int, dense: float, pruned: float | None = None) -> dict[str, Any]:
    """What pruning adds to a prefill, part by part, per step, and as a share of the pruned prefill where that is known."""
    spent = breakdown.overhead(work, plan.recipe, rounds)
    total = Spread.of([sum(each) for each in zip(*spent.values(), strict=True)])
    per_step = total.median / max(1, breakdown.steps(work, plan.recipe))
    figures: dict[str, Any] = {name: Spread.of(values).to_dict() for name, values in spent.items()}
    figures["total"] = total.to_dict()
    figures["attaching"] = breakdown.attaching(work, plan.recipe, rounds).to_dict()
    figures["step"] = {"seconds": per_step, "token_layers": breakdown.token_layers(per_step, dense, work)}
    if pruned is not None:
        figures["scoring_share"] = figures[breakdown.SCORING]["median"] / pruned
        figures["share"] = total.median / pruned
    return figures


def _add_decode(figures: dict[str, Any], work: Workload, models: Mapping[str, Any], kinds: Mapping[Key, Prefill], tokens: int) -> None:
    """Seconds per token after the prefill, on the dense cache and on each pruned one."""
    prefills: dict[str, Callable[[], Any]] = {name: kinds[("", "dense") if name == "dense" else (name, "pruned")] for name in models}
    times = breakdown.decode({name: (models[name], prefills[name]()) for name in models}, work, tokens)
    figures["decode"] = {
        name: {"seconds": Spread.of(each).to_dict(), "times": each, "speedup": faster(times["dense"], each).to_dict()}
        for name, each in times.items()
    }


def _add_vision(figures: dict[str, Any], seconds: Spread | None) -> None:
    """The tower's time, and with it the speed-up of everything up to the first token."""
    figures["vision"] = None if seconds is None else {"seconds": seconds.to_dict()}
    if seconds is None:
        figures["notes"].append("this shape's vision tower makes another number of visual tokens: not timed")
        return
    for row in figures["recipes"]:
        both = (figures["dense"]["dense"], row["prefill"]["pruned"])
        dense, pruned = (seconds.median + each["seconds"]["median"] for each in both)
        row["speedup_with_vision"] = dense / pruned
