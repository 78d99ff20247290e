"""lmms-eval's messages as the turns of a conversation, which the checkpoint's own template writes, with the images in order.

A message is a role and a list of texts, images and videos. Each image becomes `<image>` and a line break where it stands, as in
`VLM.ask`, so that an image and a question give the prompt that `fitprune eval` gives. Where a message's text has `<image>` itself, its
images go there.
The system sentence stays the template's, which the checkpoint was trained with; a system message is put before the first question.

    pytest tests/lmms/test_lmms_eval.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..checkpoints.tokenize import IMAGE
from ..errors import FitPruneError
from ..families.chat import VIDEO
from ..families.protocols import Visual
from ..images.reading import as_rgb, read_image
from ..images.video import read_video

MARKS = {"image": f"{IMAGE}\n", "video": f"{VIDEO}\n"}
# role: "system", "user" or "assistant"; content: text, or a list of {"type": "text", "text": …}, {"type": "image" or "video", "url": …}
Message = Mapping[str, Any]


def user_message(text: str, images: Sequence[Any]) -> Message:
    """A user's message of images, then text."""
    return {"role": "user", "content": [*({"type": "image", "url": image} for image in images), {"type": "text", "text": text}]}


def conversation(messages: Sequence[Message], answer: str | None = None) -> tuple[list[tuple[str, str | None]], list[Visual]]:
    """The turns of `VLM.write`, the last of them with the answer, if one is given; and their images.

    Raises a FitPruneError for messages that do not end with the user's and for what is not text or a readable image.
    """
    images: list[Visual] = []
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
        images += shown
    if not said:
        raise FitPruneError("the last message has to be the user's: there is nothing to answer")
    return [*turns, ("\n".join(said), answer)], images


def _spoken(content: str | Sequence[Mapping[str, Any]]) -> tuple[str, list[Visual]]:
    """The text of one message, with a mark for each of its images and videos, and these."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    shown = [_shown(part) for part in content if part["type"] != "text"]
    texts = [part["text"] if part["type"] == "text" else MARKS[part["type"]] for part in content]
    if marks := sum(part["text"].count(IMAGE) for part in content if part["type"] == "text"):
        texts = [part["text"] for part in content if part["type"] == "text"]
        if marks != len(shown):
            raise FitPruneError(f"a message has {marks} {IMAGE} in its text, but {len(shown)} image(s)")
    return "".join(texts), shown


def _shown(part: Mapping[str, Any]) -> Visual:
    """The image or video of a message's part: an image that is open, or a file."""
    found = part.get("url") if part["type"] in MARKS else None
    if isinstance(found, Image.Image) and part["type"] == "image":
        return as_rgb(found)
    if isinstance(found, str):
        return read_image(found) if part["type"] == "image" else read_video(found)
    other = part["type"] if part["type"] not in MARKS else type(part.get("url")).__name__
    raise FitPruneError(f"fitprune reads text, images and videos, not {other}: leave this task out")
