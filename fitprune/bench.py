"""How long a prefill takes, dense and pruned in the same run, beside what FLOPs promise.

Random weights at a named shape and random embeddings: time does not depend on what they are. Dense and pruned
prefills alternate, after warm-up; medians count, quartiles tell how noisy the machine was. The speed-up is the median over
neighbouring pairs, so that a machine that gets slower for a while does not decide it. `scoring` is the time spent
computing and sorting scores, measured inside pruned prefills of their own. Peak memory is what a prefill adds to the
process (CPU, Linux) or to the allocator (GPU). The ideal speed-up is dense over pruned FLOPs of the whole prefill, text
included (cost.py). `bare` runs the same layers on as many tokens as the recipe leaves and does nothing else: no hooks, no
scores, no selection. What separates it from the ideal is the machine's (shorter matrix products, a causal kernel that
does half the attention that the FLOPs count), what separates `pruned` from it is ours.

    fitprune bench --repeats 5
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from . import options
from .cost import CostModel
from .errors import FitPruneError
from .files import write_atomically
from .prune import prune
from .recipe import Recipe
from .scores import Attended, find_score


@dataclass(frozen=True)
class Shape:
    """A decoder and a prompt: tokens before the image, of the image, after it. `recipes` names a published table."""

    cost: CostModel
    before: int
    visual: int
    after: int
    recipes: str


def _shape(
    layers: int, hidden: int, intermediate: int, heads: int, visual: int = 576, recipes: str = "llava-v1.5-7b"
) -> Shape:
    cost = CostModel(layers, hidden, intermediate, heads, heads, hidden // heads)
    return Shape(cost, before=35, visual=visual, after=64, recipes=recipes)


SHAPES = {
    "small": _shape(32, 1024, 2752, 16),
    "llava-1.5-7b": _shape(32, 4096, 11008, 32),
    "llava-1.5-13b": _shape(40, 5120, 13824, 40),
    "llava-next-7b": _shape(32, 4096, 11008, 32, visual=2880, recipes="llava-v1.6-vicuna-7b"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune bench`."""
    parser.add_argument("--shape", default="small", choices=list(SHAPES), help="decoder and prompt; weights are random")
    parser.add_argument(
        "--reduction_ratio",
        "--reduction-ratio",
        type=options.ratio,
        default=0.6,
        help="share of the visual compute to save",
    )
    parser.add_argument(
        "--recipe",
        default=None,
        help="a recipe file instead; default the published one, else a step at layer 1 that meets the ratio",
    )
    parser.add_argument(
        "--visual-tokens", type=options.positive, default=None, help="tokens of the image instead of the shape's"
    )
    parser.add_argument(
        "--text-tokens", type=options.positive, default=None, help="tokens after the image instead of the shape's"
    )
    parser.add_argument(
        "--layers",
        type=options.positive,
        default=None,
        help="decoder layers instead of the shape's (step recipes only)",
    )
    parser.add_argument("--batch-size", type=options.positive, default=1)
    parser.add_argument("--repeats", type=options.positive, default=7, help="timed prefills of each kind")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default=None, help="default the first GPU, else the CPU")
    parser.add_argument("--attn", default="sdpa", help="attention implementation of both models")
    parser.add_argument("--json", default=None, help="also write the figures to this file")


def run(args: argparse.Namespace) -> int:
    """Benchmarks one shape and prints a table."""
    figures = measure(
        SHAPES[args.shape], args.reduction_ratio, recipe_file=args.recipe, visual=args.visual_tokens, after=args.text_tokens,
        layers=args.layers, batch=args.batch_size, repeats=args.repeats, dtype=args.dtype, device=args.device, attn=args.attn,
    )  # fmt: skip
    figures = {"shape": args.shape, **figures}
    print(report(figures))
    if args.json:
        write_atomically(args.json, json.dumps(figures, indent=1).encode())
    return 0


def recipe_for(shape: Shape, ratio: float, visual: int, file: str | Path | None) -> Recipe:
    """The recipe that was named, the published one, or a single step at layer 1 of the same reduction."""
    if file is not None:
        return Recipe.load(file)
    with suppress(FitPruneError):
        recipe = Recipe.published(shape.recipes, ratio)
        recipe.check_layers(shape.cost.layers)
        return recipe
    from .schedule import round_to_budget, smallest

    def curve(keep: float) -> list[float]:
        return [float(visual)] + [visual * keep] * (shape.cost.layers - 1)

    gone = smallest(lambda share: shape.cost.visual_reduction_of_alive(curve(1 - share), visual) >= ratio, 0.0, 1.0)
    alive = [visual, *round_to_budget(curve(1 - gone), visual, shape.cost, ratio)]
    deletions = [before - after for before, after in pairwise(alive)]
    return Recipe.from_deletions(deletions, visual_tokens=visual, reduction_ratio=ratio, source="one step")


