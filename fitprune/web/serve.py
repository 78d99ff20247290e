"""A pruned checkpoint behind `transformers serve`, an HTTP server with OpenAI's chat API.

The server is transformers' own (`pip install 'fitprune[serve]'`), with one model that has a recipe attached and with prompts made
as everywhere here: by the checkpoint's template, tokenised in pieces, so that checkpoints of the original layout and those
without a chat template are served as well. It runs one `generate` at a time. Images of earlier turns come again with every
request and are pruned again. Images are taken as `data:` URLs only, so that no client makes the server fetch or open anything,
and read as untrusted (untrusted.py); requests are checked first (guard.py).

Left out: continuous batching, which needs paged attention, and `--compile`, which needs a static cache: neither can be pruned.
System messages are refused, since the template has the system text that the checkpoint was trained with.

    fitprune serve --reduction-ratio 0.6 --port 8000
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ..checkpoints.tokenize import IMAGE
from ..errors import FitPruneError, explained
from ..families import VLM
from ..files import file_name
from ..prune import attach
from ..recipe import Recipe
from .guard import guard
from .untrusted import MAX_BYTES, check_bytes, read_untrusted_image

CLOSED_ROUTES = ("/v1/audio/transcriptions",)  # no model here hears, and untrusted sound would be decoded first
MAX_IMAGES = 8  # of one request: more of LLaVA-1.5's than its 4096 positions hold
MAX_REQUEST_BYTES = 3 * MAX_BYTES  # two of the largest images in base64 (4 bytes for 3), and some around them

Messages = Sequence[Mapping[str, Any]]  # `role`, and `content`: parts of `type` "text" (`text`) and "image" (`url`)


def needed() -> None:
    """Raises a FitPruneError if the server, or one of the packages that it needs, is not installed."""
    try:
        from transformers.cli.serving.model_manager import Modality  # noqa: F401
        from transformers.utils.import_utils import is_serve_available
    except ImportError:
        raise FitPruneError("serving needs transformers 5.8 or later: pip install -U 'fitprune[serve]'") from None
    if not is_serve_available():
        raise FitPruneError("serving needs fastapi, uvicorn and openai: pip install 'fitprune[serve]'")


def server(vlm: VLM, recipe: Recipe | None, *, score: str | None = None, host: str = "127.0.0.1", port: int = 8000) -> Any:
    """transformers' server around one loaded checkpoint, not yet running (a `uvicorn.Server`: `run()`, `should_exit`).

    Args:
        recipe: Attached to the model for good (`detach` takes it back); None serves the dense model. score: As `prune` takes it.
    Raises:
        FitPruneError: packages missing, recipe for another model.
    """
    needed()
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import Modality

    class Unstarted(Serve):
        def start_server(self) -> None: ...

    model: Any = vlm.model
    name, prompts = file_name(vlm.name), Prompts(vlm)
    model.generation_config.eos_token_id = vlm.ends() or None
    if recipe is not None:
        attach(model, recipe, score=score)
    serving = Unstarted(host=host, port=port, non_blocking=True)
    manager = serving._model_manager
    manager.force_model = name  # what is served if a request names no model; another one is refused
    manager.load_model_and_processor = lambda *_, **__: (model, prompts)
    manager.get_model_modality = lambda *_, **__: Modality.VLM
    known = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "fitprune"}
    manager.get_gen_models = lambda *_, **__: [known]
    _explain_errors(serving._chat_handler, "messages")
    _explain_errors(serving._completion_handler, "prompt")
    _explain_errors(serving._response_handler, "input")
    config = serving.server.config
    config.app.router.routes[:] = [one for one in config.app.router.routes if getattr(one, "path", "") not in CLOSED_ROUTES]
    config.app.add_exception_handler(FitPruneError, _unprocessable)
    config.app = guard(config.app, host, lambda _: MAX_REQUEST_BYTES)
    return serving.server


def _explain_errors(handler: Any, required: str) -> None:
    """Makes FitPruneErrors of what transformers raises over parts of a request; `required` is the field that must be there."""

    def explain(method: str, what: str, called: Callable[..., Any]) -> None:
        def explaining(*args: Any, **kwargs: Any) -> Any:
            with explained(what):
                return called(*args, **kwargs)

        setattr(handler, method, explaining)

    validate, configure = handler._validate_request, handler._build_generation_config

    def validated(body: dict[str, Any]) -> None:
        validate(body)
        with explained("chat_template_kwargs must be an object"):
            dict(body.get("chat_template_kwargs") or {})
        if not body.get(required):
            raise FitPruneError(f"this request asks nothing: send {required}")

    def configured(*args: Any, **kwargs: Any) -> Any:
        made = configure(*args, **kwargs)
        made.validate()
        "".join(made.stop_strings or "")  # raises for what is neither a text nor texts
        return made

    handler._validate_request = validated
    explain("_build_generation_config", "these generation settings cannot be used", configured)
    for method in ("_normalize_input", "get_processor_inputs_from_messages"):
        if hasattr(handler, method):
            explain(method, f"these {required} are not what OpenAI's API takes", getattr(handler, method))


async def _unprocessable(_: Any, error: Exception) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse({"detail": str(error)}, 422)


class Prompts:
    """What the server takes for the model's processor: conversations become model inputs as `VLM` makes them."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm, self.tokenizer = vlm, vlm.tokenizer

    def apply_chat_template(self, messages: Messages, **_: Any) -> Any:
        """Model inputs of a conversation, [1, …]; errors as `conversation`, and for a prompt that is too long."""
        from transformers import BatchFeature

        turns, images = conversation(messages)
        return BatchFeature(self.vlm.encode([(self.vlm.write(turns), images)]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def conversation(messages: Messages) -> tuple[list[tuple[str, str | None]], list[Image.Image]]:
    """(user, assistant) turns with an `<image>` line per image before each user text, and the images in order.

    Raises:
        FitPruneError: roles other than user, assistant, …, user; a part or image that cannot be taken; more than `MAX_IMAGES`.
    """
    turns: list[tuple[str, str | None]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise FitPruneError("messages must be user, assistant, …, user in turn; the system text is the template's")
        unknown = {part["type"] for part in message["content"]} - {"text", "image"}
        if unknown:
            raise FitPruneError(f"only text and images can be asked about, not {', '.join(sorted(unknown))}")
        text = "\n".join(str(part["text"]) for part in message["content"] if part["type"] == "text")
        urls = [str(part["url"]) for part in message["content"] if part["type"] == "image"]
        if len(images) + len(urls) > MAX_IMAGES:
            raise FitPruneError(f"at most {MAX_IMAGES} images are taken in a request, those of earlier turns included")
        images += map(image_of, urls)
        if number % 2:
            turns[-1] = turns[-1][0], text
        else:
            turns.append(("\n".join([*[IMAGE] * len(urls), text]), None))
    if len(messages) % 2 == 0:
        raise FitPruneError("the last message must be the user's")
    return turns, images


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
