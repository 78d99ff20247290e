"""One question about one image, answered by the dense model and by the pruned one: everything that is drawn of it.

    python -c "import fitprune; from PIL import Image; from fitprune.draw.asked import ask; llava = fitprune.load('embedded'); \
        print(ask(llava, Image.new('RGB', (9, 9)), 'What?', fitprune.Recipe.step(layer=2, keep=0.5)))"
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..families import VLM
from ..images.reading import as_rgb
from ..observe import observe
from ..prune import prune
from ..recipe import Recipe
from ..stats import AttentionStats
from .frames import alive, fade, stages
from .places import Places, places


@dataclass(frozen=True)
class Asked:
    """What was asked, of whom, and what became of the image's n visual tokens in the L layers.

    kept: bool [L, n], the tokens alive after each layer. saved: share of the visual compute (multiply-accumulates of the image's
    tokens in all layers) that these deletions save.
    """

    model: str
    question: str
    dense: str
    pruned: str
    score: str
    saved: float
    where: Places = field(repr=False)
    kept: np.ndarray = field(repr=False)

    @property
    def first_line(self) -> str:
        """Of the question, for titles; instructions often follow it."""
        return next(iter(self.question.strip().splitlines()), "")

    @property
    def alive(self) -> list[int]:
        """Visual tokens of the whole image, then after each layer, [L + 1]."""
        return [int(kept.sum()) for kept in stages(self.kept)]

    def frames(self) -> list[Image.Image]:
        """The image in each stage."""
        return [fade(self.where, kept) for kept in stages(self.kept)]


def ask(vlm: VLM, image: Image.Image, question: str, recipe: Recipe, score: str | None = None, max_new_tokens: int = 128) -> Asked:
    """Asks twice, greedily: all that the user says, instructions included, without `<image>`. FitPruneError for another model's recipe."""
    image = as_rgb(image)
    where = places(vlm, image)  # where nothing can be drawn, nothing need be asked
    inputs = vlm.encode([(vlm.prompt(question), [image])])
    dense = vlm.generate(inputs, max_new_tokens=max_new_tokens)[0]
    with prune(vlm.model, recipe, score=score) as trace:
        pruned = vlm.generate(inputs, max_new_tokens=max_new_tokens)[0]
    kept = alive(trace, where.tokens)
    saved = vlm.cost.visual_reduction_of_alive(kept.sum(1).tolist(), where.tokens)
    return Asked(vlm.name, question, dense, pruned, recipe.ranked_by(score), saved, where, kept)


@torch.inference_mode()
def watch(vlm: VLM, image: Image.Image, question: str) -> AttentionStats:
    """The attention that the image's tokens receive from the question and from each other in the dense model; one sample."""
    return observe(vlm.model, [vlm.encode([(vlm.prompt(question), [as_rgb(image)])], "right")], name=vlm.name, progress=False)
