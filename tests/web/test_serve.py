"""A pruned model behind transformers' server: the same answers as without a server, really pruned, nothing fetched."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from multimodal import Recorded
from PIL import Image
from served import served

import fitprune
from fitprune import FitPruneError, Recipe
from fitprune.cli import main
from fitprune.cli.serve import recipe_for
from fitprune.decoder.attach import attachment_of
from fitprune.decoder.deletion import DeletionPolicy
from fitprune.embedded import embedded
from fitprune.families import VLM
from fitprune.images.reading import read_image
from fitprune.questions import read_questions
from fitprune.scores import SCORES
from fitprune.web import serve
from fitprune.web.serve import Prompts, server
from fitprune.web.turns import conversation

QUESTIONS = [question for question in read_questions(embedded().questions) if question.category == "number"][:3]
RECIPE = Recipe.step(layer=1, keep=0.5)


def data_url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def asked(text: str, *images: Image.Image) -> dict[str, Any]:
    """A user message as clients send it, text first."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


# Recipes


def test_recipes_are_published_given_or_fitted_for_embedded_models(tmp_path: Any) -> None:
    llava = fitprune.load("embedded", device="cpu")
    assert recipe_for(llava, 0).recipe is None
    RECIPE.save(tmp_path / "one.recipe.json")
    named = recipe_for(llava, 0.6, str(tmp_path / "one.recipe.json"))
    assert named.recipe == RECIPE
    assert named.recipe.ranked_by() == "fitprune"  # a file that names no score is the paper's
    llava.name = "liuhaotian/llava-v1.5-13b"
    with pytest.raises(FitPruneError, match="--recipe"):
        recipe_for(llava, 0.6)


def test_the_recommended_score_ranks_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    llava = fitprune.load("embedded", device="cpu")
    monkeypatch.setattr(Recipe, "published", lambda name, ratio: RECIPE)
    found = recipe_for(llava, 0.5)
    assert found.recipe is not None
    assert (found.recipe, found.recipe.ranked_by()) == (RECIPE, "spread")
    assert found.source.endswith(", ranked by spread")
    asked = recipe_for(llava, 0.5, score="fitprune")
    assert asked.recipe is not None
    assert (asked.recipe.score, "ranked" in asked.source) == (None, False)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import import_utils

    if not hasattr(import_utils, "is_serve_available"):
        pytest.skip("transformers before 5.8 has no such server, which is what the command says there")
    monkeypatch.setattr(import_utils, "is_serve_available", lambda: False)
    assert main(["serve"]) == 2
    assert "fitprune[serve]" in capsys.readouterr().err


# Serving


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[VLM, str]]:
    """The embedded model on loopback, and where."""
    llava = fitprune.load("embedded", device="cpu")
    made = server(llava, RECIPE, port=0)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    for _ in range(200):
        if made.started:
            break
        time.sleep(0.05)
    yield llava, f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    made.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def post(url: str, **body: Any) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@served
def test_answers_are_those_of_the_pruned_model(running: tuple[VLM, str]) -> None:
    llava, at = running
    for question in QUESTIONS:
        image = read_image(embedded().images / str(question.image))
        answered = json.loads(post(f"{at}/v1/chat/completions", model="embedded", messages=[asked(question.text, image)]))
        attached = attachment_of(llava.model)
        assert isinstance(attached, fitprune.PrunedModel)
        assert [len(alive) for alive in attached.trace.visual[-1]] == [llava.tokens_for(image) // 2]
        assert answered["choices"][0]["message"]["content"] == llava.ask(question.text, image)
        assert answered["usage"]["prompt_tokens"] == len(llava.token_ids(llava.prompt(question.text), [image]))


@served
def test_streams_and_text_alone(running: tuple[VLM, str]) -> None:
    llava, at = running
    image = read_image(embedded().images / str(QUESTIONS[0].image))
    lines = post(f"{at}/v1/chat/completions", stream=True, messages=[asked(QUESTIONS[0].text, image)]).split("\n\n")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines if line]
    assert "".join(delta.get("content", "") for delta in deltas) == llava.ask(QUESTIONS[0].text, image)
    text = json.loads(post(f"{at}/v1/chat/completions", messages=[{"role": "user", "content": "Hello?"}], max_tokens=4))
    assert text["choices"][0]["message"]["content"] == llava.ask("Hello?", max_new_tokens=4)


@served
def test_the_pruned_model_stays_and_is_the_only_one(running: tuple[VLM, str]) -> None:
    _, at = running
    post(f"{at}/reset")
    post(f"{at}/load_model", model="embedded")
    with urllib.request.urlopen(f"{at}/v1/models", timeout=60) as answer:
        assert [model["id"] for model in json.loads(answer.read())["data"]] == ["embedded"]
    test_answers_are_those_of_the_pruned_model(running)
    with pytest.raises(urllib.error.HTTPError, match="422"):
        post(f"{at}/v1/chat/completions", model="another", messages=[asked("Hello?")])


