"""A recipe as text: where it comes from, then a line per layer with the tokens alive, those deleted, and a bar.

fitprune show llava-v1.5-7b 0.6
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipe import Recipe

BAR = 40  # characters of a full bar


def chart(recipe: Recipe) -> str:
    """The recipe at its reference count, or of 100 tokens if it is in fractions."""
    tokens = 100 if recipe.scaling == "fraction" else recipe.visual_tokens
    deletions, alive = recipe.deletions(tokens), recipe.alive(tokens)
    facts = [f"{recipe.source} recipe" + (f" for {recipe.model}" if recipe.model else "")]
    if recipe.reduction_ratio is not None:
        facts.append(f"asked {recipe.reduction_ratio:.1%}")
    if recipe.achieved is not None:
        facts.append(f"saves {recipe.achieved:.1%} of visual compute")
    width = len(str(tokens))
    depth = f"{len(alive)} layers" if recipe.num_layers else "any model"
    steps = sum(map(bool, deletions))
    lines = [", ".join(facts), f"{depth}, {steps} delete, {tokens} visual tokens, {alive[-1]} alive at the end"]
    lines += [
        f"{layer:4d} {count:{width}d} {f'-{gone}' if gone else '':>{width + 1}} {_bar(count / tokens)}"
        for layer, (count, gone) in enumerate(zip(alive, deletions, strict=True))
    ]
    return "\n".join(line.rstrip() for line in lines)


def _bar(share: float) -> str:
    """A bar of block characters, in eighths of a character."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
