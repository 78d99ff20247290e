"""The checks in front of both servers: hosts, sites, lengths; what arrives is counted whatever Content-Length says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from fitprune.web.guard import guard


def limit(path: str) -> int:
    return 1000 if path == "/large" else 10


@pytest.fixture(autouse=True)
def _starlette() -> None:
    pytest.importorskip("starlette", reason="needs Starlette: pip install 'fitprune[serve]'")


def called(guarded: Any, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request; headers with _ for -."""
    given_headers = {"host": "127.0.0.1:7860", "content-length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given_headers.items()],
    }  # fmt: skip
    parts = [body[at : at + 7] for at in range(0, len(body), 7)] or [b""]
    waiting = [{"type": "http.request", "body": part, "more_body": at < len(parts) - 1} for at, part in enumerate(parts)]
    waiting.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded(scope, receive, send))
    said = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], said, b"".join(message.get("body", b"") for message in sent)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def guarded(_starlette: None) -> Any:
    return guard(echo, "127.0.0.1", limit)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "10.0.0.1:7860"])
def test_a_name_that_is_not_this_machine_is_turned_away(guarded: Any, host: str) -> None:
    assert called(guarded, "GET", "/", host=host)[0] == 400
    assert called(guard(echo, "0.0.0.0", limit), "GET", "/", host=host)[0] == 200  # opened on purpose


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:7860"])
def test_this_machine_has_several_names(guarded: Any, host: str) -> None:
    assert called(guarded, "GET", "/", host=host)[0] == 200


@pytest.mark.parametrize(("listening", "host"), [("::1", "[::1]:8000"), ("::1", "localhost:8000"), ("127.1.2.3", "127.1.2.3:8000")])
def test_loopback_addresses_answer_to_themselves(listening: str, host: str) -> None:
    assert called(guard(echo, listening, limit), "GET", "/", host=host)[0] == 200
    assert called(guard(echo, listening, limit), "GET", "/", host="evil.example:8000")[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:7860", "sec_fetch_site": "same-origin"}, 200),
        ({"host": "LOCALHOST:7860", "origin": "http://localhost:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[1"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
    ],
)
def test_nothing_is_taken_from_other_sites(guarded: Any, headers: dict[str, str], status: int) -> None:
    assert called(guarded, "POST", "/", b"x", **headers)[0] == status
    assert called(guarded, "DELETE", "/", b"x", **headers)[0] == status
    assert called(guarded, "GET", "/", **headers)[0] == 200  # a link from elsewhere


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_length": "10"}, 200),
        ({"content_length": "11"}, 413),
        ({"content_length": "9" * 5000}, 413),
        ({"content_length": ""}, 411),
        ({"content_length": "-1"}, 411),
        ({"content_length": "²"}, 411),
        ({"transfer_encoding": "chunked"}, 411),
        ({"transfer_encoding": ""}, 411),
    ],
)
def test_lengths_are_said_and_bounded(guarded: Any, headers: dict[str, str], status: int) -> None:
    assert called(guarded, "POST", "/", b"1234567890", **headers)[0] == status


def test_a_get_brings_no_body(guarded: Any) -> None:
    assert called(guarded, "GET", "/", b"x")[0] == 413
    assert called(guarded, "GET", "/", transfer_encoding="chunked")[0] == 411


@pytest.mark.parametrize(("path", "sent"), [("/", 11), ("/", 5000), ("/large", 1001)])
def test_what_comes_in_is_counted(path: str, sent: int) -> None:
    taken = list[int]()

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive()).get("more_body"):
            taken.append(len(message["body"]))
        await echo(scope, receive, send)  # knows nothing of it

    status, _, said = called(guard(counting, "127.0.0.1", limit), "POST", path, bytes(sent), content_length="1")
    assert (status, said) == (413, f"at most {limit(path)} bytes are taken here\n".encode())
    assert sum(taken) <= limit(path)


def test_who_goes_away_in_the_middle_is_no_fault_of_ours() -> None:
    from starlette.requests import Request

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        raise RuntimeError("a fault")

    async def scene(*messages: dict[str, Any]) -> None:
        coming = [*messages, {"type": "http.disconnect"}]
        headers = [(b"host", b"localhost"), (b"content-length", b"9")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}

        async def receive() -> Any:
            return coming.pop(0)

        await guard(reading, "127.0.0.1", limit)(scope, receive, None)

    asyncio.run(scene({"type": "http.request", "body": b"1", "more_body": True}))
    with pytest.raises(RuntimeError, match="a fault"):  # the whole body came
        asyncio.run(scene({"type": "http.request", "body": b"1"}))


def test_it_can_be_imported_without_starlette() -> None:
    code = "import sys; sys.modules['starlette'] = None; import fitprune.web.guard"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
