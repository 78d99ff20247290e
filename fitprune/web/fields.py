"""Which fields of a request are followed, field by field: a table, read before anything runs.

A field that changes what the answer should be is followed or refused in a line that names it and says what it may be; the answer to
a request for three choices, for JSON or for a tool's call would otherwise be a plain one, and nobody would know. A field that changes
nothing of the answer (`user`, `store`) is let through. `null`, and what says no more than the default (`"stop": []`, `"n": 1`), is as
good as nothing: many clients send all fields always.

    python -c "from fitprune.web.fields import *; print(checked({'messages': [], 'n': None, 'stop': [], 'temperature': 0}, 'messages'))"
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import FitPruneError
from .turns import check_text

Rule = Callable[[str, Any], Any]  # a field's name and value → the value to use, None for the default; a FitPruneError if neither

GREEDY_BELOW = 1e-5  # temperatures that differ from 0 in nothing but overflows
MAX_STOPS, MAX_BIASES = 16, 1024


def _refusal(name: str, value: Any, wanted: str) -> FitPruneError:
    shown = repr(value)
    return FitPruneError(f"{name} must be {wanted}, not {shown if len(shown) <= 60 else shown[:60] + '…'}")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def number(least: float, most: float) -> Rule:
    """A number in a range, ends included."""

    def rule(name: str, value: Any) -> float:
        if not _is_number(value) or not least <= value <= most:
            raise _refusal(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    return rule


def whole(least: int, most: int, wanted: str) -> Rule:
    """A whole number in a range, ends included; 16.0 is one."""

    def rule(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _refusal(name, value, wanted)
        return value

    return rule


def only(*values: Any, why: str) -> Rule:
    """Nothing but these values, which all say what is done anyway."""

    def rule(name: str, value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            raise FitPruneError(f"{name} cannot be followed: {why}")

    return rule


def ignored(name: str, value: Any) -> None:
    """What changes nothing of an answer."""


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _refusal(name, value, "true or false")
    return value


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise _refusal(name, value, "a text")
    check_text(value, name)
    return value


def anything(name: str, value: Any) -> Any:
    """What is read elsewhere."""
    return value


def stops(name: str, value: Any) -> list[str] | None:
    """A text that ends the answer, or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found) or len(found) > MAX_STOPS:
        raise _refusal(name, value, f"a text or at most {MAX_STOPS} texts, none of them empty")
    for one in found:
        text(name, one)
    return found or None


def biases(name: str, value: Any) -> dict[int, float] | None:
    """What is added to the logits of some tokens, by their ids."""
    try:
        found = {int(token): float(bias) for token, bias in value.items() if _is_number(bias) and -100 <= bias <= 100}
    except (AttributeError, ValueError):
        found = {-1: 0.0}
    if any(token < 0 for token in found) or len(found) != len(value) or len(found) > MAX_BIASES:
        raise _refusal(name, value, f'an object such as {{"42": -5}}, at most {MAX_BIASES} ids of tokens with numbers from -100 to 100')
    return found or None


def plain_format(name: str, value: Any) -> None:
    """`response_format`, and `text` of the responses API."""
    if isinstance(value, dict) and name == "text":
        value = value.get("format") or {"type": "text"}
    if not (isinstance(value, dict) and value.get("type") == "text"):
        raise FitPruneError(f"{name} cannot be followed: answers are plain text")


def config(name: str, value: Any) -> str:
    """`generation_config`, transformers' settings as JSON in a text."""
    try:
        known = isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise _refusal(name, value, "a text that holds a JSON object of transformers' generation settings")
    return str(value)


_tokens = whole(1, 2**31 - 1, "a whole number, 1 or more")
_no_tools = only([], {}, why="this model calls no tools")
_no_logprobs = only(False, 0, why="probabilities are not given")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("model", "messages", "prompt", "input", "instructions"), anything),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _tokens),
    "seed": whole(-(2**63), 2**63 - 1, "a whole number of 64 bits"),
    "stop": stops,
    "logit_bias": biases,
    "generation_config": config,
    "stream": flag,
    "suffix": text,
    **dict.fromkeys(("n", "best_of"), only(1, why="one answer is given: send 1")),
    **dict.fromkeys(("response_format", "text"), plain_format),
    **dict.fromkeys(("tools", "functions"), _no_tools),
    **dict.fromkeys(("tool_choice", "function_call"), only("none", "auto", why="this model calls no tools")),
    **dict.fromkeys(("logprobs", "top_logprobs"), _no_logprobs),
    **dict.fromkeys(("echo", "background"), only(False, why="send false")),
    "chat_template_kwargs": only({}, why="the template is the checkpoint's"),
    "include": only([], why="nothing is added to an answer"),
    "modalities": only(["text"], [], why="answers are text"),
    "audio": only(why="answers are text"),
    "web_search_options": only(why="nothing is searched for"),
    "previous_response_id": only(why="answers are not kept here, send the earlier turns along"),
    **dict.fromkeys(
        (
            *("metadata", "parallel_tool_calls", "prediction", "reasoning_effort", "reasoning", "service_tier", "store", "stream_options"),
            *("user", "max_tool_calls", "truncation", "safety_identifier", "prompt_cache_key", "verbosity", "prompt_cache_retention"),
        ),
        ignored,
    ),
}


def checked(body: Mapping[str, Any], required: str) -> dict[str, Any]:
    """The fields of a request that say something, as they are used.

    Args:
        required: The field that holds the question: messages, prompt or input.
    Raises:
        FitPruneError: a field that is not known, that cannot be followed or is out of its range; no question.
    """
    found = {}
    for name, value in body.items():
        if value is None:
            continue
        if name not in RULES:
            raise FitPruneError(f"{name[:60]!a} is no field that is known here: leave it out")
        used = RULES[name](name, value)
        if used is not None:
            found[name] = used
    if not found.get(required):
        raise FitPruneError(f"this request asks nothing: send {required}")
    if required == "prompt":
        text("prompt", found["prompt"])
    if found.get("temperature", 1) < GREEDY_BELOW:
        found["temperature"] = 0.0
    return found
