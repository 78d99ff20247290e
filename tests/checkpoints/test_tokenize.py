"""Prompts with images as token ids."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multimodal import PARITY
from transformers import LlamaTokenizer

from fitprune.checkpoints.tokenize import tokenize_with_images
from fitprune.errors import FitPruneError

IMAGE = 999


class Letters:
    """A tokenizer of letters: BOS 0 if it has one, then a number per letter."""

    def __init__(self, bos: int | None) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[*([] if self.bos_token_id is None else [self.bos_token_id]), *map(ord, text)])


@pytest.mark.parametrize("bos", [None, 0])
@given(pieces=st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), count=st.integers(1, 3))
def test_one_bos_all_letters_and_every_image_in_its_place(bos: int | None, pieces: list[str], count: int) -> None:
    ids = tokenize_with_images(Letters(bos), "<image>".join(pieces), [count] * (len(pieces) - 1), IMAGE)
    expected = [] if bos is None else [bos]
    for number, piece in enumerate(pieces):
        expected += [IMAGE] * count * bool(number) + [ord(letter) for letter in piece]
    assert ids == expected


def test_a_template_that_writes_the_bos_gets_one() -> None:
    """Llama-3's tokenizer adds it and its template has it."""

    class Twice(Letters):
        def __call__(self, text: str) -> SimpleNamespace:
            written = text.startswith("^")
            return SimpleNamespace(input_ids=[0, *([0] if written else []), *map(ord, text.removeprefix("^"))])

    assert tokenize_with_images(Twice(0), "^a<image>b", [1], IMAGE) == [0, ord("a"), IMAGE, ord("b")]


def test_the_text_after_an_image_keeps_its_dummy_prefix() -> None:
    tokenizer = LlamaTokenizer.from_pretrained(PARITY / "llava15" / "checkpoint")
    ids = tokenize_with_images(tokenizer, "USER: <image>\nWhy?", [2], IMAGE)
    after = tokenizer.convert_ids_to_tokens(ids[ids.index(IMAGE) + 2 :])
    assert after[:2] == ["▁", "<0x0A>"]


@pytest.mark.parametrize("counts", [[], [1, 1]])
def test_the_number_of_images_must_fit(counts: list[int]) -> None:
    with pytest.raises(FitPruneError, match=rf"the prompt has 1 <image> but there are {len(counts)} image"):
        tokenize_with_images(Letters(0), "a<image>b", counts, IMAGE)
