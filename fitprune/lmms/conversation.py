"""Their messages as a prompt in the checkpoint's own conversation template, with the pictures in order.

A message is a role and a list of texts and pictures. Each picture becomes `<image>` and a line break where it stands, as in
`VLM.ask`, so that a picture and a question give the prompt that `fitprune eval` gives. A message whose text has
`<image>` itself says with it where its pictures belong. The system sentence stays the template's, which the checkpoint was
trained with; a system message is put before the first question.

    pytest tests/lmms/test_lmms_eval.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..checkpoints.tokenize import IMAGE
from ..errors import FitPruneError
from ..families.conversation import build_prompt
from ..images.reading import read_image

# role: "system", "user" or "assistant"; content: text, or a list of {"type": "text", "text": …}, {"type": "image", "url": …}
Message = Mapping[str, Any]


def user_message(text: str, pictures: Sequence[Any]) -> Message:
    """What a user says about pictures, these first."""
    return {"role": "user", "content": [*({"type": "image", "url": picture} for picture in pictures), {"type": "text", "text": text}]}


def conversation(template: str, messages: Sequence[Message], answer: str | None = None) -> tuple[str, list[Image.Image]]:
    """The whole prompt, ending where the model is to answer, or with the answer that is given; and its pictures.

    Raises:
        FitPruneError: messages that do not end with the user's, a picture that cannot be read, something other than text
            and pictures.
    """
    pictures: list[Image.Image] = []
    turns: list[tuple[str, str | None]] = []
    said: list[str] = []
    for message in messages:
        text, shown = _spoken(message["content"])
        if message["role"] != "assistant":
            said.append(text)
        elif said and not shown:
            turns.append(("\n".join(said), text))
            said = []
        else:
            raise FitPruneError("an assistant's message has to be text that answers a user's")
        pictures += shown
    if not said:
        raise FitPruneError("the last message has to be the user's: there is nothing to answer")
    return build_prompt(template, [*turns, ("\n".join(said), answer)]), pictures


def _spoken(content: str | Sequence[Mapping[str, Any]]) -> tuple[str, list[Image.Image]]:
    """The text of one message, with `<image>` for each of its pictures, and these."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = [part["text"] if part["type"] == "text" else _picture(part) for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if not isinstance(part, str)]
    marks = sum(text.count(IMAGE) for text in texts)
    if marks == 0:
        return "".join(part if isinstance(part, str) else f"{IMAGE}\n" for part in parts), pictures
    if marks != len(pictures):
        raise FitPruneError(f"a message has {marks} {IMAGE} in its text, but {len(pictures)} picture(s)")
    return "".join(texts), pictures


def _picture(part: Mapping[str, Any]) -> Image.Image:
    """The picture of a message's part: one that is open, or a file."""
    given = part.get("url")
    if part["type"] == "image" and isinstance(given, Image.Image):
        return given
    if part["type"] == "image" and isinstance(given, str):
        return read_image(given)
    kind = part["type"] if part["type"] != "image" else type(given).__name__
    raise FitPruneError(f"fitprune reads text and pictures, not {kind}: leave this task out")
