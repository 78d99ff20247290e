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

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .cost import CostModel
from .decoder.attach import Attachment, attachment_of, find_decoder
from .decoder.deletion import DeletionPolicy
from .decoder.graphs import Graphs
from .decoder.upstream import forbidden_layers
from .errors import FitPruneError, UnsupportedError
from .images.lengths import ImageLengths
from .recipe import Recipe
from .scores import Score, find_score
from .trace import Trace

log = logging.getLogger(__name__)


class PrunedModel(Attachment):
    """A lasting attachment; `trace` describes the last prefill, `detach()` ends it."""

    policy: DeletionPolicy

    @property
    def trace(self) -> Trace:
        return self.policy.trace


def attach(
    model: nn.Module,
    recipe: Recipe,
    *,
    score: str | Score | None = None,
    visual_mask: Tensor | None = None,
    seed: int = 0,
    graphs: int | Graphs = 0,
) -> PrunedModel:
    """Attaches a recipe to a model until `detach`. Arguments and errors as `prune`; returns a handle with `trace`."""
    if not isinstance(recipe, Recipe):
        raise FitPruneError(
            f"expected a Recipe, got {type(recipe).__name__}: use Recipe.load(path), Recipe.published(name, ratio) or fit(...)"
        )
    if not isinstance(graphs, Graphs) and (not isinstance(graphs, int) or graphs < 0):
        raise FitPruneError(f"graphs must be how many recorded prefills to keep, a whole number from 0, not {graphs!r}")
    decoder = find_decoder(model)
    layers = len(decoder.layers)  # type: ignore[arg-type]
    recipe.check_layers(layers)
    try:
        recipe.check_model(CostModel.of(decoder))
    except FitPruneError:
        if recipe.cost is not None:  # else it does not matter what the model costs
            raise
    if isinstance(score, str) and recipe.score not in (None, score):
        log.warning("fitprune: this recipe was fitted for the score %r, tokens are ranked by %r as asked", recipe.score, score)
    ranking = find_score(score if callable(score) else recipe.ranked_by(score))
    policy = DeletionPolicy(recipe, layers, ranking, seed, forbidden_layers(decoder))
    attached = PrunedModel(model, policy, visual_mask, ImageLengths(getattr(model, "config", None)))
    if graphs:
        try:
            if attached.shares_heads:
                raise UnsupportedError("recorded prefills do not go with tensor parallelism: leave out graphs=, or load the model whole")
            recorded = graphs if isinstance(graphs, Graphs) else Graphs(graphs)
            attached.on_detach(recorded.install(attached.decoder, attached.layers))
        except FitPruneError:
            attached.detach()
            raise
    return attached


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
    score: str | Score | None = None,
    visual_mask: Tensor | None = None,
    seed: int = 0,
    graphs: int | Graphs = 0,
) -> Iterator[Trace]:
    """Prunes visual tokens in every forward and `generate` of `model` inside the `with` block.

    Args:
        model: A transformers model as loaded, or a bare decoder (`LlamaModel`, `LlamaForCausalLM`, …); a `PeftModel` around one.
        recipe: How many tokens each layer deletes.
        score: What is deleted first: a name in `scores.SCORES`, with settings ("spread theta=0.5"), or a function (see scores.py); None
            for the recipe's own, which is the paper's if it names none.
        visual_mask: bool [B, S], True at visual positions of the prompt; each run of True is one image. Needed where
            the config names no image token, or for `inputs_embeds`. Rows may be repeated by beams.
        seed: For scores that are random.
        graphs: On a GPU, how many recorded prefills (CUDA graphs) to keep; 0 records none. See decoder/graphs.py.
    Yields:
        A `Trace` of the last prefill: `trace.alive[layer][row]`, original positions alive after that layer.
    Raises:
        FitPruneError: recipe for another model, mask that does not fit, recipe already attached.
        UnsupportedError: what pruning cannot do; see the module's docstring.
    """
    attached = attach(model, recipe, score=score, visual_mask=visual_mask, seed=seed, graphs=graphs)
    try:
        yield attached.trace
    finally:
        attached.detach()
