"""Whatever a client sends is answered or refused with status 422 and a line: requests of OpenAI's fields, and bytes that are none.

The app is called in this process, without a port; behind it is the embedded model, pruned, so that every setting goes all the way.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import served

import fitprune
from fitprune import Recipe
from fitprune.embedded import embedded
from fitprune.web.fields import RULES
from fitprune.web.serve import server

pytestmark = served

JSON = "application/json"
PICTURE = "data:image/jpeg;base64," + base64.b64encode(embedded().picture.read_bytes()).decode()
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@functools.cache
def app() -> Any:
    return server(fitprune.load("embedded", device="cpu"), Recipe.step(layer=1, keep=0.5), port=0).config.app


def ask(path: str, content: bytes, kind: str = JSON) -> tuple[int, str]:
    """Status and text of the app's answer; an exception that passes through after its answer is in the server's log, and kept out here."""
    sent: list[Any] = []
    headers = [(b"host", b"localhost"), (b"content-type", kind.encode()), (b"content-length", str(len(content)).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "root_path": "", "client": ("127.0.0.1", 9), "server": ("localhost", 80),
    }  # fmt: skip
    arriving: list[Any] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if not arriving:
            await asyncio.sleep(3600)
        return arriving.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        try:
            await app()(scope, receive, send)
        except Exception:
            if not sent or sent[-1].get("more_body"):
                raise

    asyncio.run(run())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def check(path: str, content: bytes, kind: str = JSON) -> Any:
    """The parts of an answer: of one, or of a stream; fails where it is neither an answer nor a line."""
    status, answer = ask(path, content, kind)
    assert status in (200, 422), answer
    if status == 422:
        said = json.loads(answer)["detail"]
        assert isinstance(said, str)
        assert said
        assert "\n" not in said
        assert len(said) < 500
        assert "could not be answered" not in said  # by a rule that knows why, not by the net below all
        return said
    if answer.startswith(("data: ", "event: ")):
        assert answer.endswith("\n\n")
        return [json.loads(line.partition("data: ")[2]) for line in answer.split("\n\n") if line]
    return json.loads(answer)


def body(**fields: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": PICTURE}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What number is written?"}]}]
    return {"messages": messages, "temperature": 0, "max_tokens": 4, **fields}


ODD = st.sampled_from(
    (
        *(None, True, False, 0, 1, -1, 2, 0.5, 1e-9, 1e-45, 16.0, 10**30, -(2**63), float("nan"), float("inf"), "", "x", "日本", "\ud83d"),
        *([], ["a"], ["日本", "\n"], [1], {}, {"3": 5}, {"3": -100, "4": 0.5}, {"9999999": 1}, {"type": "text"}, {"type": "json_object"}),
    )
)
NEAR = {
    "temperature": st.floats(0, 2), "top_p": st.floats(0, 1), "frequency_penalty": st.floats(-2, 2), "presence_penalty": st.floats(-2, 2),
    "max_tokens": st.integers(1, 6), "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "stream": st.booleans(), "logit_bias": st.dictionaries(st.integers(0, 60).map(str), st.floats(-100, 100), max_size=3),
}  # fmt: skip
FIELDS = {name: (NEAR[name] | ODD if name in NEAR else ODD) for name in [*RULES, "wish"] if name not in ("messages", "prompt", "input")}
SETTINGS = st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
URL = st.sampled_from(
    (
        PICTURE,
        PICTURE[:900],
        "data:image/png;base64,",
        "data:image/png;base64,!!",
        "data:text/plain;base64,aGk=",
        "http://a/b.png",
        "/etc/x",
    )
)
PART = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.sampled_from(("What is it?", "", "\ud83d", "<image>", None, 7))),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, URL),
    st.builds(lambda url: {"type": "image_url", "image_url": url}, URL | ODD),
    st.builds(lambda kind: {"type": kind}, ODD | st.sampled_from(("input_audio", "file", "refusal", "image_url", "text"))),
    ODD,
)
CONTENT = st.text(max_size=9) | st.lists(PART, max_size=3) | ODD
MESSAGE = (
    st.fixed_dictionaries({"role": st.sampled_from(("user", "user", "assistant", "system", "tool", 7, None)), "content": CONTENT}) | ODD
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(SETTINGS)
def test_any_settings_are_answered(fields: dict[str, Any]) -> None:
    check(CHAT, json.dumps(body(**fields)).encode())


@QUICK
@given(st.sampled_from((TEXT, RESPONSES)), SETTINGS)
def test_any_settings_of_the_other_routes_are_answered(path: str, fields: dict[str, Any]) -> None:
    asked = {"prompt": "Hello?", "max_tokens": 3} if path == TEXT else {"input": "Hello?", "max_output_tokens": 3}
    check(path, json.dumps(asked | fields).encode())


@QUICK
@given(st.lists(MESSAGE, max_size=3) | ODD, st.booleans())
def test_any_messages_are_answered(messages: Any, stream: bool) -> None:
    check(CHAT, json.dumps(body(messages=messages, stream=stream, max_tokens=2)).encode())
    check(RESPONSES, json.dumps({"input": messages, "max_output_tokens": 2, "stream": stream}).encode())


NESTED = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b"null", b"\xff\xfe", NESTED, b'{"messages": NaN}', b'"\\ud83d"', b'{"\\ud83d": 1}']
)
@pytest.mark.parametrize("kind", [JSON, "text/plain", "multipart/form-data", "", "application/x-www-form-urlencoded"])
def test_what_is_no_request_is_refused(content: bytes, kind: str) -> None:
    for path in (CHAT, TEXT, RESPONSES):
        assert isinstance(check(path, content, kind), str)


def text_of(found: Any) -> str:
    return str(found["choices"][0]["message"]["content"])


def test_settings_do_what_they_say() -> None:
    plain = check(CHAT, json.dumps(body(max_tokens=16)).encode())
    answer = text_of(plain)
    assert len(answer) > 1
    for stop in (answer[1], [answer[1], "日本"]):
        assert text_of(check(CHAT, json.dumps(body(max_tokens=16, stop=stop)).encode())) == answer.partition(answer[1])[0]
        streamed = check(CHAT, json.dumps(body(max_tokens=16, stop=stop, stream=True)).encode())
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in streamed) == answer.partition(answer[1])[0]
    assert text_of(check(CHAT, json.dumps(body(max_tokens=16, stop=["日本"])).encode())) == answer
    vlm = fitprune.load("embedded", device="cpu")
    first = int(vlm.tokenizer(answer, add_special_tokens=False)["input_ids"][0])
    assert not text_of(check(CHAT, json.dumps(body(logit_bias={str(first): -100})).encode())).startswith(answer[0])
    seeds = {text_of(check(CHAT, json.dumps(body(temperature=2, seed=seed)).encode())) for seed in range(6)}
    assert len(seeds) > 1  # it samples where it is asked to
    assert len({text_of(check(CHAT, json.dumps(body(temperature=2, seed=3)).encode())) for _ in range(2)}) == 1


def test_an_answer_ends_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = fitprune.load("embedded", device="cpu")
    config = vlm.model.config.get_text_config()  # type: ignore[union-attr, operator]
    monkeypatch.setattr(config, "max_position_embeddings", 30)
    short = server(vlm, None, port=0).config.app
    monkeypatch.setitem(globals(), "app", lambda: short)
    endless = {"prompt": "Hello?", "max_tokens": 10**9, "generation_config": json.dumps({"eos_token_id": config.vocab_size - 1})}
    found = check(TEXT, json.dumps(endless).encode())
    assert (found["choices"][0]["finish_reason"], found["usage"]["total_tokens"]) == ("length", 30)
    assert "30" in check(CHAT, json.dumps(body()).encode())  # the prompt alone is longer


def test_a_stream_that_fails_ends_with_an_error() -> None:
    parts = check(CHAT, json.dumps(body(stream=True, generation_config='{"cache_implementation": "static"}')).encode())
    assert "StaticCache" in parts[-1]["error"]
    parts = check(RESPONSES, json.dumps({"input": "Hello?", "stream": True, "generation_config": '{"num_beams": 2}'}).encode())
    assert parts[-1]["type"] == "response.failed"
