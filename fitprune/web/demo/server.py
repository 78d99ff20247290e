"""What serves the page: a closed list of routes, bounded requests, and a browser that may not load anything from elsewhere.

Gradio brings dozens of routes and reports every start to its makers. Its telemetry is switched off before it is imported, and in
front of it stand the checks of `guard.py` and, here:

- routes: those in `ROUTES`; no monitoring, no API page, no proxy, no run history;
- uploads: only as long as there is room for them (uploads.py);
- files: a request that names a file outside the folder of uploads, or a URL to load, is refused before Gradio sees it;
- responses: a content security policy, so that the browser itself refuses what is not from here.

    pytest tests/web/test_demo.py
"""

from __future__ import annotations

import importlib
import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FitPruneError
from ..guard import guard, refusal
from ..untrusted import MAX_BYTES
from .engine import Engine
from .page import CSS, build
from .uploads import Uploads

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_TELEMETRY = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
MAX_CALL_BYTES = 64 * 2**10  # of a request that is no upload; an upload may have these and an image
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
    """Gradio, imported with its telemetry switched off; a FitPruneError if it is not installed."""
    os.environ.update(NO_TELEMETRY)
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise FitPruneError("the demo needs Gradio: pip install 'fitprune[demo]'") from None


def server(engine: Engine, folder: Path, host: str) -> Any:
    """A uvicorn server of the page, to be run on a socket of `listen`; uploads go to `folder`, which is the caller's to remove."""
    gr = gradio()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio has no other way to be told
    fastapi, uvicorn = importlib.import_module("fastapi"), importlib.import_module("uvicorn")
    page, uploads = build(gr, engine, folder), Uploads(folder)  # in this order: `build` puts the examples there
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=uploads.sweeping), page, path="",
        footer_links=[], run_history=False, show_error=False, max_file_size=MAX_BYTES, ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, theme=_theme(gr), css_paths=[CSS],
    )  # fmt: skip
    config = uvicorn.Config(guarded(app, uploads, host), log_level="warning", timeout_graceful_shutdown=2, ws="none", server_header=False)
    return uvicorn.Server(config)


def _theme(gr: Any) -> Any:
    """Gradio's own theme in the system's fonts (none is loaded from anywhere), with hints dark enough to read."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def guarded(app: ASGIApp, uploads: Uploads, host: str) -> ASGIApp:
    """The page's app behind the checks that both servers have, and its own; `host` is where the server listens."""
    return guard(PageGuard(app, uploads), host, lambda path: MAX_CALL_BYTES + MAX_BYTES * path.startswith(UPLOAD))


class PageGuard:
    """An ASGI app in front of Gradio's: routes, uploads, files, responses; see the module."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        from starlette.datastructures import MutableHeaders
        from starlette.requests import Request

        method, path, request = scope["method"], scope["path"], Request(scope, receive)
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise refusal(404, "there is nothing here")
        if path.startswith(f"{API}/queue/join"):
            body = await request.body()
            if not self._names_only_uploads(body):
                raise refusal(400, "this request names a file that was not uploaded here")
            receive = _replay(body, receive)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        is_upload = method == "POST" and path.startswith(UPLOAD)
        with self.uploads.reserve(int(request.headers["content-length"])) if is_upload else nullcontext(True) as fits:
            if not fits:
                raise refusal(503, "too many images are being uploaded: try again in a moment")
            await self.app(scope, receive, with_headers)

    def _names_only_uploads(self, body: bytes) -> bool:
        """Whether every "path" in a JSON body, however deep, is that of an uploaded file."""
        paths: list[Any] = []

        def note(found: dict[str, Any]) -> dict[str, Any]:
            paths.append(found.get("path"))
            return found

        try:
            json.loads(body, object_hook=note)
            return all(path is None or self.uploads.folder in Path(str(path)).resolve().parents for path in paths)
        except (ValueError, RecursionError):
            return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, then goes on."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed
