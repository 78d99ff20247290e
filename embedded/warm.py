"""What the embedded LLaVA-NeXT, LLaVA-HR and Qwen3-VL share: they start from the embedded LLaVA-1.5, the "known model".

Language model, projector and CLIP are taken over as they ship (`KNOWN`). What is new in an architecture starts so that it
changes little, and everything learns to answer at once: the phase in which the first model's tower learns to see is left
out. Weights that are taken over learn at a part of the usual rate (`known_pace`).

    python -m embedded.train /tmp/run --family next     # tiles.py
    python -m embedded.train /tmp/run --family hr       # two_towers.py
    python -m embedded.train /tmp/run --family qwen     # native.py, whose tower learns to see once more
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fitprune.embedded import model_path

from .network import ATTENTION, Embedded

KNOWN: Path = model_path()  # tests put a tiny one in its place


def known_config() -> LlavaConfig:
    """The configuration of the known model."""
    return LlavaConfig.from_pretrained(KNOWN)


class Warm(Embedded, ABC):
    """An architecture of its own around the known model's parts; a subclass says which.

    `new`: what names of new weights contain; they learn at the full rate, all others at `known_pace` of it.
    """

    new: ClassVar[tuple[str, ...]] = ()
    known_pace: ClassVar[float] = 0.3

    def __init__(self, size: str = "small", seed: int = 0) -> None:
        """`size` is the known model's, whatever is given."""
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        known: Any = LlavaForConditionalGeneration.from_pretrained(KNOWN, dtype=torch.float32).eval()
        self.llava = self.build()
        self.llava.model.language_model.config._attn_implementation = ATTENTION
        self.take(known)

    @abstractmethod
    def build(self) -> Any:
        """The transformers model, its new weights drawn."""

    def take(self, known: Any) -> None:
        """Copies the known model's parts; here language model and projector as they are."""
        self.llava.model.language_model.load_state_dict(known.model.language_model.state_dict())
        self.llava.model.multi_modal_projector.load_state_dict(known.model.multi_modal_projector.state_dict())
        self.llava.lm_head.load_state_dict(known.lm_head.state_dict())
        self.take_tower(known.model.vision_tower)

    def take_tower(self, tower: Any) -> None:
        """Copies the known vision tower, and starts what stands around it."""
        raise NotImplementedError

    def pace(self, name: str) -> float:
        return 1.0 if any(part in name for part in self.new) else self.known_pace

    def see_loss(self, outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Nothing: the tower can see already."""
        return torch.zeros((), device=batch["pixels"].device), {}
