"""What the demo computes, without a web page: one question about one image, answered dense and pruned, and measured.

One model serves everybody, and pruning attaches to the model: a lock lets one question in at a time. Recipes come from one pass
of statistics, or are the published ones, and are kept. The method, unless another is chosen, is that schedule ranked by the recommended
score; the paper's is one of the others.

Time to the first token (TTFT) runs from the start of the vision tower to the first token's logits, without preparing the image,
which is the same for both. Short ones are medians of several prefills after the replies, dense and pruned in turn, as the first
forward on a prompt pays for what later ones do not. KV bytes are those of the tensors in the cache after the prefill.

    python -c "from fitprune.web.demo.engine import *; import fitprune; Engine(fitprune.load('embedded')).warm_up()"
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...bench.clock import now
from ...checkpoints.tokenize import IMAGE
from ...decoder.upstream import cache_in
from ...draw.frames import frames
from ...errors import FitPruneError
from ...families import VLM
from ...prune import prune
from ...recipe import RECOMMENDED, Recipe
from ...stats import AttentionStats
from ...studies.methods import INSIDE, METHODS, recipes
from ...trace import Trace

MAX_QUESTION = 500  # characters
MAX_RATIO = 0.9
STOPPING = "The demo is being stopped."
TIMING_SECONDS, TIMED_PREFILLS = 0.5, 9  # prefills are repeated for so long, and so many of each kind, at most


@dataclass(frozen=True)
class Reply:
    """What the model answered, and what it took.

    tokens: Generated ones, the end's included.
    ttft: Seconds to the first of them.
    alive: Visual tokens that enter the decoder, then those alive after each layer, [L + 1].
    kv_bytes: Of the key-value cache after the prefill.
    """

    text: str
    tokens: int
    ttft: float
    alive: list[int]
    kv_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Both replies; the share of the visual compute that was saved; the image before and after each layer, [L + 1].

    unplaced: Why there are no such images, for a model whose tokens cannot be placed in the picture.
    """

    dense: Reply
    pruned: Reply
    visual_reduction: float
    frames: list[Image.Image]
    unplaced: str = ""


@dataclass
class _Watch:
    """A forward hook: when the first forward was done, what its cache held, how many forwards there were; ends a stopped reply."""

    device: torch.device
    stopping: threading.Event
    forwards: int = 0
    first: float = 0.0
    kv_bytes: int = 0

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        if self.stopping.is_set():
            raise FitPruneError(STOPPING)
        self.forwards += 1
        if self.forwards == 1:
            self.first = now(self.device)
            cache = cache_in(output)
            held = (getattr(layer, name, None) for layer in (() if cache is None else cache.layers) for name in ("keys", "values"))
            self.kv_bytes = sum(one.nbytes for one in held if isinstance(one, Tensor))  # layers of linear attention hold a state instead


