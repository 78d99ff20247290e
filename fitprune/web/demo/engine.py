"""What the demo computes, without a web page: one question about one picture, answered dense and pruned, and measured.

One model serves everybody, and pruning attaches to the model: a lock lets one question in at a time, so two users get
their own answers one after the other. Recipes come from one pass of statistics, or are the published ones, and are kept.

Time to the first token runs from the start of the vision tower to the first token's logits; preparing the picture is left
out, as it is the same for both. Where it is short it is the median of several prefills, dense and pruned in turn, after the
answers, as the first forward on a prompt pays for what later ones do not. The bytes of the cache are those of the tensors in it
after the prefill, not an estimate.

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
from ...recipe import Recipe
from ...stats import AttentionStats
from ...studies.methods import METHODS, recipes
from ...trace import Trace

MAX_QUESTION = 500  # characters
MAX_RATIO = 0.9
STOPPING = "The demo is being stopped."
TIMING, ROUNDS = 0.5, 9  # seconds after which prefills are repeated no more, and how many there are of each at most


@dataclass(frozen=True)
class Answer:
    """One answer: its text, its tokens (the end's included), seconds to the first of them.

    alive: visual tokens that enter the decoder, then those alive after each layer, [L + 1].
    kv_bytes: the key-value cache after the prefill.
    """

    text: str
    tokens: int
    first: float
    alive: list[int]
    kv_bytes: int


@dataclass(frozen=True)
class Comparison:
    """Both answers; the share of the visual compute that was saved; the picture before and after each layer, [L + 1]."""

    dense: Answer
    pruned: Answer
    visual_reduction: float
    frames: list[Image.Image]


@dataclass
class _Watch:
    """A forward hook: when the first forward was done, what its cache held, how many forwards there were.

    It is also where an answer ends early when the demo stops.
    """

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
            held = [] if cache is None else cache.layers
            self.kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


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
            visual_tokens: Of the picture; matters only without statistics.
        Raises:
            FitPruneError: a name that is not in `METHODS`, a ratio out of range, one that the method cannot save or that nobody published.
        """
        if method not in METHODS:  # settings behind a name would each be fitted, and kept
            raise FitPruneError(f"unknown method: use one of {', '.join(METHODS)}")
        chosen = METHODS[method]
        if not 0 <= ratio <= MAX_RATIO:
            raise FitPruneError(f"The ratio must be from 0 to {MAX_RATIO:.0%}.")
        ratio = round(ratio, 2)
        if ratio == 0:
            return Recipe.none(self.vlm.cost.layers), chosen.score
        if self.stats is None:
            if chosen.schedule:
                return chosen.schedule(self.vlm.cost, visual_tokens, ratio), chosen.score
            return Recipe.published(self.vlm.name, ratio), chosen.score
        if (method, ratio) not in self._recipes:
            made = recipes(self.stats, [method], [ratio])[method, ratio]
            if isinstance(made, FitPruneError):
                raise made
            self._recipes[method, ratio] = made
        return self._recipes[method, ratio]

    def compare(self, image: Image.Image, question: str, ratio: float, method: str) -> Comparison:
        """Both answers to one question; waits while another one is being answered.

        Raises:
            FitPruneError: no question, one that is too long or has the picture's placeholder in it; after `stop`; and as
                `recipe`.
        """
        question = self._checked(question)
        with self._lock:
            inputs = self.vlm.encode([(self.vlm.prompt(question), [image])])
            recipe, score = self.recipe(method, ratio, self.vlm.tokens_for(image))
            dense, _ = self._answer(inputs, None, score, self.max_new_tokens)
            pruned, trace = self._answer(inputs, recipe, score, self.max_new_tokens)
            if pruned.first < TIMING:
                dense, pruned = self._timed(inputs, dense, pruned, recipe, score)
        saved = self.vlm.cost.visual_reduction_of_alive(pruned.alive[1:], pruned.alive[0])
        return Comparison(dense, pruned, saved, frames(self.vlm, image, trace))

    def warm_up(self) -> None:
        """One question about an empty picture: the first forwards of a process pay for what no other does."""
        self.compare(Image.new("RGB", (64, 64), "white"), "What is this?", 0.5, "random" if self.stats else "uniform")

    def stop(self) -> None:
        """Answers nothing more; waits until the forward that runs is over, as a process must not end in the middle of one."""
        self._stopping.set()
        with self._lock:
            pass

    def _checked(self, question: str) -> str:
        if not isinstance(question, str) or not question.strip():
            raise FitPruneError("There is no question: type one.")
        if len(question) > MAX_QUESTION:
            raise FitPruneError(f"The question has {len(question)} characters: {MAX_QUESTION} at most are answered here.")
        if IMAGE in question:
            raise FitPruneError(f"{IMAGE} stands for the picture and cannot be in a question: leave it out.")
        return question.strip()

    def _timed(self, inputs: dict[str, Tensor], dense: Answer, pruned: Answer, recipe: Recipe, score: str) -> tuple[Answer, Answer]:
        """The same answers with the median of repeated prefills, which take turns to be first."""
        times: dict[Recipe | None, list[float]] = {None: [], recipe: []}
        start = now(self.vlm.device)
        while len(times[None]) < ROUNDS and now(self.vlm.device) - start < TIMING:
            for kind in sorted(times, key=lambda kind: (kind is None) == len(times[None]) % 2):
                times[kind].append(self._answer(inputs, kind, score, 1)[0].first)
        return replace(dense, first=median(times[None])), replace(pruned, first=median(times[recipe]))

    def _answer(self, inputs: dict[str, Tensor], recipe: Recipe | None, score: str, max_new_tokens: int) -> tuple[Answer, Trace]:
        """One answer, by the model as it is if there is no recipe (the trace is empty then)."""
        model, watch = self.vlm.model, _Watch(self.vlm.device, self._stopping)
        visual = int((inputs["input_ids"] == self.vlm.image_token).sum())
        with prune(model, recipe, score=score) if recipe else nullcontext(Trace()) as trace:
            handle = model.register_forward_hook(watch)
            try:
                start = now(watch.device)
                (text,) = self.vlm.generate(inputs, max_new_tokens=max_new_tokens)
            finally:
                handle.remove()
        after = [len(rows[0]) for rows in trace.visual] if recipe else [visual] * self.vlm.cost.layers
        return Answer(text, watch.forwards, watch.first - start, [visual, *after], watch.kv_bytes), trace