@served
def test_what_cannot_be_asked_says_why(running: tuple[VLM, str]) -> None:
    _, at = running
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{at}/v1/chat/completions", messages=[{"role": "system", "content": "Be brief."}])
    assert refused.value.code == 422
    assert "template" in json.loads(refused.value.read())["detail"]


HELLO = [{"role": "user", "content": "Hello?"}]


def refused(url: str, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    """Status and answer of a request that is refused."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    return caught.value.code, caught.value.read().decode()


@served
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "send messages"),
        ({"messages": "Hello?"}, "list of objects"),
        ({"messages": [7]}, "list of objects"),
        ({"messages": [{"content": "Hello?"}]}, "in turn"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must have"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 7}]}]}, "must have"),
        ({"messages": [{"role": "user", "content": 7}]}, "content of a message"),
        ({"messages": HELLO, "max_tokens": -1}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": "many"}, "many"),
        ({"messages": HELLO, "generation_config": "{"}, "generation settings"),
        ({"messages": HELLO, "generation_config": '{"num_beams": 0}'}, "generation settings"),
        ({"messages": HELLO, "stop": 5}, "stop must be"),
        ({"messages": HELLO, "stop": ["x", 5]}, "stop must be"),
        ({"messages": HELLO, "logit_bias": {"100000": 5}}, "logit_bias names token 100000"),
        ({"messages": HELLO, "chat_template_kwargs": 5}, "chat_template_kwargs"),
    ],
)
def test_bad_requests_are_answered_in_words(running: tuple[VLM, str], body: dict[str, Any], said: str) -> None:
    status, answer = refused(f"{running[1]}/v1/chat/completions", body)
    assert status == 422
    assert said in json.loads(answer)["detail"]
    assert "\n" not in json.loads(answer)["detail"]


@served
@pytest.mark.parametrize("settings", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}])
def test_what_pruning_cannot_do_is_answered_in_words(running: tuple[VLM, str], settings: dict[str, Any]) -> None:
    _, at = running
    image = read_image(embedded().images / str(QUESTIONS[0].image))
    asking = {"messages": [asked(QUESTIONS[0].text, image)], "generation_config": json.dumps(settings | {"max_new_tokens": 8})}
    assert refused(f"{at}/v1/chat/completions", asking)[0] == 422
    test_answers_are_those_of_the_pruned_model(running)  # and it goes on


@served
def test_other_routes_answer_in_words(running: tuple[VLM, str]) -> None:
    _, at = running
    assert "send input" in refused(f"{at}/v1/responses", {})[1]
    assert refused(f"{at}/v1/responses", {"input": [7]})[0] == 422
    assert "send prompt" in refused(f"{at}/v1/completions", {})[1]
    for route in ("audio/transcriptions", "systemone"):  # transformers has them; they decode or open what a client names
        assert refused(f"{at}/v1/{route}", {})[0] == 404
    assert refused(f"{at}/load_model", {"model": "another"})[0] == 422


@served
def test_the_server_is_guarded(running: tuple[VLM, str]) -> None:
    _, at = running
    chat = f"{at}/v1/chat/completions"
    assert refused(chat, {"messages": HELLO}, Host="evil.example")[0] == 400
    assert refused(chat, {"messages": HELLO}, Origin="http://evil.example")[0] == 403


@served
def test_score_and_ends_are_those_asked_for() -> None:
    llava = fitprune.load("embedded", device="cpu")
    ends, config = llava.ends(), llava.model.generation_config
    config.eos_token_id = None  # as with checkpoints whose template alone knows how an answer ends
    server(llava, RECIPE, score="last")
    attached = attachment_of(llava.model)
    assert isinstance(attached.policy, DeletionPolicy)
    assert attached.policy.score is SCORES["last"]
    assert config.eos_token_id == ends


def test_who_can_reach_it_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FitPruneError("not now")

    monkeypatch.setattr(serve, "needed", lambda: None)
    monkeypatch.setattr(fitprune.families, "load", missing)
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        assert main(["serve", "--host", host, "--port", "0"]) == 2
        assert ("not loopback" in capsys.readouterr().out) is warned


@served
@pytest.mark.parametrize("miniature", ["llava15", "llava_next", "llava_hr"])
def test_checkpoints_of_the_original_layout_get_their_own_prompt(miniature: str) -> None:
    recorded = Recorded(miniature)
    llava = fitprune.load(str(recorded.checkpoint), device="cpu", template="vicuna_v1")
    image = recorded.pictures(next(name for name, case in recorded.cases.items() if len(case["images"]) == 1))[0]
    parts = [{"type": "image_url", "image_url": data_url(image)}, {"type": "text", "text": "Why?"}]
    made = Prompts(llava).apply_chat_template([{"asked": conversation([{"role": "user", "content": parts}])}], add_generation_prompt=True)
    expected = llava.encode([(llava.prompt("Why?"), [image])])
    assert made.keys() == expected.keys()
    assert all(bool((made[key] == expected[key]).all()) for key in expected)
