"""A pruned checkpoint behind `transformers serve`, an HTTP server with OpenAI's chat API.

The server is transformers' own (`pip install 'fitprune[serve]'`), with one model that has a recipe attached and with prompts made
as everywhere here: by the checkpoint's template, tokenised in pieces, so that checkpoints of the original layout and those
without a chat template are served as well. It runs one `generate` at a time. Images of earlier turns come again with every
request and are pruned again. Requests are let in by guard.py, their settings read by fields.py and followed by sampling.py, their
messages read by turns.py. Whatever is sent is answered, or refused with status 422 and a line in `detail`; once a stream runs, with an
`error` event.

Left out: continuous batching, which needs paged attention, and `--compile`, which needs a static cache: neither can be pruned. Routes of
transformers' server that are not in `ROUTES`.

    fitprune serve --reduction-ratio 0.6 --port 8000
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from ..errors import FitPruneError, explained, first_line
from ..families import VLM
from ..files import file_name
from ..prune import attach
from ..recipe import Recipe
from .fields import checked
from .guard import guard
from .sampling import CutQueue, Sampling
from .turns import conversation, of_input
from .untrusted import MAX_BYTES

# a route is closed until what it does with a request was looked at: later ones decode sound, or open what a client names
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health", "/load_model", "/reset")
MAX_REQUEST_BYTES = 3 * MAX_BYTES  # two of the largest images in base64 (4 bytes for 3), and some around them
MAX_LINE = 400  # characters of an error
UNUSABLE = "these generation settings cannot be used"
MAX_CONTEXT = 2**31 - 1  # tokens, of a model that says nothing
MAX_TOKENS = 1024  # of an answer, where neither the request nor the checkpoint says


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

    def the_one(asked: Any) -> str:
        if asked != name:
            raise FitPruneError(f"{name} is served here: ask for that model, or for none")
        return name

    model.generation_config.eos_token_id = vlm.ends() or None
    if recipe is not None:
        attach(model, recipe, score=score)
    serving = Unstarted(host=host, port=port, non_blocking=True)
    manager = serving._model_manager
    manager.force_model = name
    manager.process_model_name = the_one
    manager.load_model_and_processor = lambda *_, **__: (model, prompts)
    manager.get_model_modality = lambda *_, **__: Modality.VLM
    known = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "fitprune"}
    manager.get_gen_models = lambda *_, **__: [known]
    generating = _generation(getattr(decoder_config(vlm), "max_position_embeddings", None) or MAX_CONTEXT)
    serving._generation_state.get_manager = lambda *_, **__: generating
    for handler, required in (
        (serving._chat_handler, "messages"),
        (serving._completion_handler, "prompt"),
        (serving._response_handler, "input"),
    ):
        _check_requests(handler, required, vlm, the_one)
    config = serving.server.config
    config.app.router.routes[:] = [one for one in config.app.router.routes if getattr(one, "path", "") in ROUTES]
    _answer_errors(config.app)
    config.app = guard(config.app, host, lambda _: MAX_REQUEST_BYTES)
    return serving.server


def _check_requests(handler: Any, required: str, vlm: VLM, the_one: Any) -> None:
    """Makes a handler of transformers' server check its requests; `required` is the field that must be there."""
    handle, configure = handler.handle_request, handler._build_generation_config
    text = decoder_config(vlm)

    async def handled(body: Mapping[str, Any], request_id: str) -> Any:
        found = checked(body, required)
        the_one(found.setdefault("model", file_name(vlm.name)))
        return await handle({"stream": False, **found}, request_id)

    def configured(body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        sampling = Sampling.of(body, partial(vlm.tokenizer.decode, skip_special_tokens=True), text.vocab_size)
        ours = ("logit_bias", "frequency_penalty", "stop")  # which transformers' own handler would take for something else
        with explained(UNUSABLE):
            made = configure({name: value for name, value in body.items() if name not in ours}, *args, **kwargs)
            if "temperature" in body:
                made.do_sample = body["temperature"] > 0
            made.validate()
        made.sampling, made.custom = sampling, "generation_config" in body
        return made

    handler.handle_request, handler._build_generation_config = handled, configured
    handler._validate_request = lambda body: None  # `checked` knows the fields, and more of them
    handler.get_processor_inputs_from_messages = lambda messages, _: [{"asked": conversation(messages)}]  # for `Prompts`
    handler._normalize_input = lambda body: of_input(body["input"], body.get("instructions"))


def decoder_config(vlm: VLM) -> Any:
    """The config of a model's text decoder."""
    return vlm.model.config.get_text_config()  # type: ignore[union-attr, operator]


def _generation(context: int) -> Any:
    """transformers' way to generate, which follows a request's `Sampling` and ends where the model's `context` does."""
    from transformers.cli.serving.utils import GenerateManager, _StreamError

    def prepared(inputs: Mapping[str, Any], config: Any) -> tuple[Sampling, dict[str, Any]]:
        sampling, prompt = config.sampling, inputs["input_ids"].shape[-1]
        if prompt >= context:
            raise FitPruneError(f"the prompt takes {prompt} tokens and the model holds {context}: ask less, or about fewer images")
        if config.max_new_tokens is not None or config.max_length is None:
            config.max_new_tokens = min(config.max_new_tokens or MAX_TOKENS, context - prompt)
        return sampling, {**inputs, **sampling.arguments(prompt)}

    def passed(item: Any) -> Any:
        if isinstance(item, _StreamError):  # transformers puts its text between quotes and escapes nothing
            return _StreamError(_one_line(item.msg).replace("\\", "/").replace('"', "'"))
        return item

    class Generation(GenerateManager):
        def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **kwargs: Any) -> Any:
            sampling, given = prepared(inputs, gen_config)
            queue, streamer = super().generate_streaming(model, processor, given, gen_config, *args, **kwargs)
            return CutQueue(queue, sampling.stops, passed), streamer

        async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **kwargs: Any) -> Any:
            sampling, given = prepared(inputs, gen_config)
            with explained(UNUSABLE) if gen_config.custom else nullcontext():
                text, prompt, ids = await super().generate_non_streaming(model, processor, given, gen_config, *args, **kwargs)
            return sampling.cut(text), prompt, ids

    return Generation()


