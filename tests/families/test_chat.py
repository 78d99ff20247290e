"""Chat templates of checkpoints: which parts a question becomes, and how a template that wants plain answers gets them."""

from __future__ import annotations

from typing import Any

import pytest

from fitprune.errors import FitPruneError
from fitprune.families import chat
from fitprune.families.chat import content, render

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("Why?", [text("Why?")]),
        ("<image>\nWhy?", [IMAGE, text("Why?")]),
        ("<image>\n<image>\n<video>\nWhy?", [IMAGE, IMAGE, VIDEO, text("Why?")]),
        ("Is <image> or <image>?\n", [text("Is "), IMAGE, text(" or "), IMAGE, text("?\n")]),
        ("<image>\n\nWhy?", [IMAGE, text("\nWhy?")]),
        ("<image>", [IMAGE]),
    ],
)
def test_what_is_said_becomes_parts_byte_for_byte(said: str, parts: list[dict[str, str]]) -> None:
    assert content(said) == parts


class Written:
    """A processor whose template is a function of the messages."""

    chat_template = "a template"

    def __init__(self, write: Any) -> None:
        self.write = write

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        return self.write(messages) + (" A:" if add_generation_prompt else "")


def plain(messages: Any) -> str:
    """Answers are added to a text, as in Mistral's template, and fail if they are lists."""
    return "".join(m["content"] + "</s>" if m["role"] == "assistant" else str(len(m["content"])) for m in messages)


def printed(messages: Any) -> str:
    """Answers are written out whatever they are."""
    return "".join(f"{m['content']}|" if m["role"] == "assistant" else str(len(m["content"])) for m in messages)


def parts(messages: Any) -> str:
    """Answers have to be lists."""
    return "".join("".join(part.get("text", "#") for part in m["content"]) for m in messages)


@pytest.mark.parametrize(("write", "expected"), [(plain, "2yes</s>1 A:"), (printed, "2yes|1 A:"), (parts, "#One?yesTwo? A:")])
def test_an_answer_is_handed_over_as_the_template_takes_it(write: Any, expected: str) -> None:
    assert render(Written(write), [("<image>\nOne?", "yes"), ("Two?", None)]) == expected


def test_an_answer_that_is_given_ends_the_prompt() -> None:
    assert render(Written(plain), [("One?", "yes")]) == "1yes</s>"


def test_what_cannot_be_written_says_why() -> None:
    def refuse(messages: Any) -> str:
        raise ValueError("roles must alternate\nat line 3")

    with pytest.raises(FitPruneError, match=r"chat template cannot write this conversation: roles must alternate$"):
        render(Written(refuse), [("One?", None)])
    with pytest.raises(FitPruneError, match="at least one turn"):
        render(Written(plain), [])
    with pytest.raises(FitPruneError, match="only the last turn"):
        render(Written(plain), [("One?", None), ("Two?", None)])


def test_a_question_that_speaks_of_lists_is_no_list_written_out() -> None:
    said = "What does {'type': 'text'} mean?"
    assert render(Written(parts), [(said, None)]) == f"{said} A:"


def test_a_template_of_the_tokenizer_alone_is_used() -> None:
    processor = Written(parts)
    processor.chat_template, processor.tokenizer = "", Written(plain)  # type: ignore[attr-defined]
    chat.check_template(processor, "it")
    assert render(processor, [("One?", None)]) == "1 A:"
