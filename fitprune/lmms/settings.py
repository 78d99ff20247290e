"""A task's `generation_kwargs` as arguments of `VLM.generate`, and where an answer is to be cut.

A task says `temperature: 0` or `do_sample: false` for greedy decoding, often both, and may name a temperature that greedy decoding then
ignores; `do_sample: true` alone means temperature 1, as in transformers. Where a task sets no length, up to 1024 tokens are generated,
as by lmms-eval's own LLaVA adapters. A name that is not known here (`repetition_penalty`, `image_aspect_ratio`) changes nothing and is
reported.

    python -c "from fitprune.lmms.settings import *; print(read_settings({'do_sample': False, 'temperature': 0.7}))"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FitPruneError

MAX_NEW_TOKENS = 1024
KNOWN = ("until", "max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")


@dataclass(frozen=True)
class Settings:
    """How an answer is generated; requests with equal settings can share a batch. `until`: texts that end an answer."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    until: tuple[str, ...] = ()

    @property
    def generation(self) -> dict[str, Any]:
        """Keyword arguments of `VLM.generate`."""
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "top_p": self.top_p, "num_beams": self.num_beams}

    def cut(self, answer: str) -> str:
        """The answer up to the first of the texts that end one."""
        return answer[: min([at for text in self.until if (at := answer.find(text)) >= 0], default=None)].strip()


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from a task's generation_kwargs; names other than `KNOWN` are left out, a bad value raises a FitPruneError."""
    given = {name: value for name, value in given.items() if value is not None}
    samples = given.get("do_sample")
    temperature = given.get("temperature", 1 if samples else 0) if samples is not False else 0
    until = given.get("until", ())
    try:
        settings = Settings(
            max_new_tokens=int(given.get("max_new_tokens", MAX_NEW_TOKENS)),
            temperature=float(temperature),
            top_p=float(given["top_p"]) if temperature and "top_p" in given else None,
            num_beams=int(given.get("num_beams", 1)),
            until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        )
        if settings.max_new_tokens >= 1 and settings.num_beams >= 1 and settings.temperature >= 0:
            return settings
    except (TypeError, ValueError):
        pass
    raise FitPruneError(f"these generation_kwargs cannot be: {given}")
