"""Images and text → inputs of a LLaVA-HR, as a transformers processor.

The text is tokenised in pieces, as LLaVA does (checkpoints/tokenize.py), so that an original prompt gives the original ids.
Images are squared with the mean colour and resized with Pillow, whether torchvision is installed or not: the image
processor is transformers' own for LLaVA under a name of ours, since transformers picks the backend by name.
Left out: chat templates (families/conversation.py writes prompts) and truncation, which would cut images in two.

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
        self, images: Any = None, text: str | Sequence[str] | None = None, *, padding: bool | str = False, return_tensors: str | None = None
    ) -> BatchFeature:
        """
        Args:
            images: An image or a list of them, in the order of the texts' `<image>`.
            text: A whole prompt or a list of them.
            padding: As a tokenizer's; on the side that the tokenizer is set to.
            return_tensors: "pt" for tensors.
        Returns:
            input_ids and attention_mask [B, S] for texts, pixel_values [images, 3, side, side] for images.
        Raises:
            FitPruneError: nothing given, texts with another number of `<image>` than there are images, a tokenizer
                without `<image>`.
        """
        if images is None and text is None:
            raise FitPruneError("nothing to process: give images, text, or both")
        data: dict[str, Any] = {}
        given = 0
        if images is not None:
            pixels = self.image_processor(images, return_tensors=return_tensors)["pixel_values"]
            data["pixel_values"], given = pixels, len(pixels)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            wanted = [one.count(IMAGE) for one in texts]
            if sum(wanted) != given:
                raise FitPruneError(f"the texts have {sum(wanted)} {IMAGE} but there are {given} image(s)")
            rows = [
                tokenize_with_images(self.tokenizer, one, [self.image_seq_length] * count, self.image_token_id)
                for one, count in zip(texts, wanted, strict=True)
            ]
            data |= self.tokenizer.pad(
                {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}, padding=padding, return_tensors=return_tensors
            )
        return BatchFeature(data)

    @property
    def image_token_id(self) -> int:
        token = self.tokenizer.convert_tokens_to_ids(IMAGE)
        if token is None or token == self.tokenizer.unk_token_id:
            raise FitPruneError(f"the tokenizer does not know {IMAGE}: add it as a special token, or convert again")
        return int(token)