def _answer_errors(app: Any) -> None:
    """Makes a line of JSON of whatever is raised over a request; what nobody foresaw is in the server's log, too."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answered(said: object, status: int = 422, headers: Any = None) -> Any:
        return JSONResponse({"detail": _one_line(str(said))}, status, headers)

    async def refused(_: Any, error: FitPruneError) -> Any:
        return answered(error)

    async def no_object(_: Any, error: Exception) -> Any:
        return answered("send a JSON object, with Content-Type: application/json")

    async def other(_: Any, error: HTTPException) -> Any:
        return answered(error.detail, 422 if error.status_code == 400 else error.status_code, error.headers)

    async def unforeseen(_: Any, error: Exception) -> Any:
        return answered(f"this request could not be answered ({type(error).__name__}: {first_line(error)})")

    for kind, answer in ((FitPruneError, refused), (RequestValidationError, no_object), (HTTPException, other), (Exception, unforeseen)):
        app.add_exception_handler(kind, answer)


def _one_line(said: str) -> str:
    """A message as one short line, of characters that can be sent."""
    line = " ".join(said.split()).encode("utf-8", "replace").decode()
    return line if len(line) <= MAX_LINE else line[:MAX_LINE] + "..."


class Prompts:
    """What the server takes for the model's processor: conversations become model inputs as `VLM` makes them."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm, self.tokenizer = vlm, vlm.tokenizer

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> Any:
        """Model inputs [1, …] of what was read of a conversation; a FitPruneError for a prompt that is too long."""
        from transformers import BatchFeature

        turns, images = messages[0]["asked"]
        return BatchFeature(self.vlm.encode([(self.vlm.write(turns), images)]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)
