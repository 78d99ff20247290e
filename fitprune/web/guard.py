"""Checks in front of both HTTP servers (the demo's and `fitprune serve`'s): which requests are let in, and how large they may be.

- Host: on loopback a request must name this machine, else 400 (Starlette's TrustedHostMiddleware): a web site cannot get in by
  pointing its own name at 127.0.0.1 (DNS rebinding).
- Origin: a request that may change something is refused if a page of another site sent it (403).
- Body: Content-Length is required (411) and bounded (413), and the bytes that arrive are counted. Transfer-Encoding is refused,
  as servers believe it over a Content-Length beside it.

Starlette has a middleware for the first only. It comes with Gradio and with fastapi, so it is imported once a server is made.
Left out: passwords and TLS.

    python -m pytest tests/web/test_guard.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .ports import is_loopback

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # may come from anywhere, without a body
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "[")  # "[": Starlette 1.3 and older cut "[::1]:8000" at its first colon
TOO_LARGE = "at most {} bytes are taken here"


def guard(app: ASGIApp, host: str, limit: Callable[[str], int]) -> ASGIApp:
    """An ASGI app behind all checks of this module; `host` is where the server listens, `limit` the bytes a path may be sent."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = [*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host] if is_loopback(host) else ["*"]
    return TrustedHostMiddleware(_RequestGuard(app, limit), names)


class _RequestGuard:
    """Origin and body; a refusal, of its own or the app's, is answered in a line of text and closes the connection."""

    def __init__(self, app: ASGIApp, limit: Callable[[str], int]) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        import anyio  # Starlette's own dependency
        from starlette.datastructures import Headers
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse

        safe = scope["method"] in SAFE_METHODS
        limit = 0 if safe else self.limit(scope["path"])
        taken, complete = 0, False

        async def counted() -> Message:
            nonlocal taken, complete
            message = await receive()
            taken += len(message.get("body", b""))
            complete = not message.get("more_body")
            if taken > limit:
                raise refusal(413, TOO_LARGE.format(limit))
            return message

        try:
            _check_headers(Headers(scope=scope), safe, limit)
            await self.app(scope, counted, send)
        except ClientDisconnect:  # in the middle of a body: there is nobody to tell
            pass
        except HTTPException as error:
            undrained = 2**16
            with anyio.move_on_after(1.0):  # seconds; a connection closed over unread bytes is reset before its answer is read
                while not complete and undrained > 0:
                    message = await receive()
                    undrained -= len(message.get("body", b""))
                    complete = not message.get("more_body")
            await PlainTextResponse(f"{error.detail}\n", error.status_code, {"connection": "close"})(scope, receive, send)


def refusal(status: int, reason: str) -> Exception:
    """What an app behind `guard` raises to refuse a request."""
    from starlette.exceptions import HTTPException

    return HTTPException(status, reason)


def _check_headers(headers: Headers, safe: bool, limit: int) -> None:
    """Refuses other sites, and bodies without a length or with too large a one."""
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    same_site = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
    if not safe and (headers.get("sec-fetch-site") == "cross-site" or not same_site):
        raise refusal(403, "requests from pages of other sites are refused")
    length = headers.get("content-length", "0" if safe else "")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal()):
        raise refusal(411, "send the request in one piece, with a Content-Length")
    if len(length) > 20 or int(length) > limit:  # int() raises for thousands of digits
        raise refusal(413, TOO_LARGE.format(limit))
