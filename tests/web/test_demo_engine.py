"""The demo without a web page: answers and figures against the parts they are made of, its server's checks, the command."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_guard import called, echo

import fitprune
from fitprune.calibrate import Calibration, observe_questions
from fitprune.cli import demo, main
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.recipe import PAPER, RECOMMENDED, Recipe
from fitprune.studies.methods import INSIDE, recipes
from fitprune.web.demo import engine as engine_module
from fitprune.web.demo import figures, page, server
from fitprune.web.demo.engine import MAX_QUESTION, Comparison, Engine, Reply
from fitprune.web.demo.uploads import Uploads
from fitprune.web.ports import is_loopback, listen
from fitprune.web.untrusted import MAX_BYTES

NUMBER, WORD = "What number is written?", "What word is written?"


def example(name: str) -> Image.Image:
    return Image.open(embedded().images / f"5eed00000000000{name}.jpg").convert("RGB")


@pytest.fixture(scope="module")
def engine() -> Engine:
    vlm = fitprune.load("embedded", device="cpu")
    calibration = Calibration(embedded().calibration, embedded().calibration_images, samples=8)
    return Engine(vlm, observe_questions(vlm, calibration, progress=False), max_new_tokens=8)


@pytest.fixture(autouse=True)
def _timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No repeated prefills but where they are what is tested."""
    monkeypatch.setattr(engine_module, "TIMING_SECONDS", 0.0)


# ---- engine


@pytest.mark.parametrize("method", ["fitprune", "vtw"])
def test_a_comparison_is_what_its_parts_say(engine: Engine, method: str) -> None:
    vlm, image = engine.vlm, example("8")
    recipe, score = recipes(engine.stats, [method], [0.5])[method, 0.5]
    made = engine.compare(image, f"  {WORD}\n", 0.5, method)
    assert made.dense.text == vlm.ask(WORD, image, max_new_tokens=8) == "vvu"
    with fitprune.prune(vlm.model, recipe, score=score):
        assert made.pruned.text == vlm.ask(WORD, image, max_new_tokens=8)
    tokens, layers = vlm.tokens_for(image), vlm.cost.layers
    assert made.dense.alive == [tokens] * (layers + 1)
    assert made.pruned.alive == [tokens, *recipe.alive(tokens, layers)]
    assert len(made.frames) == layers + 1
    assert made.frames[0] != made.frames[-1]
    assert made.visual_reduction == vlm.cost.visual_reduction_of_alive(recipe.alive(tokens, layers), tokens)
    assert 0.5 <= made.visual_reduction < 0.65
    text = len(vlm.token_ids(vlm.prompt(WORD), [image])) - tokens
    for answer, gone in ((made.dense, [0] * layers), (made.pruned, recipe.deletions(tokens, layers))):
        assert answer.kv_bytes == sum(vlm.cost.kv_bytes(gone, tokens, text, 4))  # float32
        assert answer.ttft > 0
        assert answer.tokens == len(vlm.tokenizer(answer.text, add_special_tokens=False).input_ids) + 1


def test_the_recommended_method_unless_another_is_chosen(engine: Engine) -> None:
    """The fitted schedule, ranked by spread: as many tokens as by the paper's, which can still be chosen, and others."""
    made = engine.compare(example("8"), WORD, 0.6)
    assert made.pruned == replace(engine.compare(example("8"), WORD, 0.6, "spread").pruned, ttft=made.pruned.ttft)
    paper = engine.compare(example("8"), WORD, 0.6, "fitprune")
    assert made.pruned.alive == paper.pruned.alive
    assert made.frames[-1] != paper.frames[-1]
    (recipe, score), (schedule, papers) = engine.recipe("spread", 0.6, 144), engine.recipe("fitprune", 0.6, 144)
    assert recipe == schedule
    assert (score, papers) == ("spread", "fitprune")


def test_nothing_to_save_is_the_dense_model(engine: Engine) -> None:
    made = engine.compare(example("0"), NUMBER, 0, "fitprune")
    assert replace(made.pruned, ttft=0) == replace(made.dense, ttft=0)
    assert made.visual_reduction == 0


