"""Where a request's images are and how many tokens each layer deletes of them: plain data that every process computes alike.

vLLM knows an image of a request by a range of placeholders (`mm_features[i].mm_position`), some of which carry embeddings. Each image (or
video) has a budget of its own, as in `fitprune.prune`. Layers between two deletions form a *stage*: all of them hold the same tokens.

Not pruned, which is said once each: a prompt that ends with an image (its last token could be deleted, and is what is sampled from),
one that asks for log-probabilities of the prompt (deleted tokens have none), an image too small for the recipe's budget.

    pytest tests/vllm/test_requests.py
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ..decoder.visual_tokens import Image, groups, tokens_of
from ..errors import FitPruneError
from ..kernels import TEXT
from ..recipe import Recipe

log = logging.getLogger(__name__)
VISUAL = ("image", "video")  # modalities whose tokens may go


class Stages:
    """The layers of a decoder, split at the layers in which a recipe deletes.

    of: [layer] the stage that a layer is in; a deletion comes after its layer's attention, so the layer is the last of its stage.
    """

    def __init__(self, recipe: Recipe, layers: int) -> None:
        recipe.check_layers(layers)
        self.recipe, self.layers = recipe, layers
        self.deleting = tuple(layer for layer, count in enumerate(recipe.counts) if count)
        self.of = [sum(deleting < layer for deleting in self.deleting) for layer in range(layers)]
        self.count = self.of[-1] + 1

    def lost(self, counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Tokens gone before each stage, [stage], from deletions [layer][image]."""
        first = [self.of.index(stage) for stage in range(self.count)]
        return tuple(sum(map(sum, counts[:layer])) for layer in first)


@dataclass(frozen=True)
class PrunedRequest:
    """What a recipe makes of one prompt.

    group: [prompt] `TEXT`, the number of the image that a token belongs to, or 0 between the runs of one image.
    counts: [layer][image] tokens to delete. lost: [stage] tokens gone before each stage.
    visual: A range that holds all visual tokens.
    """

    group: Tensor
    counts: tuple[tuple[int, ...], ...]
    lost: tuple[int, ...]
    images: int
    visual: tuple[int, int]

    @property
    def prompt(self) -> int:
        return len(self.group)


def spans_of(features: Sequence[Any]) -> list[Image]:
    """The visual tokens of each image, as runs of positions in the prompt."""
    spans = []
    for feature in features:
        if feature.modality in VISUAL and (runs := feature.mm_position.extract_embeds_range()):
            spans.append(tuple((first, last + 1) for first, last in runs))
    return sorted(spans)


def read_request(stages: Stages, features: Sequence[Any], prompt: int, sampling: Any = None) -> PrunedRequest | None:
    """What becomes of a request; None if it loses nothing.

    Args:
        features: vLLM's `mm_features` of the request. prompt: How many tokens it has. sampling: Its sampling parameters.
    """
    spans = spans_of(features)
    if not spans:
        return None
    if getattr(sampling, "prompt_logprobs", None) is not None:
        _say("requests that ask for prompt_logprobs are not pruned: deleted tokens have none")
        return None
    group = groups([spans], prompt)
    of, between = group[0][0], group[1][0]
    of[(of == 0) & ~between] = TEXT
    if of[-1] != TEXT:
        _say("prompts that end with an image are not pruned: put the question after the image")
        return None
    try:
        per_image = [stages.recipe.deletions(tokens_of(image), stages.layers) for image in spans]
    except FitPruneError as error:
        _say(f"images of unusual sizes are not pruned: {error}")
        return None
    counts = tuple(zip(*per_image, strict=True))
    if not any(map(any, counts)):
        return None
    return PrunedRequest(of, counts, stages.lost(counts), len(spans), (spans[0][0][0], max(image[-1][1] for image in spans)))


@cache
def _say(line: str) -> None:
    log.warning("fitprune: %s", line)
