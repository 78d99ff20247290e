"""The tokenizer: prompts become what `fitprune` makes of them, answers come back as they went in."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerFast

from embedded import tokens
from embedded.glyphs import CHARACTERS
from embedded.questions import Question, one_of_each
from embedded.scene import COLORS, KINDS, Split, draw
from embedded.tokens import BOS, EOS, IMAGE, IMAGE_ID, INSTRUCTION, PAD, SPECIAL, UNKNOWN, tokenizer
from fitprune.families import llava
from fitprune.families.conversation import build_prompt
from fitprune.families.protocols import Images
from fitprune.families.vlm import VLM

PATCHES = 7  # visual tokens of a picture, in these tests


@pytest.fixture(scope="module")
def asked() -> set[Question]:
    return {q for split in get_args(Split) for index in range(40) for q in one_of_each(draw(split, index))}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    """The tokenizer as transformers has it, behind fitprune's way of building prompts."""
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    model: Any = nn.Module()
    model.config = SimpleNamespace(image_token_id=IMAGE_ID)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **names)
    return VLM("test", model, fast, tokens.TEMPLATE, llava, Images(lambda image: {}, lambda image: PATCHES, lambda image: []))


def test_special_tokens_come_first() -> None:
    assert (PAD, BOS, EOS, UNKNOWN, IMAGE_ID) == (0, 1, 2, 3, 4)
    assert [tokenizer().token_to_id(token) for token in SPECIAL] == list(range(5))
    assert SPECIAL[IMAGE_ID] == IMAGE
    vocabulary = tokenizer().get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_pieces_are_what_fitprune_feeds_the_model(vlm: VLM, asked: set[Question]) -> None:
    picture = Image.new("RGB", (2, 2))
    for question in asked:
        for instructed in (False, True):
            text = f"{question.text}\n{INSTRUCTION}" if instructed else question.text
            here = [*tokens.prefix(), *[IMAGE_ID] * PATCHES, *tokens.question_ids(question.text, instructed)]
            assert vlm.token_ids(vlm.prompt(text), [picture]) == here, question


def test_an_answered_conversation_has_the_same_tokens(vlm: VLM) -> None:
    """What follows the prompt in a whole conversation of the template is the answer and its end."""
    for answer in ("472", "yes", "red", "kqz", "triangle"):
        whole = build_prompt(tokens.TEMPLATE, [(f"{IMAGE}\nHow many shapes are there?", answer)])
        here = tokens.question_ids("How many shapes are there?", False) + tokens.answer_ids(answer)
        assert list(vlm.tokenizer(whole.split(IMAGE)[1]).input_ids)[1:] == here


def test_nothing_that_is_asked_or_answered_is_unknown(asked: set[Question]) -> None:
    assert len(asked) > 1000
    for question in asked:
        for instructed in (False, True):
            assert UNKNOWN not in tokens.question_ids(question.text, instructed), question
        assert UNKNOWN not in tokens.answer_ids(question.answer), question
    assert UNKNOWN not in tokens.prefix()
    assert UNKNOWN in tokens.question_ids("Is there a café?", False)  # the law above can fail
    assert UNKNOWN not in tokens.question_ids("imange", False)  # a word that it does not know is spelled


def test_only_what_is_written_in_pictures_is_spelled(asked: set[Question]) -> None:
    """Every other word, in questions and answers, is one token."""
    for question in asked:
        written = re.findall(r"(?:number|word) (\w+) written", question.text)
        words = re.findall(r"\w+", question.text)
        if question.family not in ("number", "word"):
            words += [question.answer]
        for word in set(words) - set(written):
            assert len(tokenizer().encode(word).tokens) == 2, word  # BOS and the word


def test_an_answer_comes_back(asked: set[Question], vlm: VLM) -> None:
    for answer in {question.answer for question in asked} | {*KINDS, *COLORS, "yes", "no"}:
        ids = tokens.answer_ids(answer)
        assert ids[-1] == EOS
        assert BOS not in ids
        assert tokenizer().decode(ids) == answer
        assert vlm.tokenizer.decode(ids, skip_special_tokens=True) == answer


@given(st.text(CHARACTERS, min_size=1, max_size=12))
def test_any_string_comes_back(text: str) -> None:
    assert UNKNOWN not in tokens.answer_ids(text)
    assert tokenizer().decode(tokens.answer_ids(text)) == text


@given(st.integers(0, 999))
def test_a_number_is_read_digit_by_digit(number: int) -> None:
    pieces = tokenizer().encode(str(number)).tokens[1:]
    assert pieces == [digit if at == 0 else f"##{digit}" for at, digit in enumerate(str(number))]


def test_frames_are_one_token_each() -> None:
    assert len(tokens.prefix()) == 3  # BOS, system sentence, role
    assert tokens.prefix()[0] == BOS
    plain, instructed = (tokens.question_ids("How many shapes are there?", with_line) for with_line in (False, True))
    assert len(plain) == 7  # six pieces and the assistant's role
    assert instructed[:6] == plain[:6]
    assert instructed[7:] == plain[6:]
    assert tokenizer().id_to_token(instructed[6]) == INSTRUCTION


def test_capitals_and_blanks_do_not_matter_outside_the_frame() -> None:
    expected = tokens.question_ids("is the circle red?", False)
    assert tokens.question_ids("Is  the CIRCLE red ?", False) == expected
    assert tokens.question_ids("is the circle green?", False) != expected