def test_short_times_are_medians_of_turns_after_the_replies(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "TIMING_SECONDS", 60.0)
    monkeypatch.setattr(engine_module, "TIMED_PREFILLS", 3)
    answered, asked = Engine._reply, list[bool]()

    def watched(self: Engine, inputs: Any, recipe: Any, score: str, max_new_tokens: int) -> Any:
        answer, trace = answered(self, inputs, recipe, score, max_new_tokens)
        asked.append(recipe is not None)
        return replace(answer, ttft=[9, 9, 1, 10, 30, 4, 2, 20][len(asked) - 1]), trace

    monkeypatch.setattr(Engine, "_reply", watched)
    made = engine.compare(example("0"), NUMBER, 0.5, "fitprune")
    assert asked == [False, True, False, True, True, False, False, True]
    assert (made.dense.ttft, made.pruned.ttft) == (2, 20)
    assert (made.dense.text, made.dense.tokens) == ("57", 3)  # of the whole answers


def test_recipes_are_made_once_and_are_those_of_methods(engine: Engine) -> None:
    for name in INSIDE:
        made = engine.recipe(name, 0.6, 144)
        assert made == recipes(engine.stats, [name], [0.6])[name, 0.6]
        assert engine.recipe(name, 0.6 + 1e-9, 144)[0] is made[0]


def test_no_spelling_of_a_method_is_fitted_anew(engine: Engine) -> None:
    before = dict(engine._recipes)
    for name in (" fitprune", "fitprune samples=2", "fitprune criterion=cross"):
        with pytest.raises(FitPruneError, match="use one of fitprune"):
            engine.recipe(name, 0.6, 144)
    assert engine._recipes == before


def test_without_statistics_published_recipes_and_solved_schedules(engine: Engine) -> None:
    published = Engine(replace(engine.vlm, name="liuhaotian/llava-v1.5-7b"))
    assert published.recipe("cross", 0.6, 144) == (Recipe.published("llava-v1.5-7b", 0.6), "cross")
    assert published.recipe("spread", 0.6, 144) == (Recipe.published("llava-v1.5-7b", 0.6), "spread")
    recipe, score = published.recipe("fastv", 0.6, 100)
    assert (recipe.visual_tokens, score) == (100, "last")
    with pytest.raises(FitPruneError, match=r"no published recipe for 0\.65"):
        published.recipe("fitprune", 0.65, 144)


def test_a_published_recipe_answers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_deletions([40, 0, 20, 0, 0, 10, 0, 0, 0], visual_tokens=144)
    monkeypatch.setattr(Recipe, "published", lambda name, ratio: recipe)
    made = Engine(engine.vlm, max_new_tokens=8).compare(example("0"), NUMBER, 0.4, "fitprune")
    assert made.pruned.alive == [144, *recipe.alive(144, 9)]


