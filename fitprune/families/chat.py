"""A checkpoint's own chat template around a conversation.

The turns are those of every family: (what the user says, the answer), where `<image>` and `<video>` stand for an image and a video. They
become messages, the template writes them, and the result has the processor's own marks where an image goes. Text is handed over as a
list of parts, as templates of vision-language models want it; where an answer has to be plain text, it is.

    pytest tests/families/test_chat.py
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from ..checkpoints.source import Source, read_json
from ..checkpoints.tokenize import IMAGE
from ..errors import FitPruneError, first_line
from .conversation import build_prompt

VIDEO = "<video>"
_PARTS = re.compile(rf"({re.escape(IMAGE)}|{re.escape(VIDEO)})\n?")
_KINDS = {IMAGE: "image", VIDEO: "video"}

Message = dict[str, Any]
log = logging.getLogger(__name__)


def check_template(processor: Any, name: str) -> None:
    """Raises a FitPruneError for a processor without a chat template."""
    if not getattr(processor, "chat_template", None) and not getattr(processor.tokenizer, "chat_template", None):
        raise FitPruneError(
            f"{name} has no chat template, so nothing says how it is asked: put one into chat_template.jinja in its folder "
            "(one that was made for its language model and for images)"
        )


def own_template(source: Source, tokenizer: Any) -> str | None:
    """The chat template among a checkpoint's files, None if it brings none."""
    if (path := source.get("chat_template.jinja")) is not None:
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (path := source.get(name)) is not None and isinstance(found := read_json(path).get("chat_template"), str):
            return found
    return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None


def say_if_other(name: str, template: str, own: str | None, tokenizer: Any) -> None:
    """Logs one line if a checkpoint's own chat template writes a question in another form than ours, its system text apart."""
    turns = [(f"{IMAGE}\nWhy?", None)]
    if own is None:
        return
    try:
        theirs = tokenizer.apply_chat_template(messages(turns), chat_template=own, tokenize=False, add_generation_prompt=True)
    except Exception:  # one that cannot write a question with an image says nothing about how it is asked
        return
    ours, theirs = (text.strip().removeprefix(tokenizer.bos_token or "").strip() for text in (build_prompt(template, turns), str(theirs)))
    if not ours.endswith(theirs):
        log.warning(
            "%s brings a chat template of another form than %s, in which it is asked here: give --conv-mode %s to be sure, or another one",
            name, template, template,
        )  # fmt: skip


def content(said: str) -> list[Message]:
    """The parts of what a user says: images and videos where they are marked, each with the line break after it, and texts."""
    pieces = (piece for piece in _PARTS.split(said) if piece)
    return [{"type": _KINDS[piece]} if piece in _KINDS else {"type": "text", "text": piece} for piece in pieces]


def messages(turns: Sequence[tuple[str, str | None]], plain: bool = False) -> list[Message]:
    """Turns as messages; answers as plain text if asked for."""
    found: list[Message] = []
    for asked, answer in turns:
        found.append({"role": "user", "content": content(asked)})
        if answer is not None:
            found.append({"role": "assistant", "content": answer if plain else [{"type": "text", "text": answer}]})
    return found


def render(processor: Any, turns: Sequence[tuple[str, str | None]]) -> str:
    """The whole prompt of a conversation, ending where the model is to go on, or with the last answer.

    Raises:
        FitPruneError: no turn, an unanswered turn before the last one, or turns that the template cannot write.
    """
    if not turns:
        raise FitPruneError("a prompt needs at least one turn: give [(text, None)]")
    if any(answer is None for _, answer in turns[:-1]):
        raise FitPruneError("only the last turn of a conversation can be without an answer: give the earlier answers")
    template = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    reason = "it writes lists out as they are"
    for plain in (False, True) if any(answer is not None for _, answer in turns) else (False,):
        said = messages(turns, plain)
        try:
            made = str(template.apply_chat_template(said, tokenize=False, add_generation_prompt=turns[-1][1] is None))
        except Exception as error:  # whatever a template raises
            reason = first_line(error)
            continue
        if not any(str(one["content"]) in made for one in said if isinstance(one["content"], list)):
            return made
    raise FitPruneError(f"the checkpoint's chat template cannot write this conversation: {reason}")
