"""The shapes that are benchmarked: sizes of a decoder, its prompt and its vision tower. No weights, no torch.

Prompts are LLaVA's: 35 tokens before the image, then the image's, then 64 of question. The two small shapes are the 7B one at a
quarter of its width, tower included, for machines without a GPU. NeXT's 2880 tokens are five views of 576 (the whole image and four
tiles), as the authors' recipes count them: newline tokens and cropped padding are left out.

    python -c "from fitprune.bench.shapes import SHAPES; print(*SHAPES.items(), sep='\\n')"
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..cost import CostModel, deletions_of
from ..errors import FitPruneError
from ..recipe import Recipe
from ..schedule.budget import round_to_budget, smallest
from ..schedule.candidates import candidates


@dataclass(frozen=True)
class Tower:
    """A vision tower: CLIP ViT-L/14-336 at 1/`narrower` of its width on `views` images, or LLaVA-HR's two towers."""

    views: int = 1
    narrower: int = 1
    two: bool = False


@dataclass(frozen=True)
class Shape:
    """A decoder and a prompt: tokens before the image, of the image, after it.

    recipes: Name of a published table of recipes. tower: What makes the visual tokens, None where nothing is timed.
    """

    cost: CostModel
    before: int
    visual: int
    after: int
    recipes: str
    tower: Tower | None = None

    @property
    def text(self) -> int:
        return self.before + self.after

    @property
    def length(self) -> int:
        return self.before + self.visual + self.after

    def altered(self, *, visual: int | None = None, after: int | None = None, layers: int | None = None) -> Shape:
        """The shape with other numbers where they are given; with another number of visual tokens it has no tower."""
        return replace(
            self,
            cost=replace(self.cost, layers=layers or self.cost.layers),
            visual=visual or self.visual,
            after=after or self.after,
            tower=self.tower if visual in (None, self.visual) else None,
        )


def _shape(layers: int, hidden: int, intermediate: int, heads: int, visual: int, recipes: str, tower: Tower) -> Shape:
    cost = CostModel(layers, hidden, intermediate, heads, heads, hidden // heads, vocab=32000)
    return Shape(cost, before=35, visual=visual, after=64, recipes=recipes, tower=tower)


_LLAVA, _NEXT, _HR = "llava-v1.5-7b", "llava-v1.6-vicuna-7b", "llava-hr-7b-sft-1024"

SHAPES = {
    "small": _shape(32, 1024, 2752, 16, 576, _LLAVA, Tower(narrower=4)),
    "small-long": _shape(32, 1024, 2752, 16, 2880, _NEXT, Tower(views=5, narrower=4)),
    "llava-1.5-7b": _shape(32, 4096, 11008, 32, 576, _LLAVA, Tower()),
    "llava-1.5-13b": _shape(40, 5120, 13824, 40, 576, _LLAVA, Tower()),
    "llava-next-7b": _shape(32, 4096, 11008, 32, 2880, _NEXT, Tower(views=5)),
    "llava-hr-7b": _shape(32, 4096, 11008, 32, 1024, _HR, Tower(two=True)),
}


SCHEDULE, SCORE = "2 steps from layer 1", "spread"  # the recommended method: what choosing by drift tends to (choose.py)


def scheduled(shape: Shape, ratio: float, name: str) -> Recipe:
    """A schedule of `schedule.candidates` by its name; FitPruneError where there is none of that name at this ratio."""
    known = candidates(shape.cost, shape.visual, ratio)
    if name not in known:
        raise FitPruneError(f"no schedule at {100 * ratio:.6g}% is called {name!r}: use one of {'; '.join(known)}")
    return Recipe.from_deletions(known[name], visual_tokens=shape.visual, cost=shape.cost, reduction_ratio=ratio, source=name)


def recommended(shape: Shape, ratio: float) -> Recipe:
    """The recommended method at a ratio, its score included; errors as `scheduled`."""
    return replace(scheduled(shape, ratio, SCHEDULE), score=SCORE)


def recipe_for(shape: Shape, ratio: float, file: str | Path | None = None) -> Recipe:
    """The recipe that was named, the published one, or a single step at layer 1 of the same reduction.

    Raises a FitPruneError for a recipe file that cannot be read or is for a model of other sizes, and for a ratio out of reach.
    """
    cost, visual = shape.cost, shape.visual
    if file is not None:
        recipe = Recipe.load(file)
        recipe.check_model(cost)
        return recipe
    with suppress(FitPruneError):
        recipe = Recipe.published(shape.recipes, ratio)
        recipe.check_layers(cost.layers)
        return recipe

    def curve(keep: float) -> list[float]:
        return [float(visual)] + [visual * keep] * (cost.layers - 1)

    gone = smallest(lambda share: cost.visual_reduction_of_alive(curve(1 - share), visual) >= ratio, 0.0, 1.0)
    deletions = deletions_of(round_to_budget(curve(1 - gone), visual, cost, ratio), visual)
    return Recipe.from_deletions(deletions, visual_tokens=visual, reduction_ratio=ratio, source="one step")
