"""A pruned checkpoint behind `transformers serve`, an HTTP server with OpenAI's chat API.

The server is transformers' own (fastapi and uvicorn; `pip install 'fitprune[serve]'`). It is given one model, with a recipe
attached, and prompts made as everywhere here: by the checkpoint's template, tokenised in pieces, so that checkpoints of the
original layout and those without a chat template are served as well. Requests wait for each other: the server runs one
`generate` at a time, in one thread. An earlier turn's pictures come again with every request and are pruned again.

Left out: the server's continuous batching, which needs paged attention, and its `--compile`, which needs a static cache:
neither can be pruned. Pictures are taken as `data:` URLs only: nothing is fetched and no file opened because a client
says so, and what they hold is read as the demo reads uploads (strangers.py); names, sites and lengths of requests are looked at
as there (guard.py). A system message is refused, since the template has the system text that the checkpoint was trained with.

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
from ..families.conversation import build_prompt
from ..files import file_name
from ..prune import attach
from ..recipe import Recipe
from .guard import Guard
from .untrusted import MAX_BYTES, check_bytes, read_untrusted_image

CLOSED = ("/v1/audio/transcriptions",)  # no model here hears, and strangers' sound would be decoded first
PICTURES = 8  # of one request: more of LLaVA-1.5's than its 4096 positions hold
MOST = 3 * MAX_BYTES  # bytes of a request: two of the largest pictures in base64 (4 bytes for 3), and some around them

Messages = Sequence[Mapping[str, Any]]


def needed() -> None:
    """Finds out whether the server can be had.

    Raises:
        FitPruneError: if it, or one of the packages that it needs, is missing.
    """
    try:
        from transformers.cli.serving.model_manager import Modality  # noqa: F401
        from transformers.utils.import_utils import is_serve_available
    except ImportError:
        raise FitPruneError("serving needs transformers 5.8 or later: pip install -U 'fitprune[serve]'") from None
    if not is_serve_available():
        raise FitPruneError("serving needs fastapi, uvicorn and openai: pip install 'fitprune[serve]'")


def server(vlm: VLM, recipe: Recipe | None, *, score: str = "fitprune", host: str = "127.0.0.1", port: int = 8000) -> Any:
    """transformers' server around one loaded checkpoint, not yet running (a `uvicorn.Server`: `run()`, `should_exit`).

    Args:
        recipe: Attached to the model for good (`detach` takes it back); None serves the dense model.
    Raises:
        FitPruneError: packages missing, recipe for another model.
    """
    needed()
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import Modality

    class Waiting(Serve):
        """Made, but not started."""

        def start_server(self) -> None:
            pass

    model: Any = vlm.model
    name, prompts = file_name(vlm.name), Prompts(vlm)
    model.generation_config.eos_token_id = vlm.ends() or None
    if recipe is not None:
        attach(model, recipe, score=score)
    serving = Waiting(host=host, port=port, non_blocking=True)
    manager = serving._model_manager
    manager.force_model = name  # what is served if a request names no model; another one is refused
    manager.load_model_and_processor = lambda *_, **__: (model, prompts)
    manager.get_model_modality = lambda *_, **__: Modality.VLM
    known = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "fitprune"}
    manager.get_gen_models = lambda *_, **__: [known]
    _say_what_is_wrong(serving._chat_handler, "messages")
    _say_what_is_wrong(serving._completion_handler, "prompt")
    _say_what_is_wrong(serving._response_handler, "input")
    config = serving.server.config
    config.app.router.routes[:] = [one for one in config.app.router.routes if getattr(one, "path", "") not in CLOSED]
    config.app.add_exception_handler(FitPruneError, _unprocessable)
    config.app = Guard(config.app, host, lambda _: MOST)
    return serving.server


def _say_what_is_wrong(handler: Any, asks: str) -> None:
    """Makes errors of ours out of what transformers raises over the parts of a request that it takes as they come.

    Args:
        asks: The field that a request to this handler must have.
    """

    def words(what: str, name: str, called: Callable[..., Any]) -> None:
        def saying(*args: Any, **kwargs: Any) -> Any:
            with explained(what):
                return called(*args, **kwargs)

        setattr(handler, name, saying)

    validate, configure = handler._validate_request, handler._build_generation_config

    def checked(body: dict[str, Any]) -> None:
        validate(body)
        with explained("chat_template_kwargs must be an object"):
            dict(body.get("chat_template_kwargs") or {})
        if not body.get(asks):
            raise FitPruneError(f"this request asks nothing: send {asks}")

    def configured(*args: Any, **kwargs: Any) -> Any:
        made = configure(*args, **kwargs)
        made.validate()
        "".join(made.stop_strings or "")  # a text, or texts
        return made

    handler._validate_request = checked
    words("these generation settings cannot be used", "_build_generation_config", configured)
    for name in ("_normalize_input", "get_processor_inputs_from_messages"):
        if hasattr(handler, name):
            words(f"these {asks} are not what OpenAI's API takes", name, getattr(handler, name))


async def _unprocessable(_: Any, error: Exception) -> Any:
    """Status 422 and the one line."""
    from fastapi.responses import JSONResponse

    return JSONResponse({"detail": str(error)}, 422)


class Prompts:
    """What the server takes for the model's processor: conversations become model inputs as `VLM` makes them."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self.tokenizer = vlm.tokenizer

    def apply_chat_template(self, messages: Messages, **_: Any) -> Any:
        """Model inputs of a conversation, [1, …].

        Raises:
            FitPruneError: as `conversation`, and for a prompt that is too long.
        """
        from transformers import BatchFeature

        turns, images = conversation(messages)
        return BatchFeature(self.vlm.encode([(build_prompt(self.vlm.template, turns), images)]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def conversation(messages: Messages) -> tuple[list[tuple[str, str | None]], list[Image.Image]]:
    """(user, assistant) turns with an `<image>` line per picture before each user text, and the pictures in order.

    Args:
        messages: As the server hands them on: `role`, and `content`, parts of type "text" and "image" (with `url`).
    Raises:
        FitPruneError: another role or order than user, assistant, …, user; a part or picture that cannot be taken, or more
            than `PICTURES`.
    """
    turns: list[tuple[str, str | None]] = []
    pictures: list[Image.Image] = []
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise FitPruneError("messages must be user, assistant, …, user in turn; the system text is the template's")
        unknown = {part["type"] for part in message["content"]} - {"text", "image"}
        if unknown:
            raise FitPruneError(f"only text and pictures can be asked about, not {', '.join(sorted(unknown))}")
        text = "\n".join(str(part["text"]) for part in message["content"] if part["type"] == "text")
        urls = [str(part["url"]) for part in message["content"] if part["type"] == "image"]
        if len(pictures) + len(urls) > PICTURES:
            raise FitPruneError(f"at most {PICTURES} pictures are taken in a request, those of earlier turns included")
        images = [picture(url) for url in urls]
        pictures += images
        if number % 2:
            turns[-1] = turns[-1][0], text
        else:
            turns.append(("\n".join([*[IMAGE] * len(images), text]), None))
    if len(messages) % 2 == 0:
        raise FitPruneError("the last message must be the user's")
    return turns, pictures


def picture(url: str) -> Image.Image:
    """The picture in a `data:image/…;base64,…` URL.

    Raises:
        FitPruneError: for any other URL, for what is no picture, and for one that is too large.
    """
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise FitPruneError("pictures must come within the request, as data:image/png;base64,… URLs")
    check_bytes(3 * (len(data) // 4 - 1))  # before it is decoded; `read_untrusted_image` counts to the byte
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:  # not base64, or not ASCII
        raise FitPruneError("this picture's base64 is damaged") from None
    return read_untrusted_image(content)
