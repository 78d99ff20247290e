"""Fields of a request: what is followed, what is as good as nothing, what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from fitprune import FitPruneError
from fitprune.web.fields import checked

ASKED = {"messages": ["…"]}


def kept(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in checked({**ASKED, **fields}, "messages").items() if name != "messages"}


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        ("temperature", 2, 2.0),
        ("temperature", 1e-9, 0.0),
        ("top_p", 0, 0.0),
        ("frequency_penalty", -2, -2.0),
        ("presence_penalty", 2, 2.0),
        ("max_tokens", 16.0, 16),
        ("seed", -5, -5),
        ("stop", "\n", ["\n"]),
        ("stop", ["a", "日本"], ["a", "日本"]),
        ("logit_bias", {"3": 5}, {3: 5.0}),
        ("stream", True, True),
    ],
)
def test_what_is_followed(name: str, value: Any, used: Any) -> None:
    found = kept(**{name: value})[name]
    assert (found, type(found)) == (used, type(used))


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("stop", "logit_bias", "tools", "n", "response_format", "max_tokens", "temperature")),  # null
        {"stop": [], "tools": [], "logit_bias": {}, "n": 1, "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": False},
        {"user": "me", "store": True, "metadata": {"a": 1}, "stream_options": {"include_usage": True}, "parallel_tool_calls": True},
    ],
)
def test_what_is_as_good_as_nothing(fields: dict[str, Any]) -> None:
    assert kept(**fields) == {}


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "temperature": (-0.1, 2.1, float("nan"), float("inf"), "hot", True, 10**400, []),
        "top_p": (-1, 1.5, "1"),
        "frequency_penalty": (-2.5, 3, float("-inf"), {}),
        "presence_penalty": (2.5,),
        "max_tokens": (0, -1, 1.5, 10**20, "16", True),
        "seed": (2**63, -(2**64), 0.5, "x"),
        "n": (0, 2, True),
        "stop": ("", [""], [5], {"a": 1}, ["\ud83d"], ["x"] * 17),
        "logit_bias": ([1], {"a": 1}, {"-3": 1}, {"3": 101}, {"3": None}, {"3": float("nan")}, {"3": 1, "03": 2}),
        "response_format": ({"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "text", []),
        "tools": ([{"type": "function", "function": {"name": "f"}}], "f"),
        "tool_choice": ("required", {"type": "function"}),
        "logprobs": (True, 5),
        "generation_config": ("{", "[]", {}, "[" * 5000),
        "stream": ("yes", 1),
        "chat_template_kwargs": ({"enable_thinking": False}, 5),
        "audio": ({},),
        "wish": (1,),
    }.items(),
)
def test_what_cannot_be_followed_is_refused_by_name(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(FitPruneError, match=name) as refused:
            kept(**{name: value})
        assert len(str(refused.value)) < 250


def test_a_request_asks_something() -> None:
    for field in ("messages", "prompt", "input"):
        for nothing in (None, "", [], {}):
            with pytest.raises(FitPruneError, match=f"send {field}"):
                checked({field: nothing}, field)
    with pytest.raises(FitPruneError, match="prompt must be a text"):
        checked({"prompt": ["a", "b"]}, "prompt")
