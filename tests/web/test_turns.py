"""Messages of a request: read in both shapes that OpenAI's APIs have, refused by name where a part would be lost."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from fitprune import FitPruneError
from fitprune.web.turns import MAX_IMAGES, conversation, image_of, of_input
from fitprune.web.untrusted import MAX_BYTES, MAX_SIDE


def data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def test_images_come_before_the_text_and_stay_in_order() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    parts = [{"type": "input_image", "image_url": data_url(red)}, {"type": "text", "text": "And?"}]
    turns, images = conversation([
        {"role": "user", "content": [{"type": "text", "text": "Which?"}, {"type": "image_url", "image_url": {"url": data_url(blue)}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
        {"role": "user", "content": parts},
    ])  # fmt: skip
    assert turns == [("<image>\nWhich?", "blue"), ("<image>\nAnd?", None)]
    assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize(
    ("roles", "said"),
    [(["system", "user"], "in turn"), (["user", "user"], "in turn"), (["user", "assistant"], "last message"), ([], "last")],
)
def test_another_order_of_speakers_is_refused(roles: list[str], said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        conversation([{"role": role, "content": "Hello?"} for role in roles])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}}], "not video_url"),
        ([{"type": "text", "text": "Look:"}, {"type": "input_audio", "input_audio": {}}], "not input_audio"),
        ([{"type": ["text"]}], "with a type"),
        (["Hello?"], "with a type"),
        ([{"type": "text"}], "must have"),
        ([{"type": "text", "text": None}], "must have"),
        ([{"type": "image_url", "image_url": {}}], "must have"),
        ([{"type": "image_url", "image_url": {"url": 7}}], "must have"),
        ({"type": "text"}, "a text or a list"),
        (None, "asks nothing"),
        ([], "asks nothing"),
        ("half \ud83d", "surrogate"),
        ("<image> there", "stands for an image"),
    ],
)
def test_what_would_be_lost_is_refused(content: Any, said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        conversation([{"role": "user", "content": content}])


def test_calls_of_tools_and_pictures_of_the_assistants_are_refused() -> None:
    question = {"role": "user", "content": "Hello?"}
    with pytest.raises(FitPruneError, match="tools"):
        conversation([question, {"role": "assistant", "content": None, "tool_calls": [{}]}, question])
    picture = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (4, 4)))}}
    with pytest.raises(FitPruneError, match="user's"):
        conversation([question, {"role": "assistant", "content": [picture]}, question])
    assert conversation([question, {"role": "assistant", "content": None}, question])[0] == [("Hello?", ""), ("Hello?", None)]


def test_inputs_of_the_responses_api_become_messages() -> None:
    part = {"type": "input_text", "text": "Hello?"}
    for given in ("Hello?", [part], [{"role": "user", "content": [part]}]):
        assert conversation(of_input(given, None))[0] == [("Hello?", None)]
    for given, instructions in ((7, None), ([7], None), ([{"type": "function_call"}], None), ("Hello?", "Be brief.")):
        with pytest.raises(FitPruneError):
            conversation(of_input(given, instructions))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "file:///etc/hostname", "/etc/hostname", "data:image/png,abc", "data:text/plain;base64,aGk="]
)
def test_nothing_is_fetched_or_opened(url: str) -> None:
    with pytest.raises(FitPruneError, match="within the request"):
        image_of(url)


EPS = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n").decode()
LARGE = data_url(Image.new("1", (MAX_SIDE + 1, 9))).partition(",")[2]


@pytest.mark.parametrize(
    ("data", "said"), [("!", "base64"), ("é", "base64"), ("aGVsbG8=", "not an image"), (EPS, "not an image"), (LARGE, "make it smaller")]
)
def test_what_is_no_image_is_refused(data: str, said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        image_of(f"data:image/png;base64,{data}")


def test_too_many_bytes_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(FitPruneError, match="larger than 20 MB"):
        image_of("data:image/png;base64," + "A" * (4 * MAX_BYTES // 3 + 9))


def test_images_of_a_request_are_counted() -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (4, 4)))}}
    assert len(conversation([{"role": "user", "content": [part] * MAX_IMAGES}])[1]) == MAX_IMAGES
    halves = [{"role": "user", "content": [part] * MAX_IMAGES}, {"role": "assistant", "content": []}]
    with pytest.raises(FitPruneError, match=f"at most {MAX_IMAGES} images"):
        conversation([*halves, {"role": "user", "content": [part]}])
