"""In front of a server of ours: whose requests are let in, and how much of them (plain ASGI; the demo's and `fitprune serve`'s).

- names: on loopback only requests for this host (a web site that points its own name at 127.0.0.1 is turned away);
- sites: nothing is taken from a page of another site, which a browser would send along without being asked;
- bodies: their length is said beforehand and bounded, and what arrives is counted. `Transfer-Encoding` is refused, since
  servers believe it more than a length beside it.

A client that goes away in the middle of a body ends the request quietly; there is nobody to tell, and nothing of ours failed.

    python -m pytest tests/web/test_guard.py
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .ports import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READING = ("GET", "HEAD", "OPTIONS")  # methods that bring nothing


class Guard:
    """An ASGI app in front of another one; see the module.

    Args:
        host: Where the server listens; if that is loopback, requests must be for this machine by name.
        most: Bytes that a request for a path may have.
    """

    def __init__(self, app: App, host: str, most: Callable[[str], int]) -> None:
        self.app, self.local, self.most = app, is_loopback(host), most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most = self.most(scope["path"]) if scope["method"] not in READING else 0
        status, said = self._refused(scope["method"], headers, most)
        if status:
            await _drain(receive)
            return await refuse(send, status, said)
        body = _Body(receive, most)
        try:
            await self.app(scope, body.receive, body.forward(send))
        except Exception:
            if not body.broken:
                raise
        if body.taken > most:
            await refuse(send, *_too_much(most))
        return None

    def _refused(self, method: str, headers: dict[str, str], most: int) -> tuple[int, str]:
        """Status and reason if a request is not let through, 0 if it is."""
        name = headers.get("host", "").lower()
        if self.local and not is_loopback(re.sub(r":\d+$", "", name).strip("[]")):
            return 421, "this server is for the machine that it runs on"
        if method in READING:
            return 0, ""
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" or (origin is not None and _host(origin) != name):
            return 403, "nothing is taken from pages of other sites"
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
            return 411, "say how long the request is, and send it in one piece"
        return _too_much(most) if len(length) > 20 or int(length) > most else (0, "")


class _Body:
    """A request's body on its way in: counted, and cut off beyond `most` bytes."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self.most = receive, most
        self.taken, self.broken, self._whole = 0, False, False

    async def receive(self) -> Message:
        if self.taken > self.most:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self.taken += len(message.get("body", b""))
        self._whole |= message["type"] == "http.request" and not message.get("more_body")
        self.broken = self.taken > self.most or (not self._whole and message["type"] == "http.disconnect")
        return {"type": "http.disconnect"} if self.taken > self.most else message

    def forward(self, send: Send) -> Send:
        """Sends on what the app answers, unless the answer is that the body was too long."""

        async def sent(message: Message) -> None:
            if self.taken <= self.most:
                await send(message)

        return sent


def _host(origin: str) -> str:
    """Name and port of an origin, "null" for one that has none (no host is called that)."""
    try:
        return urlsplit(origin).netloc.lower() or "null"
    except ValueError:
        return "null"


def _too_much(most: int) -> tuple[int, str]:
    return 413, f"at most {most} bytes are taken here"


async def _drain(receive: Receive, most: int = 2**16, seconds: float = 1.0) -> None:
    """Takes a little of what is on its way: a connection closed over unread bytes is reset before its answer is read."""

    async def take() -> None:
        taken, more = 0, True
        while more and taken <= most:
            message = await receive()
            taken += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(take(), seconds)


async def refuse(send: Send, status: int, said: str) -> None:
    """Answers with a status and a line of text, and hangs up."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{said}\n".encode()})
