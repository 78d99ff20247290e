"""The results as text: what was measured on which machine, then a table of prefills and one of decoding, lines for the rest.

fitprune bench --repeats 3
"""

from __future__ import annotations

from typing import Any

from ..tables import aligned
from .breakdown import GATHER, SCORING, SELECTION

MIB = 2**20


def report(results: dict[str, Any]) -> str:
    """All tables of one run: what `measure` returns, with the shape's name."""
    sections = [_head(results), _prefill(results), _beside(results), _decode(results) if "decode" in results else ""]
    sections.append("\n".join(f"note: {note}" for note in results["notes"]))
    return "\n\n".join(section for section in sections if section)


def _head(results: dict[str, Any]) -> str:
    before, visual, after = results["tokens"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return (
        f"{results['shape']}: {results['layers']} layers x {results['hidden']}, batch {results['batch']}, "
        f"{before} + {visual} + {after} tokens (before the image, image, after), {results['dtype']}, {results['attn']}, random weights\n"
        f"{results['device']}, {results['threads']} thread{'s' * (results['threads'] > 1)}; {versions}; {results['date']}"
    )


def _prefill(results: dict[str, Any]) -> str:
    """Dense variants first, then each recipe's with its ideal."""
    best = results["best_dense"]
    bases = list(dict.fromkeys(("dense", best)))
    head = ["prefill", "median", "quartiles, ms"]
    for base in bases:
        head += [f"faster than {base}", "of ideal"]
    head += ["of bare", "peak memory", "KV cache", "by cost"]
    width = 2 * len(bases) + 1
    cells = [head]
    for name, row in results["dense"].items():
        cells.append([name, *_time(row["seconds"]), *[""] * width, *_held(row, results["dense_cache_bytes_by_cost"])])
    titles = {}
    for recipe in results["recipes"]:
        titles[len(cells)] = _title(recipe, results)
        ideal = f"{recipe['ideal_speedup']:.2f}x"
        cells.append(["  ideal (FLOPs)", "", "", *[ideal, "100%"] * len(bases), "", "", "", ""])
        for name, row in recipe["prefill"].items():
            gains = [text for base in bases for text in (_times(row["speedup"][base]), f"{row['share_of_ideal'][base]:.1%}")]
            cells.append(
                [f"  {name}", *_time(row["seconds"]), *gains, f"{row['share_of_bare']:.1%}", *_held(row, recipe["cache_bytes_by_cost"])]
            )
    lines = aligned(cells)
    for at in sorted(titles, reverse=True):
        lines.insert(at + 1, titles[at])  # one further down, as a rule follows the head
    legend = (
        f"medians of {results['repeats']} round{'s' * (results['repeats'] > 1)} in which all variants take turns, "
        "to the last token's logits. bare: the layers alone, on as many tokens as the recipe leaves"
    )
    return "\n".join([*lines, legend])


def _title(recipe: dict[str, Any], results: dict[str, Any]) -> str:
    return (
        f"{recipe['name']} ({recipe['recipe']}; score {recipe['score']}): {recipe['steps']} steps, "
        f"{recipe['alive']} of {results['tokens'][1]} visual tokens left, "
        f"saves {recipe['visual_reduction']:.1%} of the visual MACs, {recipe['prefill_reduction']:.1%} of the prefill FLOPs"
    )


def _beside(results: dict[str, Any]) -> str:
    """One line for each further thing known about a recipe, and the vision tower."""
    lines = []
    if results.get("vision"):
        lines.append(f"vision tower and projector: {' '.join(_time(results['vision']['seconds']))}")
    for recipe in results["recipes"]:
        name = recipe["name"]
        if "speedup_with_vision" in recipe:
            lines.append(f"{name}: vision tower and prefill together {recipe['speedup_with_vision']:.2f}x faster than dense")
        if "faster_than_eager_maps" in recipe:
            lines.append(f"{name}: pruned is {_times(recipe['faster_than_eager_maps'])} faster than the authors' way (eager-maps)")
        if "overhead" in recipe:
            lines += _overhead(name, recipe["overhead"])
        if "break_even" in recipe:
            lines.append(f"{name}: {_break_even(recipe['break_even'])}")
    return "\n".join(lines)


def _overhead(name: str, cost: dict[str, Any]) -> list[str]:
    each = ", ".join(f"{label} {_ms(cost[label]['median'])}" for label in (SCORING, SELECTION, GATHER))
    step = cost["step"]
    return [
        f"{name}: {each}, together {cost['share']:.1%} of the pruned prefill (scoring {cost['scoring_share']:.1%}); "
        f"a step costs {_ms(step['seconds'])}, as {step['token_layers']:.1f} tokens in one layer",
        f"{name}: attaching and detaching, once per `with` block and not in the table: {_ms(cost['attaching']['median'])}",
    ]


def _break_even(found: dict[str, Any]) -> str:
    if found["tokens"] is None:
        return f"pruning does not pay on this device up to {found['limit']} visual tokens"
    if len(found["tried"]) == 1:
        return f"pruning pays on this device from {found['tokens']} visual tokens on, the fewest tried"
    return f"below {found['tokens']} visual tokens pruning does not pay on this device (against plain dense)"


def _decode(results: dict[str, Any]) -> str:
    cells = [["decode, per token", "median", "quartiles, ms", "faster than dense"]]
    for name, row in results["decode"].items():
        cells.append([name, *_time(row["seconds"]), "" if name == "dense" else _times(row["speedup"])])
    count = len(results["decode"]["dense"]["times"])
    return "\n".join([*aligned(cells), f"{count} tokens after the prefill, all models in turn"])


# Cells.


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds >= 0.0095 else f"{1000 * seconds:.3f} ms"


def _time(seconds: dict[str, float]) -> list[str]:
    digits = 1 if seconds["median"] >= 0.0095 else 3
    low, high = (f"{1000 * seconds[name]:.{digits}f}" for name in ("low", "high"))
    return [_ms(seconds["median"]), f"({low} to {high})"]


def _times(gain: dict[str, float]) -> str:
    return f"{gain['median']:.2f}x ({gain['low']:.2f} to {gain['high']:.2f})"


def _held(row: dict[str, Any], by_cost: int) -> list[str]:
    """Peak and cache as measured, and the cache as the cost model has it; nothing where nothing was measured."""
    if "cache_bytes" not in row:
        return ["", "", ""]
    peak = "" if row["peak_bytes"] is None else f"+{row['peak_bytes'] / MIB:.0f} MiB"
    return [peak, f"{row['cache_bytes'] / MIB:.1f} MiB", f"{by_cost / MIB:.1f} MiB"]
