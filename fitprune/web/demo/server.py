"""What serves the page: a closed list of routes, bounded requests, and a browser that may not load anything from elsewhere.

Gradio brings dozens of routes and tells its makers about every start. Here its calls home are switched off before it is
imported, and what stands in front of it (plain ASGI) lets through what the page itself needs and nothing else:

- names, sites, bodies: as `guard.py` has them; at most the size of an upload, and everything else small;
- routes: those in `ROUTES`; there is no monitoring, no API page, no proxy, no run history;
- uploads: only as long as there is room for them (uploads.py);
- files: a request that names a file outside the folder of uploads, or an address to load, is refused before Gradio sees it;
- answers: a content security policy, so that the browser itself refuses what is not from here.

    pytest tests/web/test_demo.py
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import FitPruneError
from ..guard import App, Guard, Message, Receive, Scope, Send, refuse
from ..untrusted import MAX_BYTES
from .engine import Engine
from .page import CSS, build
from .uploads import Uploads

SILENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
SMALL = 64 * 2**10  # bytes of a request that is no upload
API = "/gradio_api"
UPLOAD = f"{API}/upload"
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
    guarded = guard(app, uploads, host)
    return uvicorn.Server(uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=2, ws="none", server_header=False))


def _theme(gr: Any) -> Any:
    """Gradio's own theme in the system's fonts (none is loaded from anywhere), with hints dark enough to read."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def guard(app: App, uploads: Path, host: str) -> Guard:
    """All that stands before the page: the guard that `fitprune serve` has, too, and the page's own.

    Args:
        uploads: The folder that requests may name files of; what is in it now stays in it.
        host: Where the server listens.
    """
    return Guard(Page(app, Uploads(uploads)), host, lambda path: SMALL + MAX_BYTES * path.startswith(UPLOAD))


class Page:
    """An ASGI app in front of Gradio's: routes, uploads, files, answers; see the module. The guard has been before it."""

    def __init__(self, app: App, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._living(scope, receive, send)
        method, path = scope["method"], scope["path"]
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            return await refuse(send, 404, "there is nothing here")
        if path.startswith(f"{API}/queue/join"):
            body = await _whole(receive)
            if not self._harmless(body):
                return await refuse(send, 400, "this request names a file that was not uploaded here")
            receive = _again(body, receive)
        coming = int(dict(scope["headers"])[b"content-length"]) if method == "POST" and path.startswith(UPLOAD) else 0

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        with self.uploads.room(coming) as fits:
            if not fits:
                return await refuse(send, 503, "too many pictures are being uploaded: try again in a moment")
            return await self.app(scope, receive, answered)

    async def _living(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sweeps the uploads as long as the app lives."""
        sweeping = asyncio.create_task(self.uploads.sweeping())
        try:
            await self.app(scope, receive, send)
        finally:
            sweeping.cancel()

    def _harmless(self, body: bytes) -> bool:
        """Whether a call names no file but uploaded ones."""
        try:
            return all(self.uploads.folder in Path(str(path)).resolve().parents for path in _paths(json.loads(body)))
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
