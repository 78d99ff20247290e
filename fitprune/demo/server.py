"""What serves the page: a closed list of routes, bounded requests, and a browser that may not load anything from elsewhere.

Gradio brings dozens of routes and tells its makers about every start. Here its calls home are switched off before it is
imported, and a guard in front of it (plain ASGI) lets through what the page itself needs and nothing else:

- names: on loopback only requests for this host (a web site that points its own name at 127.0.0.1 is turned away);
- routes: those in `ROUTES`; there is no monitoring, no API page, no proxy, no run history;
- bodies: at most the size of an upload, and everything else small;
- files: a request that names a file outside the folder of uploads, or an address to load, is refused before Gradio sees it;
- answers: a content security policy, so that the browser itself refuses what is not from here.

    pytest tests/test_demo.py
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from ..errors import FitPruneError
from ..ports import is_loopback
from .engine import Engine
from .page import CSS, build
from .upload import MAX_BYTES

SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
SMALL = 64 * 2**10  # bytes of a request that is no upload
API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        rf"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*"
        rf"|{API}/(startup-events|queue/data|upload_progress|theme\.css|heartbeat/\w+|file=.*)"
    ),
    "POST": re.compile(rf"{API}/(upload|queue/join|cancel|reset)/?"),
}
ROUTES["HEAD"] = ROUTES["GET"]
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def gradio() -> Any:
    """Gradio, imported with its calls home switched off.

    Raises:
        FitPruneError: if it is not installed.
    """
    os.environ.update(SILENT)
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise FitPruneError("the demo needs Gradio: pip install 'fitprune[demo]'") from None


def server(engine: Engine, uploads: Path, host: str) -> Any:
    """A uvicorn server of the page, to be run on a socket of `listen`.

    Args:
        uploads: An empty folder for uploaded files, which is the caller's to remove.
    """
    gr = gradio()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # Gradio has no other way to be told
    fastapi, uvicorn = importlib.import_module("fastapi"), importlib.import_module("uvicorn")
    page = build(gr, engine, uploads)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, path="", footer_links=[],
        run_history=False, show_error=False, max_file_size=MAX_BYTES, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=_theme(gr), css_paths=[CSS],
    )  # fmt: skip
    guard = Guard(app, uploads, host)
    return uvicorn.Server(
        uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=2, ws="none", server_header=False)
    )


def _theme(gr: Any) -> Any:
    """Gradio's own theme in the system's fonts (none is loaded from anywhere), with hints dark enough to read."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


class Guard:
    """An ASGI app in front of another one; see the module.

    Args:
        uploads: The folder that requests may name files of.
        host: Where the server listens; if that is loopback, requests must be for this machine by name.
    """

    def __init__(self, app: App, uploads: Path, host: str) -> None:
        self.app, self.uploads, self.local = app, uploads.resolve(), is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, said = self._refused(scope["method"], scope["path"], headers)
        if not status and scope["path"].startswith(f"{API}/queue/join"):
            body = await _whole(receive)
            if not self._harmless(body):
                status, said = 400, "this request names a file that was not uploaded here"
            receive = _again(body, receive)
        if status:
            return await _refuse(send, status, said)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        return await self.app(scope, receive, guarded)

    def _refused(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and reason if a request is not let through, 0 if it is."""
        name = headers.get("host", "")
        if self.local and not is_loopback(re.sub(r":\d+$", "", name).strip("[]")):
            return 421, "this page is for the machine that it runs on"
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            return 404, "there is nothing here"
        if method == "POST":
            length, most = headers.get("content-length", ""), SMALL
            if path.startswith(f"{API}/upload"):
                most += MAX_BYTES
            if not length.isdecimal():
                return 411, "say how long the request is"
            if int(length) > most:
                return 413, f"at most {most} bytes are taken here"
        return 0, ""

    def _harmless(self, body: bytes) -> bool:
        """Whether a call names no file but uploaded ones."""
        try:
            return all(self.uploads in Path(str(path)).resolve().parents for path in _paths(json.loads(body)))
        except (ValueError, RecursionError):
            return False


def _paths(value: Any) -> Iterator[Any]:
    """Everything that is called a path, however deep in JSON."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)


async def _whole(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, then goes on."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


async def _refuse(send: Send, status: int, said: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{said}\n".encode()})