def test_two_users_at_once_get_what_they_get_alone(engine: Engine) -> None:
    asked = [("8", WORD, 0.5, "fitprune"), ("0", NUMBER, 0.3, "fastv"), ("8", NUMBER, 0.7, "random"), ("0", WORD, 0.5, "last")]
    alone = [engine.compare(example(name), *rest) for name, *rest in asked]
    together: dict[int, Comparison] = {}

    def ask(at: int) -> None:
        name, *rest = asked[at]
        together[at] = engine.compare(example(name), *rest)

    threads = [threading.Thread(target=ask, args=[at]) for at in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, one in enumerate(alone):
        for ours, theirs in ((one.dense, together[at].dense), (one.pruned, together[at].pruned)):
            assert replace(ours, ttft=0) == replace(theirs, ttft=0)
        assert one.frames[-1] == together[at].frames[-1]
    assert len({one.dense.text for one in alone}) == 4


@pytest.mark.parametrize(
    ("question", "ratio", "method", "said"),
    [
        ("", 0.5, "fitprune", "no question"),
        (" \n", 0.5, "fitprune", "no question"),
        (None, 0.5, "fitprune", "no question"),
        ("x" * (MAX_QUESTION + 1), 0.5, "fitprune", "characters"),
        ("<image>", 0.5, "fitprune", "stands for the image"),
        ("Why?", 0.95, "fitprune", "from 0 to 90%"),
        ("Why?", -0.1, "fitprune", "from 0 to 90%"),
        ("Why?", math.nan, "fitprune", "from 0 to 90%"),
        ("Why?", 10**400, "fitprune", "from 0 to 90%"),
        ("Why?", 0.5, "magic", "unknown method"),
        ("Why?", 0.5, "fitprune samples=2", "unknown method"),
        ("Why?", 0.5, " fitprune", "unknown method"),
        ("Why?", 0.9, "pyramiddrop", "pyramiddrop: "),
    ],
)
def test_what_cannot_be_answered_is_said(engine: Engine, question: Any, ratio: float, method: str, said: str) -> None:
    with pytest.raises(FitPruneError, match=re.escape(said)) as caught:
        engine.compare(example("0"), question, ratio, method)
    assert "\n" not in str(caught.value)
    assert engine.compare(example("0"), NUMBER, 0, "fitprune").dense.text == "57"  # nothing is locked or attached


def test_stopping_ends_a_reply_at_the_next_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Engine(engine.vlm, engine.stats, max_new_tokens=8)
    forwards, stopped = list[bool](), threading.Thread(target=other.stop)
    called = engine_module._Watch.__call__

    def watched(self: Any, *args: Any) -> None:
        called(self, *args)
        forwards.append(True)
        stopped.start()
        other._stopping.wait(10)

    monkeypatch.setattr(engine_module._Watch, "__call__", watched)
    with pytest.raises(FitPruneError, match="being stopped"):
        other.compare(example("0"), NUMBER, 0.5, "fitprune")
    stopped.join(10)
    assert not stopped.is_alive()
    assert len(forwards) == 1
    with pytest.raises(FitPruneError, match="being stopped"):
        other.compare(example("0"), NUMBER, 0.5, "fitprune")
    assert len(forwards) == 1


# ---- figures and words


def test_figures_say_what_was_measured() -> None:
    frames = [Image.new("RGB", (40, 30), (10 * at, 0, 0)) for at in range(3)]
    dense = Reply("yes", 2, 0.5, [100, 100, 100], 3 * 2**20)
    made = Comparison(dense, Reply("no", 3, 0.025, [100, 40, 20], 700 * 2**10), 0.625, frames)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in figures.table(made).split("<tr>")[2:]]
    assert cells == [
        ["Time to first token", "500 ms", "25 ms", "20.00× faster"],
        ["Visual tokens at the end", "100", "20", "80% less"],
        ["Visual compute saved", "0%", "62.5%", ""],
        ["KV memory", "3.00 MiB", "700 KiB", "77% less"],
        ["Tokens of the answer", "2", "3", ""],
    ]
    shown = figures.frames(made, 1).split("<figure")[1:]
    assert [" hidden" in part for part in shown] == [True, False, True]
    assert ["20 of 100" in part for part in shown] == [False, False, True]
    for part, frame in zip(shown, frames, strict=True):
        content = base64.b64decode(re.search(r"base64,([^']*)", part)[1])
        assert Image.open(io.BytesIO(content)).size == frame.size
    assert " hidden" not in figures.frames(made, 99).split("<figure")[-1]  # a slider further than there are layers


def test_times_in_words() -> None:
    assert figures.times(1, 2) == "2.00× slower"
    assert figures.times(0, 2) == ""
    assert (figures.seconds(0.04), figures.seconds(2.34), figures.size(3 * 2**30)) == ("40 ms", "2.3 s", "3.00 GiB")


@pytest.mark.parametrize("sent", [10**400, -(10**400), math.inf, math.nan, True, "60", None])
def test_what_a_slider_does_not_send_is_said(sent: Any) -> None:
    with pytest.raises(FitPruneError, match="The ratio must be a number"):
        page._number(sent, "ratio")


