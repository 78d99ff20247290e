"""Images and text → inputs of a LLaVA-HR, as a transformers processor.

The text is tokenised in pieces, as LLaVA does (checkpoints/tokenize.py), so that an original prompt gives the original ids.
Images are squared with the mean colour and resized with Pillow, whether torchvision is installed or not: the image
processor is transformers' own for LLaVA under a name of ours, since transformers picks the backend by name.
Messages become a prompt by the checkpoint's chat template (`apply_chat_template`, which a pipeline calls; families/chat_template.py).
Left out: truncation, which would cut images in two.

    pytest tests/llava_hr/test_llava_hr_modeling.py -k processor
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from ..checkpoints.tokenize import IMAGE, tokenize_with_images
from ..errors import FitPruneError

try:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil as _PillowProcessor
except ImportError:  # before the implementations were renamed
    from transformers.models.llava.image_processing_llava import LlavaImageProcessor as _PillowProcessor


class LlavaHrImageProcessor(_PillowProcessor):
    """transformers' Pillow-backed image processor for LLaVA: pad to a square (`do_pad`), resize, crop, normalise."""


class LlavaHrProcessor(ProcessorMixin):
    """Image processor and tokenizer of one checkpoint.

    Args:
        image_seq_length: Visual tokens per image (`LlavaHrConfig.image_seq_length`).
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 1024, chat_template: str | None = None
    ) -> None:
        self.image_seq_length = image_seq_length
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: None = None,
        *,
        padding: bool | str = False,
        return_tensors: str | None = None,
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """
        Args:
            images: An image (loaded, or where it is) or a list of them, in the order of the texts' `<image>`; a list per text will do.
            text: A whole prompt or a list of them.
            videos, audio: Always None: `apply_chat_template` names them.
            padding: As a tokenizer's; on the side that the tokenizer is set to.
            return_tensors: "pt" for tensors.
            add_special_tokens: Whether a text that does not begin with the BOS token gets one.
        Returns:
            input_ids and attention_mask [B, S] for texts, pixel_values [images, 3, side, side] for images.
        Raises:
            FitPruneError: nothing given, video or sound, texts with another number of `<image>` than there are images, a
                tokenizer without `<image>`.
        """
        if images is None and text is None:
            raise FitPruneError("nothing to process: give images, text, or both")
        if videos is not None or audio is not None:
            raise FitPruneError("a LLaVA-HR sees images only: leave out videos and audio")
        data: dict[str, Any] = {}
        given = 0
        if images is not None:
            rows = images if isinstance(images, list | tuple) else [images]
            flat = [image for row in rows for image in (row if isinstance(row, list | tuple) else [row])]
            pixels = self.image_processor(flat, return_tensors=return_tensors)["pixel_values"]
            data["pixel_values"], given = pixels, len(pixels)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            wanted = [one.count(IMAGE) for one in texts]
            if sum(wanted) != given:
                raise FitPruneError(f"the texts have {sum(wanted)} {IMAGE} but there are {given} image(s)")
            ids = [
                tokenize_with_images(self.tokenizer, one, [self.image_seq_length] * count, self.image_token_id)
                for one, count in zip(texts, wanted, strict=True)
            ]
            if not add_special_tokens:
                bos = self.tokenizer.bos_token
                ids = [row if bos is None or one.startswith(bos) else self._without_bos(row) for one, row in zip(texts, ids, strict=True)]
            data |= self.tokenizer.pad(
                {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}, padding=padding, return_tensors=return_tensors
            )
        return BatchFeature(data)

    def _without_bos(self, row: list[int]) -> list[int]:
        return row[1:] if row[:1] == [self.tokenizer.bos_token_id] else row

    @property
    def image_token_id(self) -> int:
        token = self.tokenizer.convert_tokens_to_ids(IMAGE)
        if token is None or token == self.tokenizer.unk_token_id:
            raise FitPruneError(f"the tokenizer does not know {IMAGE}: add it as a special token, or convert again")
        return int(token)
