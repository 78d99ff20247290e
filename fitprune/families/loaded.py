"""A checkpoint ready to be asked: model, tokenizer, image preparation, conversation template.

The prompt is tokenised in pieces, as LLaVA does: the text is split at `<image>`, every piece is tokenised on its own
with its BOS, and only the first keeps it; image tokens go between. In one pass the tokenizer would join what LLaVA keeps
apart (the text after the image starts with "▁" and a line break). Images are squared and processed one by one with
Pillow, so that a picture gives the same pixels alone and in a batch, with torchvision installed or not.

    python -c "import fitprune; print(fitprune.load('embedded').prompt('What number is written?'))"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..cost import CostModel
from ..errors import FitPruneError
from .conversation import build_prompt, stop_string

IMAGE = "<image>"


@dataclass
class Loaded:
    """One loaded checkpoint.

    tokens_for: how many visual tokens an image of a given size takes; prepare: its pixels as model inputs, [1, …] each.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    template: str
    prepare: Callable[[Image.Image], dict[str, Tensor]]
    tokens_for: Callable[[Image.Image], int]
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

    def prompt(self, text: str, image: bool = True) -> str:
        """The whole prompt for one question: system sentence, `<image>`, question, in the checkpoint's template."""
        return build_prompt(self.template, [(f"{IMAGE}\n{text}" if image else text, None)])

    def token_ids(self, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """Token ids of a prompt whose n-th `<image>` stands for the n-th image.

        Raises:
            FitPruneError: if the prompt has another number of `<image>`.
        """
        pieces = prompt.split(IMAGE)
        if len(pieces) - 1 != len(images):
            raise FitPruneError(f"the prompt has {len(pieces) - 1} {IMAGE} but there are {len(images)} image(s)")
        ids: list[int] = list(self.tokenizer(pieces[0]).input_ids)
        start = 1 if ids[:1] == [self.tokenizer.bos_token_id] else 0
        for piece, image in zip(pieces[1:], images, strict=True):
            ids += [self.image_token] * self.tokens_for(image)
            ids += self.tokenizer(piece).input_ids[start:]
        return ids

    def ask(self, question: str, *images: str | Path | Image.Image, **generation: Any) -> str:
        """Answers one question about pictures (files or loaded ones); generation as `generate`.

        Raises:
            FitPruneError: unreadable picture.
        """
        pictures = [image if isinstance(image, Image.Image) else read_image(image) for image in images]
        prompt = build_prompt(self.template, [("\n".join([*[IMAGE] * len(pictures), question]), None)])
        return self.generate(self.encode([(prompt, pictures)]), **generation)[0]

    def encode(
        self, questions: Sequence[tuple[str, Sequence[Image.Image]]], padding_side: str = "left"
    ) -> dict[str, Tensor]:
        """Model inputs for a batch of (whole prompt, its images): ids and mask [B, S], pixels of all images.

        Generation wants padding on the left; observing on the right, where it moves nothing.
        """
        rows = [self.token_ids(prompt, images) for prompt, images in questions]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.full((len(rows), longest), pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            where = slice(longest - len(tokens), None) if padding_side == "left" else slice(len(tokens))
            ids[row, where], mask[row, where] = torch.tensor(tokens), 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        pictures = [self.prepare(image) for _, images in questions for image in images]
        for key in pictures[0] if pictures else ():
            inputs[key] = torch.cat([picture[key] for picture in pictures])
        dtype = next(self.model.parameters()).dtype
        return {
            key: value.to(self.device, dtype if value.is_floating_point() else None) for key, value in inputs.items()
        }

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
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :]
        stop = stop_string(self.template)
        answers = (text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True))
        return [answer.removesuffix(stop).strip() if stop.strip() else answer for answer in answers]


def read_image(path: str | Path) -> Image.Image:
    """An RGB picture.

    Raises:
        FitPruneError: missing, not a picture, damaged or absurdly large; names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FitPruneError(f"no image {path}: check --image-folder") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FitPruneError(
            f"cannot read image {path} ({type(error).__name__}): replace the file or remove its question"
        ) from None
