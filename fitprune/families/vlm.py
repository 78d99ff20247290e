"""A checkpoint ready to be asked: model, tokenizer, image preparation, conversation template.

How a prompt and its images become model inputs is the family's business (protocols.py); what is the same for all is here:
the template around a question, generation, what ends an answer.

    python -c "import fitprune; print(fitprune.load('embedded').prompt('What number is written?'))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.tokenize import IMAGE
from ..cost import CostModel
from ..decoder.attach import find_decoder
from ..decoder.visual_tokens import visual_ids
from ..errors import FitPruneError
from ..images.reading import as_rgb, read_image
from ..images.video import FPS, MOST, Video, read_video
from .chat import VIDEO
from .conversation import answer_ends, stop_string
from .protocols import Family, Images, View, Visual

# What a checkpoint's own generation config may say, taken back: the likeliest token by the model's logits is next.
PLAIN: dict[str, Any] = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
GREEDY: dict[str, Any] = {**PLAIN, "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass
class VLM:
    """One loaded checkpoint.

    template: of conversation.py, "" for a checkpoint that is asked by its own chat template. processor: what the family makes inputs with.
    placed: grids of visual tokens that token_places.py has asked the model about.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    template: str
    family: Family
    images: Images
    default_template: str = ""
    processor: Any = None
    placed: set[tuple[tuple[int, int], ...]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        self.default_template = self.default_template or self.template
        _ = self.stop  # an unknown template is an error now, not at the first question

    @property
    def stop(self) -> str:
        """The text that ends an answer, "" where only tokens do."""
        return stop_string(self.template) if self.template else ""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def image_token(self) -> int:
        return visual_ids(self.model.config)["image"]

    def count_visual(self, ids: Sequence[int] | Tensor) -> int:
        """How many tokens of images and videos are among token ids, of any shape."""
        known = torch.tensor(list(visual_ids(self.model.config).values()))
        return int(torch.isin(torch.as_tensor(ids).cpu(), known).sum())

    @property
    def cost(self) -> CostModel:
        return CostModel.of(find_decoder(self.model))

    def tokens_for(self, image: Image.Image) -> int:
        """How many visual tokens an image takes; only its size matters."""
        return self.images.tokens_for(image)

    def prepare(self, image: Image.Image) -> dict[str, Tensor]:
        """An image as model inputs, [1, …] each."""
        return self.images.prepare(image.convert("RGB"))

    def views(self, image: Image.Image) -> list[View]:
        """Where an image's visual tokens lie in it, view by view in the order of the tokens, for drawing.

        Raises:
            FitPruneError: where that cannot be told.
        """
        return self.family.views(self, image)

    def write(self, turns: Sequence[tuple[str, str | None]]) -> str:
        """The whole prompt of a conversation of (user text, answer) pairs, None in the last one for the answer that is wanted.

        An `<image>` with the line break after it stands for an image in what the user says; `<video>` for a video.
        """
        return self.family.write(self, turns)

    def prompt(self, text: str, image: bool = True, video: bool = False) -> str:
        """The whole prompt for one question about an image, a video, both or neither, in the checkpoint's template."""
        return self.write([("\n".join([*[IMAGE] * image, *[VIDEO] * video, text]), None)])

    def token_ids(self, prompt: str, images: Sequence[Visual]) -> list[int]:
        """Token ids of a prompt whose n-th mark of an image stands for the n-th image.

        Raises:
            FitPruneError: if the prompt has another number of marks, or is too long for the checkpoint.
        """
        return self.family.token_ids(self, prompt, images)

    def ask(
        self,
        question: str,
        *images: str | Path | Image.Image,
        video: str | Path | Sequence[str | Path | Image.Image] | Video | None = None,
        fps: float = FPS,
        max_frames: int = MOST,
        **generation: Any,
    ) -> str:
        """Answers one question about images (files or open ones, turned upright) and a video; generation as `generate`.

        Args:
            video: A file, a folder of frame images, or a list of them; fps and max_frames of it are looked at, as `read_video`.
        Raises:
            FitPruneError: unreadable image or video, a video for a model that knows none.
        """
        others = [image for image in images if not (isinstance(image, str | PathLike | Image.Image) or hasattr(image, "read"))]
        if others:
            raise FitPruneError(
                f"an image is a file's path or an open Pillow image, not {type(others[0]).__name__} (Image.fromarray makes one of an array)"
            )
        shown: list[Visual] = [as_rgb(image) if isinstance(image, Image.Image) else read_image(image) for image in images]
        marks = [IMAGE] * len(shown)
        if video is not None:
            shown.append(video if isinstance(video, Video) else read_video(video, fps, max_frames))
            marks.append(VIDEO)
        return self.generate(self.encode([(self.write([("\n".join([*marks, question]), None)]), shown)]), **generation)[0]

    def encode(self, questions: Sequence[tuple[str, Sequence[Visual]]], padding_side: str = "left") -> dict[str, Tensor]:
        """Model inputs for a batch of (whole prompt, its images and videos): ids and mask [B, S], pixels of all images.

        Generation wants padding on the left; observing on the right, where it moves nothing.
        """
        return self.on_device(self.family.encode(self, questions, padding_side))

    def on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs on the model's device; pixels in its precision."""
        dtype = next(self.model.parameters()).dtype
        return {key: self._here(value, dtype if "pixel" in key else None) for key, value in inputs.items()}

    def _here(self, value: Any, dtype: torch.dtype | None) -> Any:
        if isinstance(value, list):
            return [self._here(one, dtype) for one in value]
        return value.to(self.device, dtype if value.is_floating_point() else None)

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
        """Answers as text, stripped; greedy at temperature 0. Of its generation config only what ends an answer is used."""
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling.update(temperature=temperature, top_p=top_p)
        output = self.model.generate(  # type: ignore[operator]
            **inputs, **PLAIN, **sampling, num_beams=num_beams, max_new_tokens=max_new_tokens, use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id,
            eos_token_id=self.ends() or None,
        )  # fmt: skip
        new = output[:, inputs["input_ids"].shape[1] :]
        stop = self.stop
        answers = (text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True))
        return [answer.removesuffix(stop).strip() if stop.strip() else answer for answer in answers]

    def ends(self) -> list[int]:
        """Tokens that end an answer: the checkpoint's, and the template's stop string where that is one token."""
        known: Any = self.model.generation_config.eos_token_id  # type: ignore[union-attr]
        return answer_ends(self.stop, self.tokenizer, known)