@dataclass
class Engine:
    """A loaded model, what its calibration questions attend to (None: only published recipes), and recipes made so far."""

    vlm: VLM
    stats: AttentionStats | None = None
    max_new_tokens: int = 64
    _recipes: dict[tuple[str, float], tuple[Recipe, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def recipe(self, method: str, ratio: float, visual_tokens: int) -> tuple[Recipe, str]:
        """The recipe of a method at a ratio, and its score.

        Args:
            ratio: A fraction, in whole per cents.
            visual_tokens: Of the image; matters only without statistics.
        Raises:
            FitPruneError: unknown method, ratio out of range or out of the method's reach, no published recipe.
        """
        if method not in INSIDE:  # `recipes` takes settings behind a name, and each spelling would be fitted and kept
            raise FitPruneError(f"unknown method: use one of {', '.join(INSIDE)}")
        chosen = METHODS[method]
        if not 0 <= ratio <= MAX_RATIO:
            raise FitPruneError(f"The ratio must be from 0 to {MAX_RATIO:.0%}.")
        ratio = round(ratio, 2)
        if ratio == 0:
            return Recipe.none(self.vlm.cost.layers), chosen.score
        if self.stats is None:
            schedule = chosen.schedule
            recipe = schedule(self.vlm.cost, visual_tokens, ratio) if schedule else Recipe.published(self.vlm.name, ratio)
            return recipe, chosen.score
        if (method, ratio) not in self._recipes:
            made = recipes(self.stats, [method], [ratio])[method, ratio]
            if isinstance(made, FitPruneError):
                raise made
            assert isinstance(made, tuple)  # as all inside the decoder
            self._recipes[method, ratio] = made
        return self._recipes[method, ratio]

    def compare(self, image: Image.Image, question: str, ratio: float, method: str = RECOMMENDED) -> Comparison:
        """Both replies to one question; waits while another one is being answered.

        Raises:
            FitPruneError: no question, too long a one or one with the image's placeholder; after `stop`; and as `recipe`.
        """
        question = _checked(question)
        with self._lock:
            inputs = self.vlm.encode([(self.vlm.prompt(question), [image])])
            recipe, score = self.recipe(method, ratio, self.vlm.tokens_for(image))
            dense, _ = self._reply(inputs, None, score, self.max_new_tokens)
            pruned, trace = self._reply(inputs, recipe, score, self.max_new_tokens)
            if pruned.ttft < TIMING_SECONDS:
                dense, pruned = self._timed(inputs, dense, pruned, recipe, score)
        saved = self.vlm.cost.visual_reduction_of_alive(pruned.alive[1:], pruned.alive[0])
        try:
            return Comparison(dense, pruned, saved, frames(self.vlm, image, trace))
        except FitPruneError as error:
            return Comparison(dense, pruned, saved, [], str(error))

    def warm_up(self) -> None:
        """One question about an empty image: the first forwards of a process pay for what no other does."""
        self.compare(Image.new("RGB", (64, 64), "white"), "What is this?", 0.5, "random" if self.stats else "uniform")

    def stop(self) -> None:
        """Replies no more; waits for the forward that runs, as a process must not end in the middle of one."""
        self._stopping.set()
        with self._lock:
            pass

    def _timed(self, inputs: dict[str, Tensor], dense: Reply, pruned: Reply, recipe: Recipe, score: str) -> tuple[Reply, Reply]:
        """The same replies with the median TTFT of repeated prefills, which take turns to be first."""
        kinds: list[tuple[Recipe | None, list[float]]] = [(None, []), (recipe, [])]
        (_, dense_times), (_, pruned_times) = kinds
        start = now(self.vlm.device)
        while len(dense_times) < TIMED_PREFILLS and now(self.vlm.device) - start < TIMING_SECONDS:
            for kind, times in kinds:
                times.append(self._reply(inputs, kind, score, 1)[0].ttft)
            kinds.reverse()
        return replace(dense, ttft=median(dense_times)), replace(pruned, ttft=median(pruned_times))

    def _reply(self, inputs: dict[str, Tensor], recipe: Recipe | None, score: str, max_new_tokens: int) -> tuple[Reply, Trace]:
        """One reply, by the model as it is if there is no recipe (the trace is empty then)."""
        model, watch = self.vlm.model, _Watch(self.vlm.device, self._stopping)
        visual = self.vlm.count_visual(inputs["input_ids"])
        with prune(model, recipe, score=score) if recipe else nullcontext(Trace()) as trace:
            handle = model.register_forward_hook(watch)
            try:
                start = now(watch.device)
                (text,) = self.vlm.generate(inputs, max_new_tokens=max_new_tokens)
            finally:
                handle.remove()
        after = [len(rows[0]) for rows in trace.visual] if recipe else [visual] * self.vlm.cost.layers
        return Reply(text, watch.forwards, watch.first - start, [visual, *after], watch.kv_bytes), trace


def _checked(question: Any) -> str:
    if not isinstance(question, str) or not question.strip():
        raise FitPruneError("There is no question: type one.")
    if len(question) > MAX_QUESTION:
        raise FitPruneError(f"The question has {len(question)} characters: {MAX_QUESTION} at most are answered here.")
    if IMAGE in question:
        raise FitPruneError(f"{IMAGE} stands for the image and cannot be in a question: leave it out.")
    return question.strip()
