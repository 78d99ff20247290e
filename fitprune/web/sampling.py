"""What OpenAI's settings mean while an answer is made: biases and penalties on logits, texts that end it, and where it is cut.

transformers' server takes `frequency_penalty` for its own `repetition_penalty` (a factor, and an error below -1), and looks for `stop` by
how the tokenizer would spell it, which fails for a text that it cannot spell. Here penalties are subtracted from the logits, once for
each time (`frequency_penalty`) or once at all (`presence_penalty`) that a token is in the answer, and a stop is looked for in the text of
the answer, which ends before it, in a stream as well.
Source: https://platform.openai.com/docs/api-reference/chat/create

    python -c "from fitprune.web.sampling import *; held = HeldBack(['END']); print([held.feed(one) for one in ('a E', 'N', 'D b')])"
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import FitPruneError


@dataclass(frozen=True)
class Sampling:
    """What one request asks for beside transformers' own settings; `decode` makes text of token ids."""

    decode: Callable[[Tensor], str]
    bias: Mapping[int, float] = field(default_factory=dict)
    frequency: float = 0.0
    presence: float = 0.0
    stops: Sequence[str] = ()

    @classmethod
    def of(cls, body: Mapping[str, Any], decode: Callable[[Tensor], str], vocabulary: int) -> Sampling:
        """That of a checked body (fields.py); a FitPruneError for a bias on a token that there is not."""
        bias = body.get("logit_bias", {})
        if bias and max(bias) >= vocabulary:
            raise FitPruneError(f"logit_bias names token {max(bias)}: this model has {vocabulary}, counted from 0")
        return cls(decode, bias, body.get("frequency_penalty", 0.0), body.get("presence_penalty", 0.0), body.get("stop", ()))

    def arguments(self, prompt: int) -> dict[str, Any]:
        """What `generate` is given for it, after a prompt of so many tokens; nothing where nothing is asked for."""
        found: dict[str, Any] = {}
        if self.bias or self.frequency or self.presence:
            found["logits_processor"] = [lambda ids, logits: self.adjusted(ids[:, prompt:], logits)]
        if self.stops:
            found["stopping_criteria"] = [lambda ids, *_, **__: self.stopped(ids[:, prompt:])]
        return found

    def adjusted(self, answered: Tensor, logits: Tensor) -> Tensor:
        """Logits [B, V] with biases and penalties, by what was answered so far [B, T]."""
        logits = logits.clone()
        if self.bias:
            logits[:, list(self.bias)] += torch.tensor(list(self.bias.values()), dtype=logits.dtype, device=logits.device)
        if (self.frequency or self.presence) and answered.shape[1]:
            counts = torch.zeros_like(logits).scatter_add_(1, answered, torch.ones_like(answered, dtype=logits.dtype))
            logits -= self.frequency * counts + self.presence * (counts > 0)
        return logits

    def stopped(self, answered: Tensor) -> Tensor:
        """Which rows [B] of an answer have come to a stop [B, T]."""
        return torch.tensor([any(stop in self.decode(row) for stop in self.stops) for row in answered], device=answered.device)

    def cut(self, text: str) -> str:
        """An answer up to its first stop."""
        return HeldBack(self.stops).all_of(text)


class HeldBack:
    """Text that comes in pieces, up to the first of some stops; what may be the beginning of one waits for what follows."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.waiting, self.ended = stops, "", False

    def feed(self, piece: str) -> str:
        """What of the text so far is certain to come before any stop, and was not given yet."""
        if self.ended:
            return ""
        text = self.waiting + piece
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.ended, self.waiting = True, ""
            return text[: min(found)]
        longest = max((size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
        self.waiting = text[len(text) - longest :]
        return text[: len(text) - longest]

    def rest(self) -> str:
        """What was held back for nothing, at the end."""
        rest, self.waiting = self.waiting, ""
        return rest

    def all_of(self, text: str) -> str:
        """A whole text up to its first stop."""
        return self.feed(text) + self.rest()


class CutQueue:
    """A server's queue of pieces of an answer (None: its end; anything else: passed on by `passed`), read up to a stop."""

    def __init__(self, queue: asyncio.Queue[Any], stops: Sequence[str], passed: Callable[[Any], Any]) -> None:
        self.queue, self.held, self.passed, self.over = queue, HeldBack(stops), passed, False

    async def get(self) -> Any:
        return None if self.over else self._read(await self.queue.get())

    def get_nowait(self) -> Any:
        if self.over:
            self.over = False  # said once
            return None
        return self._read(self.queue.get_nowait())

    def _read(self, item: Any) -> Any:
        if type(item) is str:
            return self.held.feed(item)
        if item is None and (rest := self.held.rest()):
            self.over = True
            return rest
        return self.passed(item)
