"""The FLOPs of one prefill as four papers and tools count them, so that their percentages can be told apart.

A convention says which tokens count (the image's, or the whole prompt's), what a layer costs, and whether one
multiply-accumulate is one operation or two. The same recipe on the same model saves another share under each:

- `fitprune`: visual tokens alone, multiply-accumulates (paper, section 3.3; the released `statistical_analysis.py`). A
  deleting layer charges attention for the tokens that enter it and the rest for those that leave it.
- `fastv` (https://arxiv.org/abs/2403.06764, equation 5): visual tokens alone, 4nd² + 2n²d + 2ndm per layer, in which the
  MLP has two matrices. A Llama's has three. Tokens go between layers.
- `divprune` (https://github.com/vbdi/divprune, `tflops.py` at commit 799e2d9, `find_flop`): the same formula of the
  whole prompt.
- `calflops` (https://pypi.org/project/calflops, 0.3.2): counts the matrix products of a real forward, two FLOPs each, the output
  layer at every position included. It patches `torch.matmul` and `F.linear`, so attention by
  `scaled_dot_product_attention`, transformers' default, counts as nothing (`calflops_sdpa`).

`prefill` is ours (`CostModel.prefill_flops` and the output layer once), which an ideal speed-up is computed from.

Left out: norms, softmax, rotary embeddings, activations (calflops adds 0.01% for those), and what choosing tokens costs. Formulas
in integers, no torch; `tests/studies/test_conventions.py` runs calflops itself on the meta device.

    python -m fitprune.studies.conventions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..cost import VICUNA_7B, CostModel
from ..errors import FitPruneError
from ..recipe import Recipe
from ..tables import markdown

Count = Callable[[CostModel, Sequence[int], int, int], int]  # model, alive [layer], visual tokens, text tokens


@dataclass(frozen=True)
class Convention:
    """What is counted, in words, and the function that counts it."""

    tokens: str
    layer: str
    unit: str
    count: Count


def entering(alive: Sequence[int], visual_tokens: int) -> list[int]:
    """Visual tokens that enter each layer, [layer], of those alive after each layer."""
    return [visual_tokens, *alive][: len(alive)]


def fitprune(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """Multiply-accumulates of visual tokens (`CostModel.visual_macs`)."""
    return sum(map(int, cost.visual_macs(alive, visual_tokens)))


def two_matrix_layer(cost: CostModel, tokens: int) -> int:
    """4nd² + 2n²d + 2ndm: four projections, two products of attention, an MLP of two matrices."""
    if cost.each:
        raise FitPruneError("FastV's and DivPrune's formulas are of Llama-shaped layers, and this model has others: leave them out")
    d, m = cost.hidden, cost.intermediate
    return 4 * tokens * d**2 + 2 * tokens**2 * d + 2 * tokens * d * m


def fastv(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """Equation 5 of FastV, of visual tokens: a layer costs what the tokens that enter it cost."""
    return sum(two_matrix_layer(cost, tokens) for tokens in entering(alive, visual_tokens))


def divprune(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """`find_flop` of DivPrune's tflops.py, of the whole prompt."""
    return sum(two_matrix_layer(cost, tokens + text_tokens) for tokens in entering(alive, visual_tokens))


def calflops(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """What calflops counts with eager attention, in matrix products: the whole prompt, logits of all that is left."""
    logits = 2 * (alive[-1] + text_tokens) * cost.hidden * cost.vocab
    return sum(map(int, cost.prefill_flops(alive, visual_tokens, text_tokens))) + logits


def calflops_sdpa(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """The same with sdpa attention, which calflops does not see: without the two products of attention."""
    each = zip(cost.per_layer, entering(alive, visual_tokens), strict=True)
    unseen = sum(2 * layer.pair * (tokens + text_tokens) ** 2 for layer, tokens in each)
    return calflops(cost, alive, visual_tokens, text_tokens) - unseen


def prefill(cost: CostModel, alive: Sequence[int], visual_tokens: int, text_tokens: int) -> int:
    """FLOPs of the whole prompt with logits for the last token alone (`CostModel.speedup` is a quotient of these)."""
    return sum(map(int, cost.prefill_flops(alive, visual_tokens, text_tokens))) + 2 * cost.hidden * cost.vocab


LAYER = "3td² + 2t²d + ud² + 3udm"
CONVENTIONS: dict[str, Convention] = {
    "FitPrune": Convention("visual", LAYER, "MACs", fitprune),
    "FastV": Convention("visual", "4td² + 2t²d + 2tdm", '"FLOPs", in fact MACs', fastv),
    "DivPrune": Convention("all", "4td² + 2t²d + 2tdm", '"FLOPs", in fact MACs', divprune),
    "calflops, eager attention": Convention("all", f"2 · ({LAYER})", "FLOPs", calflops),
    "calflops, sdpa attention": Convention("all", "2 · (3td² + ud² + 3udm)", "FLOPs", calflops_sdpa),
    "whole prefill (ours)": Convention("all", f"2 · ({LAYER})", "FLOPs", prefill),
}


def table(recipes: dict[str, Recipe], cost: CostModel = VICUNA_7B, visual_tokens: int = 576, text_tokens: int = 99) -> str:
    """A markdown table: a row per convention, dense operations, and what each recipe leaves and saves.

    Raises:
        FitPruneError: for a recipe of another number of layers.
    """
    rows = [["convention", "tokens", "per layer", "unit", "dense", *recipes]]
    dense = [visual_tokens] * cost.layers
    for name, convention in CONVENTIONS.items():
        whole = convention.count(cost, dense, visual_tokens, text_tokens)
        cells = [name, convention.tokens, convention.layer, convention.unit, f"{whole / 1e12:.3f} T"]
        for recipe in recipes.values():
            left = convention.count(cost, recipe.alive(visual_tokens, cost.layers), visual_tokens, text_tokens)
            cells.append(f"{left / 1e12:.3f} T, −{1 - left / whole:.1%}")
        rows.append(cells)
    return "\n".join(markdown(rows))


def example() -> str:
    """The table of docs/faq.md: LLaVA-1.5-7B, 35 + 576 + 64 tokens."""
    return table({'published "60%"': Recipe.published("llava-v1.5-7b", 0.6), "FastV, K = 2, R = 50%": Recipe.step(layer=1, keep=0.5)})


if __name__ == "__main__":
    print(example())
