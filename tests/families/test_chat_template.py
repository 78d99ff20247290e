"""Jinja chat templates: to the character what `build_prompt` writes, and refused where that has no form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from fitprune.embedded import MODELS, model_path
from fitprune.errors import FitPruneError
from fitprune.families.chat_template import chat_template, written_as
from fitprune.families.conversation import TEMPLATES, build_prompt, names, pieces

DIALOGUE = sorted(name for name in names() if name not in ("plain", "v0_plain"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(TEXT, min_size=1, max_size=3)


def rendered(name: str, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    prompts, _ = render_jinja_template([messages], chat_template=chat_template(name), add_generation_prompt=add_generation_prompt)
    return prompts[0]


def message(role: str, texts: list[str], images: int = 0, at: int = 0, plain: bool = False) -> dict[str, Any]:
    """A message in parts, its images before the `at`-th text; or, where it can be, of one string."""
    if plain and not images and len(texts) == 1:
        return {"role": role, "content": texts[0]}
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    at = min(at, len(parts))
    return {"role": role, "content": parts[:at] + [{"type": "image", "url": "any"}] * images + parts[at:]}


@given(
    name=st.sampled_from(DIALOGUE),
    earlier=st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 2)), max_size=3),
    last=TEXTS,
    images=st.integers(0, 3),
    at=st.integers(0, 3),
    system=st.none() | TEXTS,
    plain=st.booleans(),
)
def test_messages_render_as_turns_do(
    name: str, earlier: list[Any], last: list[str], images: int, at: int, system: list[str] | None, plain: bool
) -> None:
    messages = [] if system is None else [message("system", system, plain=plain)]
    turns: list[tuple[str, str | None]] = []
    for asked, answer, shown in earlier:
        messages += [message("user", asked, shown, at, plain), message("assistant", answer, plain=plain)]
        turns.append(("<image>\n" * shown + "\n".join(asked), "\n".join(answer)))
    said = None if system is None else "\n".join(system)
    if turns:  # answered: nothing to go on from
        assert rendered(name, messages, add_generation_prompt=False) == build_prompt(name, turns, said)
    messages.append(message("user", last, images, at, plain))
    turns.append(("<image>\n" * images + "\n".join(last), None))
    whole = build_prompt(name, turns, said)
    assert rendered(name, messages) == whole
    assert rendered(name, messages, add_generation_prompt=False) + pieces(name).cue == whole


@pytest.mark.parametrize("name", DIALOGUE)
def test_a_system_message_stands_where_the_templates_own_stands(name: str) -> None:
    own = TEMPLATES.get(name) and TEMPLATES[name].system
    whole = build_prompt(name, [("Why?", None)], "Be short.")
    assert "Be short." in whole
    if own:
        assert whole.replace("Be short.", own) == build_prompt(name, [("Why?", None)])
        assert own not in whole


USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, USER], "in turn"),
        ([ANSWER], "in turn"),
        ([USER, ANSWER, {"role": "system", "content": "Be short."}, USER], "in turn"),
        ([{"role": "tool", "content": "5"}, USER], "in turn"),
        ([USER, ANSWER], "last message must be the user's"),
        ([{"role": "system", "content": "Be short."}], "last message must be the user's"),
        ([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "not video"),
        ([{"role": "system", "content": [{"type": "image", "url": "x"}]}, USER], "only users show images"),
    ],
)
def test_what_was_not_trained_is_refused(messages: list[dict[str, Any]], words: str) -> None:
    for name in ("vicuna_v1", "mistral_instruct"):
        with pytest.raises(TemplateError, match=words):
            rendered(name, messages)


def test_names_without_a_template() -> None:
    with pytest.raises(FitPruneError, match="not for dialogue"):
        chat_template("plain")
    with pytest.raises(FitPruneError, match="vicuna_v2"):
        chat_template("vicuna_v2")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "embedded-qwen"])  # which has one of its own
def test_the_models_that_ship_have_it(name: str) -> None:
    assert (model_path(name) / "chat_template.jinja").read_text(encoding="utf-8") == chat_template("vicuna_v1")


def tokenizer(template: str | None) -> Any:
    """One, as far as `written_as` looks."""
    return SimpleNamespace(chat_template=template)


@pytest.mark.parametrize("name", DIALOGUE)
def test_a_template_says_which_it_is(name: str) -> None:
    assert written_as(tokenizer(chat_template(name))) == name


@pytest.mark.parametrize("text", [None, "", "USER: {{ messages[0]['content'] }}", "{#- other of LLaVA, by fitprune -#}"])
def test_other_templates_are_of_no_name(text: str | None) -> None:
    assert written_as(tokenizer(text)) is None
    assert written_as(object()) is None
