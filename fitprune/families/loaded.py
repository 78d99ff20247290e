"""A checkpoint ready to be asked: model, tokenizer, image preparation, conversation template.

Prompts are tokenised in pieces, as LLaVA does (pieces.py). Pictures are processed one by one with Pillow, so that one
gives the same pixels alone and in a batch, with torchvision installed or not; where pictures have unlike numbers of
views (LLaVA-NeXT's tiles), a batch is filled up with empty ones, which the model cuts off again.

    python -c "import fitprune; print(fitprune.load('embedded').prompt('What number is written?'))"
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..cost import CostModel
from ..errors import FitPruneError
from .conversation import build_prompt, stop_string
from .family import Pictures
from .pieces import IMAGE, piecewise


@dataclass
class Loaded:
    """One loaded checkpoint."""

    name: str
    model: nn.Module
    tokenizer: Any
    template: str
    pictures: Pictures
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
        """How many visual tokens a picture takes; only its size matters."""
        return self.pictures.tokens_for(image)

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """A picture as model inputs, [1, …] each."""
        return self.pictures.prepare(image.convert("RGB"))

    def prompt(self, text: str, image: bool = True) -> str:
        """The whole prompt for one question: system sentence, `<image>`, question, in the checkpoint's template."""
        return build_prompt(self.template, [(f"{IMAGE}\n{text}" if image else text, None)])

    def token_ids(self, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """Token ids of a prompt whose n-th `<image>` stands for the n-th image.

        Raises:
            FitPruneError: if the prompt has another number of `<image>`, or is too long for the checkpoint.
        """
        counts = [self.tokens_for(image) for image in images]
        ids = piecewise(self.tokenizer, prompt, counts, self.image_token)
        longest = getattr(self.model.config, "tokenizer_model_max_length", None)
        if longest is not None and len(ids) > longest:  # as the original does with checkpoints that say so
            if self.image_token in ids[longest:]:
                raise FitPruneError(
                    f"the prompt takes {len(ids)} tokens, the checkpoint {longest}, and the end of a picture would be cut "
                    "off: ask about fewer or smaller pictures"
                )
            warnings.warn(f"prompt of {len(ids)} tokens cut to the checkpoint's {longest}", stacklevel=2)
            ids = ids[:longest]
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
            inputs[key] = _together([picture[key] for picture in pictures])
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
            eos_token_id=self.ends() or None,
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :]
        stop = stop_string(self.template)
        answers = (text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True))
        return [answer.removesuffix(stop).strip() if stop.strip() else answer for answer in answers]

    def ends(self) -> list[int]:
        """Tokens that end an answer: the checkpoint's, and the template's stop string where that is one token."""
        ends: Any = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        known: list[int] = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
        stop = self.tokenizer.get_vocab().get(stop_string(self.template).strip())
        return known if stop is None or stop in known else [*known, stop]


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """Pictures [1, views, …] or [1, …] one after the other, filled up with zeros to the largest number of views."""
    if tensors[0].ndim == 5:  # [1, views, 3, height, width]
        most = max(tensor.shape[1] for tensor in tensors)
        tensors = [torch.nn.functional.pad(t, (0, 0) * 3 + (0, most - t.shape[1])) for t in tensors]
    return torch.cat(list(tensors))


def read_image(path: str | Path, pixels: bool = True, content: bytes | None = None) -> Image.Image:
    """An RGB picture; without pixels only its size is read, and can be asked for.

    With content, that is the picture's file and path no more than its name.

    Raises:
        FitPruneError: missing, not a picture, damaged or absurdly large; names the file.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if (
                Image.MAX_IMAGE_PIXELS and max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS
            ):  # models that pad make a square of it
                raise FitPruneError(
                    f"image {path} is {image.width} × {image.height}: make it smaller, at most "
                    f"{math.isqrt(Image.MAX_IMAGE_PIXELS)} pixels a side"
                )
            return image.convert("RGB") if pixels else image
    except FitPruneError:
        raise
    except FileNotFoundError:
        raise FitPruneError(f"no image {path}: check its name (and --image-folder)") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FitPruneError(
            f"cannot read image {path} ({type(error).__name__}): replace the file or remove its question"
        ) from None
