"""The messages of a request, as OpenAI's APIs write them, become turns and images; what cannot be asked is refused by name.

Both shapes of parts are read: the chat API's (`text`, `image_url`) and the responses API's (`input_text`, `output_text`,
`input_image`). A part that is of no use here (sound, a file, a video) is refused, never left out, as the answer would be about something
else than was sent. Images are taken as `data:` URLs only, so that no client makes the server fetch or open anything, and read as
untrusted (untrusted.py).

Left out: system messages, since the template has the system text that the checkpoint was trained with; tools, which no LLaVA was taught.

    python -c "from fitprune.web.turns import *; print(conversation([{'role': 'user', 'content': 'Hello?'}]))"
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from ..checkpoints.tokenize import IMAGE
from ..errors import FitPruneError
from ..families.chat import VIDEO
from .untrusted import check_bytes, read_untrusted_image

MAX_IMAGES = 8  # of one request: more of LLaVA-1.5's than its 4096 positions hold
TEXTS = ("text", "input_text", "output_text")
IMAGES = ("image_url", "input_image")
TURNS = "messages must be user, assistant, …, user in turn; the system text is the template's"


def conversation(messages: Any) -> tuple[list[tuple[str, str | None]], list[Image.Image]]:
    """(user, assistant) turns with an `<image>` line per image before each user text, and the images in order.

    Raises:
        FitPruneError: roles other than user, assistant, …, user; a part or image that cannot be taken; more than `MAX_IMAGES`.
    """
    turns: list[tuple[str, str | None]] = []
    images: list[Image.Image] = []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise FitPruneError('messages must be a list of objects such as {"role": "user", "content": "Hello?"}')
    for number, message in enumerate(messages):
        if message.get("role") != ("user", "assistant")[number % 2]:
            raise FitPruneError(TURNS)
        texts, urls = _read(message)
        if len(images) + len(urls) > MAX_IMAGES:
            raise FitPruneError(f"at most {MAX_IMAGES} images are taken in a request, those of earlier turns included")
        images += map(image_of, urls)
        text = "\n".join(texts)
        if number % 2:
            if urls:
                raise FitPruneError("images are taken in the user's messages, not in the assistant's")
            turns[-1] = turns[-1][0], text
        elif not texts and not urls:
            raise FitPruneError(f"message {number + 1} asks nothing: its content must be a text, or parts with a text or an image")
        else:
            turns.append(("\n".join([*[IMAGE] * len(urls), text]), None))
    if len(messages) % 2 == 0:
        raise FitPruneError("the last message must be the user's")
    return turns, images


def _read(message: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The texts and the image URLs of one message, each in order."""
    if message.get("tool_calls") or message.get("function_call"):
        raise FitPruneError("this model calls no tools: leave tool_calls out of the messages")
    content = message.get("content")
    texts: list[str] = []
    urls: list[str] = []
    for kind, value in [("text", content)] if isinstance(content, str) else _parts([] if content is None else content):
        (texts if kind == "text" else urls).append(value)
    for text in texts:
        check_text(text)
    return texts, urls


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """The parts of a message as ("text", text) and ("image", url)."""
    if not isinstance(content, list):
        raise FitPruneError("the content of a message must be a text or a list of parts")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise FitPruneError('a part of a message must be an object with a type, such as {"type": "text", "text": "Hello?"}')
        if kind not in (*TEXTS, *IMAGES):
            raise FitPruneError(f"only text and images can be asked about, not {kind}")
        value = part.get("text" if kind in TEXTS else "image_url")
        if isinstance(value, dict) and kind in IMAGES:
            value = value.get("url")
        if not isinstance(value, str):
            shown = '"text": "…"' if kind in TEXTS else '"image_url": {"url": "data:image/png;base64,…"}'
            raise FitPruneError(f"a part of type {kind} must have {shown}")
        yield ("text" if kind in TEXTS else "image"), value


def check_text(text: str, name: str = "a text") -> None:
    """Refuses what no tokenizer takes, half of a surrogate pair, and the marks that stand for images and videos."""
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise FitPruneError(f"{name} has half of a surrogate pair, which is no character: send whole ones")
    for mark in (IMAGE, VIDEO):
        if mark in text:
            raise FitPruneError(f"{mark} stands for an image or a video and cannot be in {name}: leave it out")


def image_of(url: str) -> Image.Image:
    """The image in a `data:image/…;base64,…` URL; a FitPruneError for any other URL and for what is damaged or too large."""
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise FitPruneError("images must come within the request, as data:image/png;base64,… URLs")
    check_bytes(3 * (len(data) // 4 - 1))  # before it is decoded; `read_untrusted_image` counts to the byte
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:  # not base64, or not ASCII
        raise FitPruneError("this image's base64 is damaged") from None
    return read_untrusted_image(content)


def of_input(given: Any, instructions: Any) -> list[Any]:
    """The messages of a request of the responses API: its input as a text, as parts of one message, or as messages.

    Raises:
        FitPruneError: for instructions, and for items that are no messages (tools' calls, references).
    """
    if instructions:
        raise FitPruneError("instructions cannot be given: the system text is the template's")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, Sequence) or not all(isinstance(item, dict) for item in given):
        raise FitPruneError("input must be a text, a list of parts or a list of messages")
    if given and "role" not in given[0]:
        if str(given[0].get("type")) not in (*TEXTS, *IMAGES):
            raise FitPruneError(f"only text, images and messages can be an input, not {given[0].get('type')}")
        return [{"role": "user", "content": list(given)}]
    return list(given)