def test_every_method_is_explained() -> None:
    assert list(page.EXPLAINED) == list(INSIDE)
    assert page.EXPLAINED[RECOMMENDED].startswith("recommended")
    assert page.EXPLAINED[PAPER].startswith("the paper's")


def test_the_embedded_model_says_what_it_is(engine: Engine) -> None:
    assert "reads nothing else" in page.about(engine)
    other = page.about(Engine(replace(engine.vlm, name="<b>mine</b>")))
    assert "reads nothing else" not in other
    assert "<b>&lt;b&gt;mine" in other


# ---- what stands before the page


@pytest.fixture
def guarded(tmp_path: Path) -> Any:
    pytest.importorskip("starlette", reason="needs Starlette: pip install 'fitprune[serve]'")
    return server.guarded(echo, Uploads(tmp_path), "127.0.0.1")


JOIN = f"{server.API}/queue/join"


def test_the_guard_lets_the_page_through_and_adds_its_policy(guarded: Any) -> None:
    status, headers, _ = called(guarded, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert not re.search(r"https?:", headers["content-security-policy"])
    assert called(guarded, "GET", "/assets/a.js")[0] == called(guarded, "HEAD", "/")[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", f"{server.API}/info"),
        ("GET", f"{server.API}/proxy=http://example.com"),
        ("POST", f"{server.API}/run/predict"),
        ("POST", f"{server.API}/component_server"),
        ("POST", "/"),
        ("DELETE", "/"),
        ("GET", "/\nconfig"),
    ],
)  # fmt: skip
def test_the_guard_knows_no_other_routes(guarded: Any, method: str, path: str) -> None:
    assert called(guarded, method, path)[0] == 404


def test_bodies_are_bounded(guarded: Any) -> None:
    upload = f"{server.API}/upload"
    assert called(guarded, "POST", upload, content_length=str(MAX_BYTES))[0] == 200
    assert called(guarded, "POST", upload, content_length=str(2 * MAX_BYTES))[0] == 413
    assert called(guarded, "POST", JOIN, content_length=str(MAX_BYTES))[0] == 413
    assert called(guarded, "POST", upload, content_length="")[0] == 411
    assert called(guarded, "POST", upload, content_length="-1")[0] == 411


def test_a_call_names_uploaded_files_only(guarded: Any, tmp_path: Path) -> None:
    def join(path: Any) -> tuple[int, bytes]:
        body = json.dumps({"data": [{"deep": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}]}).encode()
        status, _, said = called(guarded, "POST", JOIN, body)
        return status, b"" if said == body else said

    assert join(str(tmp_path / "a" / "x.png")) == (200, b"")  # and the body arrives whole
    for path in ("/etc/passwd", str(tmp_path / ".." / "x"), str(tmp_path), "http://example.com/x.png", 7, ["x"]):
        assert join(path)[0] == 400, path
    assert called(guarded, "POST", JOIN, b"not JSON")[0] == 400
    assert called(guarded, "POST", JOIN, b"[" * 60000)[0] == 400


# ---- the command


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "fitprune: error: the demo needs Gradio: pip install 'fitprune[demo]'\n"


def test_what_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(server, "gradio", lambda: None)
    with listen("127.0.0.1", 0) as taken:
        assert main(["demo", "--port", str(taken.getsockname()[1])]) == 2
    assert "give another --port" in capsys.readouterr().err
    assert main(["demo", "--host", "no.such.host.invalid", "--port", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["demo", "--model-path", "someone/unpublished", "--port", "0"]) == 2
    assert "give --calibration-file" in capsys.readouterr().err
    assert main(["demo", "--calibration-file", str(tmp_path / "none.jsonl"), "--port", "0"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    for port in ("99999", "-1", "7.5", "web"):
        with pytest.raises(SystemExit):
            main(["demo", "--port", port])
        assert "is not a port" in capsys.readouterr().err


def test_sigterm_ends_it_as_an_exception_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, demo._terminable():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_option_shares_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--share"])
    assert "unrecognized arguments: --share" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("a.b", False)],
)  # fmt: skip
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
