"""The figures as text: what was measured with what, then one table per question.

fitprune bench --repeats 3
"""

from __future__ import annotations

from typing import Any

from ..tables import aligned
from .breakdown import GATHER, SCORING, SELECTION

MIB = 2**20


def report(figures: dict[str, Any]) -> str:
    """All tables of one run.

    Args:
        figures: What `measure` returns, with the shape's name.
    """
    sections = [_head(figures), _prefill(figures), _beside(figures)]
    if "decode" in figures:
        sections.append(_decode(figures))
    if figures["notes"]:
        sections.append("\n".join(f"note: {note}" for note in figures["notes"]))
    return "\n\n".join(section for section in sections if section)


def _head(figures: dict[str, Any]) -> str:
    before, visual, after = figures["tokens"]
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    return "\n".join(
        [
            f"{figures['shape']}: {figures['layers']} layers x {figures['hidden']}, batch {figures['batch']}, "
            f"{before} + {visual} + {after} tokens (before the image, image, after), {figures['dtype']}, {figures['attn']}, random weights",
            f"{figures['device']}, {figures['threads']} thread{'s' * (figures['threads'] > 1)}; {versions}; {figures['date']}",
        ]
    )


def _prefill(figures: dict[str, Any]) -> str:
    """Dense kinds first, then each recipe's with its ideal."""
    best = figures["best_dense"]
    bases = list(dict.fromkeys(("dense", best)))
    head = ["prefill", "median", "quartiles, ms"]
    for base in bases:
        head += [f"faster than {base}", "of ideal"]
    head += ["peak memory", "KV cache", "by cost"]
    width = 2 * len(bases)
    cells = [head]
    for name, row in figures["dense"].items():
        cells.append([name, *_time(row["seconds"]), *[""] * width, *_held(row, figures["dense_cache_bytes_by_cost"])])
    titles = {}
    for recipe in figures["recipes"]:
        titles[len(cells)] = _title(recipe, figures)
        ideal = f"{recipe['ideal_speedup']:.2f}x"
        cells.append(["  ideal (FLOPs)", "", "", *[ideal, "100%"] * len(bases), "", "", ""])
        for name, row in recipe["prefill"].items():
            gains = [text for base in bases for text in (_times(row["speedup"][base]), f"{row['share_of_ideal'][base]:.1%}")]
            cells.append([f"  {name}", *_time(row["seconds"]), *gains, *_held(row, recipe["cache_bytes_by_cost"])])
    lines = aligned(cells)
    for at in sorted(titles, reverse=True):
        lines.insert(at + 1, titles[at])  # one further down: below the head there is a rule
    legend = (
        f"medians of {figures['repeats']} round{'s' * (figures['repeats'] > 1)} in which all kinds take turns, to the last token's logits. "
        "bare: the layers on as many tokens, nothing of ours"
    )
    return "\n".join([*lines, legend])


def _title(recipe: dict[str, Any], figures: dict[str, Any]) -> str:
    return (
        f"{recipe['name']} ({recipe['recipe']}): {recipe['steps']} steps, {recipe['alive']} of {figures['tokens'][1]} visual tokens "
        f"left, saves {recipe['visual_reduction']:.1%} of the visual MACs, {recipe['prefill_reduction']:.1%} of the prefill FLOPs"
    )


def _beside(figures: dict[str, Any]) -> str:
    """One line for each further thing known about a recipe, and the vision tower."""
    lines = []
    if figures.get("vision"):
        lines.append(f"vision tower and projector: {' '.join(_time(figures['vision']['seconds']))}")
    for recipe in figures["recipes"]:
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
    parts = ", ".join(f"{part} {_ms(cost[part]['median'])}" for part in (SCORING, SELECTION, GATHER))
    step = cost["step"]
    return [
        f"{name}: {parts}, together {cost['share']:.1%} of the pruned prefill (scoring {cost['scoring_share']:.1%}); "
        f"a step costs {_ms(step['seconds'])}, as {step['token_layers']:.1f} tokens in one layer",
        f"{name}: attaching and detaching, once per `with` block and not in the table: {_ms(cost['attaching']['median'])}",
    ]


def _break_even(found: dict[str, Any]) -> str:
    if found["tokens"] is None:
        return f"pruning does not pay on this device up to {found['limit']} visual tokens"
    if len(found["tried"]) == 1:
        return f"pruning pays on this device from {found['tokens']} visual tokens on, the fewest tried"
    return f"below {found['tokens']} visual tokens pruning does not pay on this device (against plain dense)"


def _decode(figures: dict[str, Any]) -> str:
    cells = [["decode, per token", "median", "quartiles, ms", "faster than dense"]]
    for name, row in figures["decode"].items():
        gain = "" if name == "dense" else _times(row["speedup"])
        cells.append([name, *_time(row["seconds"]), gain])
    count = len(figures["decode"]["dense"]["times"])
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