@torch.inference_mode()
def measure(
    shape: Shape,
    ratio: float,
    *,
    recipe_file: str | Path | None = None,
    visual: int | None = None,
    after: int | None = None,
    layers: int | None = None,
    batch: int = 1,
    repeats: int = 7,
    dtype: str = "float32",
    device: str | None = None,
    attn: str = "sdpa",
) -> dict[str, Any]:
    """Times dense and pruned prefills of `shape`; see `run` for the arguments.

    Returns:
        Plain figures: seconds (medians and quartiles), speed-ups, memory in MiB, versions.
    Raises:
        FitPruneError: a recipe for another number of layers.
    """
    import transformers
    from transformers import DynamicCache, LlamaConfig, LlamaModel

    cost = shape.cost if layers is None else CostModel(**{**shape.cost.to_dict(), "layers": layers})
    shape = Shape(cost, shape.before, visual or shape.visual, after or shape.after, shape.recipes)
    recipe = recipe_for(shape, ratio, shape.visual, recipe_file)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = LlamaConfig(
        hidden_size=cost.hidden, intermediate_size=cost.intermediate, num_hidden_layers=cost.layers, vocab_size=128,
        num_attention_heads=cost.heads, num_key_value_heads=cost.kv_heads, attn_implementation=attn,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaModel(config).to(getattr(torch, dtype)).eval()
    length = shape.before + shape.visual + shape.after
    embeds = torch.randn(batch, length, cost.hidden, device=device, dtype=getattr(torch, dtype))
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, shape.before : shape.before + shape.visual] = True

    def dense() -> None:
        model(inputs_embeds=embeds, use_cache=True)

    def pruned(score: Any = "fitprune") -> None:
        with prune(model, recipe, visual_mask=mask, score=score):
            model(inputs_embeds=embeds, use_cache=True)

    alive = recipe.alive(shape.visual, cost.layers)
    text = shape.before + shape.after

    def bare() -> None:
        hidden, cache = embeds, DynamicCache()
        rotary = model.rotary_emb(embeds, torch.arange(length, device=device)[None])
        for layer, left in zip(model.layers, alive, strict=True):
            near = tuple(part[:, : hidden.shape[1]] for part in rotary)
            attended, _ = layer.self_attn(layer.input_layernorm(hidden), near, None, past_key_values=cache)
            hidden = (hidden + attended)[:, : left + text]
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        model.norm(hidden)

    spent = [0.0]

    def timed_score(seen: Attended) -> torch.Tensor:
        start = _now(device)
        result = find_score("fitprune")(seen)
        spent[0] += _now(device) - start
        return result

    for warm in (dense, pruned, bare):
        warm()
    times: dict[str, list[float]] = {"dense": [], "pruned": [], "bare": [], "scoring": []}
    for _ in range(repeats):
        times["dense"].append(_timed(dense, device))
        times["pruned"].append(_timed(pruned, device))
        times["bare"].append(_timed(bare, device))
    for _ in range(max(1, repeats // 2)):
        spent[0] = 0.0
        pruned(timed_score)
        times["scoring"].append(spent[0])

    middle = {name: statistics.median(values) for name, values in times.items()}
    ideal = cost.speedup(alive, shape.visual, text)
    speedup, possible = (
        statistics.median(dense / other for dense, other in zip(times["dense"], times[name], strict=True))
        for name in ("pruned", "bare")
    )
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "dtype": dtype, "attn": attn, "batch": batch, "layers": cost.layers, "hidden": cost.hidden,
        "tokens": [shape.before, shape.visual, shape.after],
        "recipe": f"{recipe.source}, {ratio:g}",
        "visual_reduction": cost.visual_reduction_of_alive(alive, shape.visual),
        "prefill_reduction": cost.prefill_reduction(alive, shape.visual, text),
        "seconds": middle,
        "quartiles": {name: _quartiles(values) for name, values in times.items()},
        "speedup": speedup, "ideal_speedup": ideal, "share_of_ideal": speedup / ideal, "bare_speedup": possible,
        "scoring_share": middle["scoring"] / middle["pruned"],
        "peak_mib": {"dense": _peak(dense, device), "pruned": _peak(pruned, device)},
    }  # fmt: skip


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    before, visual, after = figures["tokens"]
    seconds, quartiles, peak = figures["seconds"], figures["quartiles"], figures["peak_mib"]
    versions = figures["versions"]

    def line(name: str) -> str:
        low, high = quartiles[name]
        memory = "" if peak.get(name) is None else f"   peak memory +{peak[name]:.0f} MiB"
        return f"  {name:8s} {1000 * seconds[name]:9.1f} ms   (quartiles {1000 * low:.1f} to {1000 * high:.1f}){memory}"

    return "\n".join(
        [
            f"prefill of {figures['shape']}: {figures['layers']} layers x {figures['hidden']}, batch {figures['batch']}, "
            f"{before}+{visual}+{after} tokens, {figures['dtype']}, {figures['attn']}",
            f"{figures['device']}, torch {versions['torch']}, transformers {versions['transformers']}, {figures['date']}",
            f"recipe: {figures['recipe']}; saves {figures['visual_reduction']:.1%} of the visual MACs, "
            f"{figures['prefill_reduction']:.1%} of the prefill FLOPs",
            *map(line, ("dense", "pruned", "bare", "scoring")),
            f"  speed-up {figures['speedup']:.2f}x of an ideal {figures['ideal_speedup']:.2f}x: {figures['share_of_ideal']:.1%} "
            f"(bare layers on as many tokens: {figures['bare_speedup']:.2f}x); "
            f"scoring is {figures['scoring_share']:.1%} of the pruned prefill",
        ]
    )


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def _timed(work: Callable[[], None], device: str) -> float:
    start = _now(device)
    work()
    return _now(device) - start


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _peak(work: Callable[[], None], device: str) -> float | None:
    """Memory in MiB that `work` needs on top of what is held before it; None where the system does not tell."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that it does not hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return None


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")
