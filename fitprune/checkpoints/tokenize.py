"""Prompts with images as token ids, tokenised in pieces as LLaVA does.

The text is split at `<image>`, every piece is tokenised on its own with its BOS, only the first keeps it, and image tokens go between. In
one pass a tokenizer would join what LLaVA keeps apart: the text after an image starts with the dummy prefix "▁" and then the line break.

    pytest tests/checkpoints/test_tokenize.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import FitPruneError

IMAGE = "<image>"


def tokenize_with_images(tokenizer: Any, text: str, counts: Sequence[int], image_token: int) -> list[int]:
    """Token ids of a text in which the n-th `<image>` stands for counts[n] visual tokens.

    A template that writes the BOS itself (llava_llama_3) does not get a second one.

    Raises:
        FitPruneError: if the text has another number of `<image>`.
    Source: LLaVA, llava/mm_utils.py (tokenizer_image_token).
    """
    pieces = text.split(IMAGE)
    if len(pieces) - 1 != len(counts):
        raise FitPruneError(f"the prompt has {len(pieces) - 1} {IMAGE} but there are {len(counts)} image(s)")
    bos = tokenizer.bos_token_id
    ids: list[int] = list(tokenizer(pieces[0]).input_ids)
    start = 1 if bos is not None and ids[:1] == [bos] else 0
    if start and ids[1:2] == [bos]:
        del ids[0]
    for piece, count in zip(pieces[1:], counts, strict=True):
        ids += [image_token] * count
        ids += tokenizer(piece).input_ids[start:]
    return ids
