"""Run a model with a recipe: visual tokens disappear inside the decoder, layer by layer.

    with fitprune.prune(model, recipe) as trace:
        output = model.generate(**inputs)

During a prefill that brings visual tokens, each layer whose recipe entry is not zero ranks the tokens of each image by
the attention they received in that layer and drops the lowest. The deleted tokens still served as keys and values in
the layer that deletes them, stay in that layer's cache, and are absent from everything later; survivors keep their
original positions (facts as in the released code, `modeling_llama.py`; paper, section 3.3). Output logits cover the survivors, in order,
so the last position is the last token. Decoding is the model's own, on shorter caches.

Works on greedy, sampled and beam generation, padded and ragged batches, several images (a budget each), later turns
with new images, sdpa, eager and flash attention. Left out, with an error that says so: static caches, sliding-window
caches, assisted decoding, flex attention, training.

    pytest tests/test_prune.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .attach import Attachment, Prefill, attachment_of, find_decoder
from .cost import CostModel
from .errors import FitPruneError
from .frame import Frame
from .recipe import Recipe
from .scores import Attended, Score, find_score
from .select import ALIVE, DELETED, PADDING, compact, lowest
from .trace import Trace


class PruneFrame(Frame):
    """A prefill whose deletions a recipe has fixed: every count and shape is known before the first layer."""

    def __init__(self, session: Pruning, *args: Any) -> None:
        super().__init__(*args)
        self.session = session
        recipe, layers = session.recipe, session.layers
        per_image = [[recipe.deletions(end - start, layers) for start, end in row] for row in self.spans]
        self.counts = [[[image[layer] for image in row] for row in per_image] for layer in range(layers)]
        alive = (self.host_group != 0).sum(1).tolist()
        self.lengths, self.ragged = [], []
        for counts in self.counts:
            alive = [left - sum(row) for left, row in zip(alive, counts, strict=True)]
            if any(left <= 0 and sum(row) for left, row in zip(alive, counts, strict=True)):
                raise FitPruneError(
                    "a row of the batch has no text and the recipe deletes all of its visual tokens, so nothing is left: "
                    "add text to the prompt, or use a recipe that keeps a token"
                )
            self.lengths.append(max(alive))
            self.ragged.append(len(set(alive)) > 1)
        padding = torch.where(self.host_group == 0, PADDING, ALIVE)
        self.steps = session.trace.clear(self.past, padding, self.host_group)

    def listens(self, layer: int) -> bool:
        return any(any(row) for row in self.counts[layer])

    def choose(self, seen: Attended) -> Tensor:
        layer = self.layer
        seen.seed = self.session.seed
        marked = lowest(self.session.score(seen).float(), self.token_group, self.counts[layer])
        self.status = self.status.masked_fill(marked, DELETED)
        self.token_group = self.token_group.masked_fill(marked, 0)
        self.fillers = self.ragged[layer]
        return compact(self.status, self.lengths[layer])

    def cut(self, hidden: Tensor) -> Tensor:
        hidden = super().cut(hidden)
        self.steps.append((self.columns, None if self.columns is None else self.status))
        return hidden


class Pruning:
    """The session behind `prune`: what does not change from one forward to the next."""

    def __init__(self, recipe: Recipe, layers: int, score: Score, seed: int) -> None:
        self.recipe, self.layers, self.score, self.seed = recipe, layers, score, seed
        self.trace = Trace()

    def begin(self, call: Prefill) -> Frame:
        return call.frame(PruneFrame, self)


class PrunedModel(Attachment):
    """A lasting attachment; `trace` describes the last prefill, `detach()` ends it."""

    session: Pruning

    @property
    def trace(self) -> Trace:
        return self.session.trace


def attach(
    model: nn.Module,
    recipe: Recipe,
    *,
    score: str | Score = "fitprune",
    visual_mask: Tensor | None = None,
    seed: int = 0,
    cut_inside: bool = True,
) -> PrunedModel:
    """Attaches a recipe to a model until `detach`. Arguments and errors as `prune`; returns a handle with `trace`."""
    if not isinstance(recipe, Recipe):
        raise FitPruneError(
            f"expected a Recipe, got {type(recipe).__name__}: use Recipe.load(path), Recipe.published(name, ratio) or fit(...)"
        )
    decoder = find_decoder(model)
    layers = len(decoder.layers)  # type: ignore[arg-type]
    recipe.check_layers(layers)
    recipe.check_model(CostModel.from_config(decoder.config))
    return PrunedModel(model, Pruning(recipe, layers, find_score(score), seed), visual_mask, cut_inside)


def detach(model: nn.Module | PrunedModel) -> None:
    """Takes back whatever is attached to a model (or the handle that `attach` returned); nothing attached is fine."""
    attachment = model if isinstance(model, Attachment) else attachment_of(model)
    if attachment is not None:
        attachment.detach()


@contextmanager
def prune(
    model: nn.Module,
    recipe: Recipe,
    *,
    score: str | Score = "fitprune",
    visual_mask: Tensor | None = None,
    seed: int = 0,
    cut_inside: bool = True,
) -> Iterator[Trace]:
    """Prunes visual tokens in every forward and `generate` of `model` inside the `with` block.

    Args:
        model: A transformers model as loaded, or a bare decoder (`LlamaModel`, `LlamaForCausalLM`, …).
        recipe: How many tokens each layer deletes.
        score: What is deleted first: a name in `scores.SCORES` or a function (see scores.py).
        visual_mask: bool [B, S], True at visual positions of the prompt; each run of True is one image. Needed where
            the config names no image token, or for `inputs_embeds`. Rows may be repeated by beams.
        seed: For scores that draw lots.
        cut_inside: False cuts each layer at its exit; the same survivors, less saved. For tests and comparisons.
    Yields:
        A `Trace` of the last prefill: `trace.alive[layer][row]`, original positions alive after that layer.
    Raises:
        FitPruneError: recipe for another model, mask that does not fit, recipe already attached.
        UnsupportedError: what pruning cannot do; see the module's docstring.
    """
    attached = attach(model, recipe, score=score, visual_mask=visual_mask, seed=seed, cut_inside=cut_inside)
    try:
        yield attached.trace
    finally:
        attached.detach()
