"""A checkpoint ready to be asked: model, tokenizer, image preparation, conversation template.

How a prompt and its images become model inputs is the family's business (protocols.py); what is the same for all is here:
the template around a question, generation, what ends an answer.

    python -c "import fitprune; print(fitprune.load('embedded').prompt('What number is written?'))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.tokenize import IMAGE
from ..cost import CostModel
from ..images.reading import read_image
from .conversation import answer_ends, build_prompt, stop_string
from .protocols import Family, Images


@dataclass
class VLM:
    """One loaded checkpoint."""

    name: str
    model: nn.Module
    tokenizer: Any
    template: str
    family: Family
    images: Images
    default_template: str = ""

    def __post_init__(self) -> None:
        self.default_template = self.default_template or self.template
        stop_string(self.template)  # an unknown template is an error now, not at the first question

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def image_token(self) -> int:
        config: Any = self.model.config
        return int(config.image_token_id)

    @property
    def cost(self) -> CostModel:
        return CostModel.from_config(self.model.config)

    def tokens_for(self, image: Image.Image) -> int:
        """How many visual tokens an image takes; only its size matters."""
        return self.images.tokens_for(image)

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """An image as model inputs, [1, …] each."""
        return self.images.prepare(image.convert("RGB"))

    def prompt(self, text: str, image: bool = True) -> str:
        """The whole prompt for one question: system sentence, `<image>`, question, in the checkpoint's template."""
        return build_prompt(self.template, [(f"{IMAGE}\n{text}" if image else text, None)])

    def token_ids(self, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """Token ids of a prompt whose n-th `<image>` stands for the n-th image.

        Raises:
            FitPruneError: if the prompt has another number of `<image>`, or is too long for the checkpoint.
        """
        return self.family.token_ids(self, prompt, images)

    def ask(self, question: str, *images: str | Path | Image.Image, **generation: Any) -> str:
        """Answers one question about images (files or loaded ones); generation as `generate`.

        Raises:
            FitPruneError: unreadable image.
        """
        opened = [image if isinstance(image, Image.Image) else read_image(image) for image in images]
        prompt = build_prompt(self.template, [("\n".join([*[IMAGE] * len(opened), question]), None)])
        return self.generate(self.encode([(prompt, opened)]), **generation)[0]

    def encode(self, questions: Sequence[tuple[str, Sequence[Image.Image]]], padding_side: str = "left") -> dict[str, Tensor]:
        """Model inputs for a batch of (whole prompt, its images): ids and mask [B, S], pixels of all images.

        Generation wants padding on the left; observing on the right, where it moves nothing.
        """
        dtype = next(self.model.parameters()).dtype
        inputs = self.family.encode(self, questions, padding_side)
        return {key: value.to(self.device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}

    @torch.inference_mode()
    def generate(
        self,
        inputs: dict[str, Tensor],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float | None = None,
        num_beams: int = 1,
    ) -> list[str]:
        """Answers as text, stripped; greedy at temperature 0. Settings of the checkpoint's own generation config are not used."""
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling.update(temperature=temperature, top_p=top_p)
        output = self.model.generate(  # type: ignore[operator]
            **inputs, **sampling, num_beams=num_beams, max_new_tokens=max_new_tokens, use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id,
            eos_token_id=self.ends() or None,
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :]
        stop = stop_string(self.template)
        answers = (text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True))
        return [answer.removesuffix(stop).strip() if stop.strip() else answer for answer in answers]

    def ends(self) -> list[int]:
        """Tokens that end an answer: the checkpoint's, and the template's stop string where that is one token."""
        known: Any = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        return answer_ends(self.template, self.tokenizer, known)
