"""lmms-eval's model `fitprune`: answers, likelihoods and scores as our own evaluation has them.

The adapter runs against a stand-in of the little of lmms-eval that it imports, and against the package itself where that
is installed; the whole command runs only there. Answers are compared with `evaluation.answer`, likelihoods with
transformers' own loss, the score with ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import together

import fitprune
from fitprune.calibrate import observe_questions
from fitprune.decoder.attach import attachment_of
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answer import answer
from fitprune.evaluation.benchmarks.textvqa import read_annotations, soft_accuracy
from fitprune.families import VLM
from fitprune.lmms import TASKS, arguments, manifest
from fitprune.lmms.arguments import Arguments
from fitprune.lmms.conversation import conversation, user_message
from fitprune.lmms.settings import MAX_NEW_TOKENS, Settings, read_settings
from fitprune.questions import Calibration, Question, open_image, read_questions
from fitprune.resolve import Choice

LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
ROOT = Path(__file__).parents[2]
INSTALLED = importlib.util.find_spec("lmms_eval") is not None
GREEDY = {"until": ["ASSISTANT:"], "max_new_tokens": 16, "temperature": 0, "do_sample": False}
QUESTIONS = read_questions(embedded().questions)[:9]
TEXTS = [{"type": "text", "text": "Why?"}]


def stand_in() -> dict[str, ModuleType]:
    """The modules of lmms-eval that the adapter imports, with what it uses of them."""

    class lmms:
        def __init__(self) -> None:
            self._rank, self._world_size, self.task_dict = 0, 1, {}  # type: ignore[var-annotated]

        def clean(self) -> None:
            pass

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None

    @dataclass
    class GenerationResult:
        text: Any

    names = (
        "lmms_eval",
        "lmms_eval.api",
        "lmms_eval.api.instance",
        "lmms_eval.api.model",
        "lmms_eval.models",
        "lmms_eval.models.registry_v2",
    )
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.instance"].GenerationResult = GenerationResult  # type: ignore[attr-defined]
    modules["lmms_eval.api.model"].lmms = lmms  # type: ignore[attr-defined]
    modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest  # type: ignore[attr-defined]
    return modules


@pytest.fixture(params=["stand-in", pytest.param("installed", marks=pytest.mark.skipif(not INSTALLED, reason="no lmms_eval here"))])
def adapter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fitprune.lmms.model on top of lmms-eval, theirs or the stand-in."""
    if request.param == "stand-in":
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "fitprune.lmms.model", raising=False)
    yield importlib.import_module("fitprune.lmms.model")
    sys.modules.pop("fitprune.lmms.model", None)


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def recipe(small: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe fitted for 60% on a few samples."""
    path = tmp_path_factory.mktemp("recipe") / "r60.recipe.json"
    calibration = Calibration(embedded().calibration, embedded().calibration_images, samples=8)
    fitprune.fit(observe_questions(small, calibration, progress=False), reduction_ratio=0.6).save(path)
    return path


def model(kind: Any, questions: list[Question], **given: Any) -> Any:
    """A model of theirs, and the questions as the only task."""
    made = kind(**({"pretrained": "embedded", "device": "cpu"} | given))
    made.task_dict["task"] = {"test": questions}
    return made


def shown(question: Question) -> list[Image.Image]:
    return [open_image(question, embedded().images)] if question.image else []


def request(kind: Any, index: int, settings: Any = GREEDY, messages: Any = None, text: str | None = None) -> Any:
    """One request about question `index`, in the form that this kind of model gets."""
    if kind.is_simple:
        args = (text or QUESTIONS[index].text, settings, shown, index, "task", "test")
    else:
        args = ("", messages or (lambda q: [user_message(q.text, shown(q))]), settings, index, "task", "test")
    return SimpleNamespace(args=args, task_name="task", doc_id=index)


@pytest.mark.parametrize("kind", ["FitPruneChat", "FitPruneSimple"])
@pytest.mark.parametrize("ratio", [0, 60])
def test_answers_are_those_of_our_own_evaluation(
    adapter: Any, small: VLM, recipe: Path, tmp_path: Path, kind: str, ratio: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = fitprune.Recipe.load(recipe) if ratio else None
    answer(small, QUESTIONS, embedded().images, tmp_path / "a.jsonl", recipe=chosen, batch_size=4, progress=False)
    ours = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    given = {"recipe": str(recipe)} if ratio else {}
    made = model(getattr(adapter, kind), QUESTIONS, reduction_ratio=ratio, batch_size="4", **given)
    assert made.generate_until([request(made, index) for index in range(len(QUESTIONS))]) == ours
    assert len(set(ours)) > 4
    assert attachment_of(made.vlm.model) is None
    assert ("recipe from" if ratio else "no pruning") in capsys.readouterr().out


def test_a_recipe_deletes_what_it_says(adapter: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    prune = adapter.prune

    def watched(*args: Any, **more: Any) -> Any:
        seen.append((args[1], more))
        return prune(*args, **more)

    monkeypatch.setattr(adapter, "prune", watched)
    made = model(adapter.FitPruneChat, QUESTIONS, recipe=str(recipe), score="last")
    made.generate_until([request(made, 0)])
    assert seen == [(fitprune.Recipe.load(recipe), {"score": "last"})]


def test_order_is_kept_where_settings_differ(adapter: Any) -> None:
    made = model(adapter.FitPruneChat, QUESTIONS, batch_size=3)
    settings = [GREEDY, GREEDY | {"max_new_tokens": 1}, GREEDY | {"num_beams": 2}]
    requests = [request(made, index, settings[index % 3]) for index in range(9)]
    alone = [made.generate_until([each])[0] for each in requests]
    assert made.generate_until(requests) == alone
    assert alone[0] != alone[1]


def test_sampling_is_sampling(adapter: Any) -> None:
    made = model(adapter.FitPruneChat, QUESTIONS, batch_size=9)
    hot = {"do_sample": True, "temperature": 50.0, "max_new_tokens": 8}
    requests = [request(made, 0, hot)] * 9
    assert len(set(made.generate_until(requests))) > 1
    assert len(set(made.generate_until([request(made, 0, hot | {"do_sample": False})] * 9))) == 1


def test_several_images_and_none(adapter: Any, small: VLM) -> None:
    pictures = [shown(QUESTIONS[0])[0], shown(QUESTIONS[-1])[0]]
    asked = "What number is written?"
    made = model(adapter.FitPruneChat, QUESTIONS, batch_size=3)
    requests = [
        request(made, 0, messages=lambda q: [user_message(asked, pictures)]),
        request(made, 0, messages=lambda q: [user_message(asked, [])]),
        request(made, 0, messages=lambda q: [user_message(asked, pictures[:1])]),
    ]
    ours = [small.ask(asked, *shown, max_new_tokens=16) for shown in (pictures, [], pictures[:1])]
    assert made.generate_until(requests) == ours


def test_simple_requests_without_images(adapter: Any, small: VLM) -> None:
    made = model(adapter.FitPruneSimple, QUESTIONS)
    for nothing in ([], None):
        args = ("Which?", GREEDY, lambda q, nothing=nothing: nothing, 0, "task", "test")
        given = SimpleNamespace(args=args, task_name="task", doc_id=0)
        assert made.generate_until([given]) == [small.ask("Which?", max_new_tokens=16)]


def test_rounds_go_on_until_the_task_ends_them(adapter: Any) -> None:
    said: list[Any] = []

    def write(question: Question, round_idx: int = 0, previous_output: Any = None, previous_round_info: Any = None) -> Any:
        said.append((round_idx, previous_output, previous_round_info))
        messages = [user_message(QUESTIONS[round_idx].text, shown(question))]
        return messages if not round_idx else (messages, round_idx == 2, previous_output, f"after {round_idx}")

    made = model(adapter.FitPruneChat, QUESTIONS)
    (answers,) = made.generate_until_multi_round([request(made, 0, messages=write)])
    alone = made.generate_until([request(made, index) for index in (0, 1)])
    assert answers == alone  # the first questions are about one picture
    assert said == [(0, None, None), (1, alone[:1], None), (2, alone, "after 1")]
    (once,) = made.generate_until_multi_round([request(made, 0, messages=no_more)])
    assert once == alone[:1]


def no_more(question: Question, round_idx: int = 0, **more: Any) -> Any:
    """A task of one round, which answers anything but messages for the next."""
    return None if round_idx else [user_message(question.text, shown(question))]


def test_likelihoods_are_transformers_loss(adapter: Any, small: VLM) -> None:
    made = model(adapter.FitPruneSimple, QUESTIONS, batch_size=4)
    choices = [" 57", " 5", " a long answer of some words", lambda q: "57"]
    found = [each.text for each in made.loglikelihood([request(made, 0, choice) for choice in choices])]
    for (nats, greedy), text in zip(found, ("57", "5", "a long answer of some words", "57"), strict=True):
        asked = f"<image>\n{QUESTIONS[0].text}"
        inputs = small.encode([(small.write([(asked, text)]), shown(QUESTIONS[0]))])
        start = small.encode([(small.write([(asked, None)]), shown(QUESTIONS[0]))])["input_ids"].shape[1]
        labels = inputs["input_ids"].clone()
        labels[:, :start] = -100
        with torch.inference_mode():
            assert nats == pytest.approx(float(small.model(**inputs, labels=labels).loss), rel=1e-4)
        assert greedy == (small.ask(QUESTIONS[0].text, *shown(QUESTIONS[0])) == text)
    assert min(range(3), key=lambda index: found[index][0]) == 0  # lmms-eval takes the smallest


def test_likelihoods_under_pruning_rank_the_pruned_answer_first(adapter: Any, recipe: Path) -> None:
    made = model(adapter.FitPruneSimple, QUESTIONS, recipe=str(recipe), batch_size=2)
    (said,) = made.generate_until([request(made, 0)])
    found = [each.text for each in made.loglikelihood([request(made, 0, said), request(made, 0, "ode")])]
    assert found[0][1]
    assert found[0][0] < found[1][0]
    assert attachment_of(made.vlm.model) is None
    unseen = SimpleNamespace(args=("", "57"), task_name="task", doc_id=0)  # as acc_mutual_info asks
    assert made.loglikelihood([unseen])[0].text[0] > 0


def test_what_one_type_cannot_do_names_the_other(adapter: Any) -> None:
    with pytest.raises(FitPruneError, match="add --force_simple"):
        model(adapter.FitPruneChat, QUESTIONS).loglikelihood([])
    with pytest.raises(FitPruneError, match="leave out --force_simple"):
        model(adapter.FitPruneSimple, QUESTIONS).generate_until_multi_round([])


def test_unknown_settings_are_reported_once(adapter: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = model(adapter.FitPruneChat, QUESTIONS)
    odd = GREEDY | {"repetition_penalty": 1.1}
    assert made.generate_until([request(made, 0, odd), request(made, 1, odd)]) == made.generate_until([request(made, 0), request(made, 1)])
    assert [record.message for record in caplog.records] == [
        "generation setting repetition_penalty: 1.1 is not known to fitprune and does nothing"
    ]


def test_errors_name_the_document_and_leave_nothing_attached(adapter: Any, recipe: Path) -> None:
    made = model(adapter.FitPruneChat, QUESTIONS, recipe=str(recipe))
    sound = [{"role": "user", "content": [{"type": "audio", "url": "song.wav"}]}]
    with pytest.raises(FitPruneError, match=r"^task, document 3: fitprune reads text, images and videos, not audio"):
        made.generate_until([request(made, 0), request(made, 3, messages=lambda q: sound)])
    assert attachment_of(made.vlm.model) is None
    made.clean()
    with pytest.raises(FitPruneError, match="given back"):
        made.generate_until([request(made, 0)])


def test_workers_have_their_rank(adapter: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (LAUNCHED | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    made = model(adapter.FitPruneChat, QUESTIONS)
    assert (made._rank, made._world_size) == (1, 2)
    assert made.device == torch.device("cpu")
    assert capsys.readouterr().out == ""


def test_the_manifest_names_classes_that_are_there(adapter: Any) -> None:
    found = manifest()
    assert found.model_id == "fitprune"
    for path, simple in ((found.chat_class_path, False), (found.simple_class_path, True)):
        module, name = path.rsplit(".", 1)
        assert getattr(importlib.import_module(module), name).is_simple is simple
    assert '[project.entry-points."lmms_eval.models"]\nfitprune = "fitprune.lmms:manifest"' in (ROOT / "pyproject.toml").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, Settings()),
        ({"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, Settings()),
        ({"max_new_tokens": 16, "until": "\n"}, Settings(max_new_tokens=16, until=("\n",))),
        ({"until": None, "max_new_tokens": None}, Settings()),
        ({"until": ["</s>", "", "Q:"]}, Settings(until=("</s>", "Q:"))),
        ({"do_sample": True}, Settings(temperature=1.0)),
        ({"do_sample": True, "temperature": 0}, Settings()),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Settings()),
        ({"temperature": 0.2, "top_p": 0.9}, Settings(temperature=0.2, top_p=0.9)),
        ({"num_beams": 3, "seed": 1}, Settings(num_beams=3)),
    ],
)
def test_settings(given: dict[str, Any], settings: Settings) -> None:
    assert read_settings(given) == settings
    assert settings.max_new_tokens in (16, MAX_NEW_TOKENS)


@pytest.mark.parametrize("given", [{"max_new_tokens": 0}, {"num_beams": "two"}, {"temperature": -1}, {"max_new_tokens": [1]}, {"until": 3}])
def test_settings_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(FitPruneError, match="cannot be"):
        read_settings(given)


@given(st.text("abc "), st.lists(st.text("abc", min_size=1, max_size=2), max_size=3))
def test_a_cut_answer_is_a_beginning_without_its_ends(text: str, until: list[str]) -> None:
    cut = Settings(until=tuple(until)).cut(text)
    assert not any(end in cut for end in until)
    assert text.strip().startswith(cut)
    if not any(end in text for end in until):
        assert cut == text.strip()


def test_an_image_and_a_question_are_our_prompt(small: VLM) -> None:
    picture = Image.new("RGB", (4, 4))
    for images in ([picture], []):
        turns, shown = conversation([user_message("Why?", images)])
        assert (small.write(turns), shown) == (small.prompt("Why?", image=bool(images)), images)


def test_images_stand_where_they_are_or_where_the_text_says() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")

    def user_text(*content: Any) -> tuple[str, list[Image.Image]]:
        parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part} for part in content]
        ((text, _),), pictures = conversation([{"role": "user", "content": parts}])
        return text, pictures

    assert user_text(red, blue, "Why?") == ("<image>\n<image>\nWhy?", [red, blue])
    assert user_text("First ", red, "then ", blue, "?") == ("First <image>\nthen <image>\n?", [red, blue])
    assert user_text(red, blue, "Is <image> or <image>?") == ("Is <image> or <image>?", [red, blue])
    with pytest.raises(FitPruneError, match="has 1 <image> in its text, but 2 image"):
        user_text(red, blue, "Is <image>?")


def test_turns_and_system_messages(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    messages = [
        {"role": "system", "content": "Be short."},
        user_message("One?", [str(tmp_path / "a.png")]),
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": "Two?"},
    ]
    turns, pictures = conversation(messages)
    assert turns == [("Be short.\n<image>\nOne?", "1"), ("Two?", None)]
    assert [picture.size for picture in pictures] == [(4, 4)]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "nothing to answer"),
        ([{"role": "assistant", "content": TEXTS}], "answers a user"),
        ([{"role": "user", "content": TEXTS}, {"role": "assistant", "content": TEXTS}], "nothing to answer"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "not audio"),
        ([{"role": "user", "content": [{"type": "image", "url": {"bytes": b""}}]}], "not dict"),
        ([{"role": "user", "content": [{"type": "image", "url": "nowhere.png"}]}], "no image nowhere.png"),
    ],
)
def test_messages_that_cannot_be(messages: Any, said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        conversation(messages)


def test_a_video_is_read_and_marked_before_the_text(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    message = {"role": "user", "content": [{"type": "video", "url": str(tmp_path)}, {"type": "text", "text": "Why?"}]}
    turns, (video,) = conversation([message])
    assert turns == [("<video>\nWhy?", None)]
    assert len(video.frames) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "name a checkpoint"),
        ({"pretrained": "embedded", "ratio": 0.6}, "unknown model_args ratio"),
        ({"pretrained": "embedded", "worker": 1}, "unknown model_args worker"),
        ({"pretrained": "embedded", "reduction_ratio": 1.5}, "out of range"),
        ({"pretrained": "embedded", "score": "best"}, "unknown score"),
        ({"pretrained": "embedded", "batch_size": "auto"}, "batch_size auto is not"),
        ({"pretrained": "embedded", "samples": 0}, "samples 0 is not"),
        ({"pretrained": "embedded", "calibration_file": "q.jsonl"}, "give both"),
    ],
)
def test_arguments_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        Arguments.read(given)


def test_a_recipe_is_fitted_on_the_embedded_set_and_kept(small: VLM, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    given = Arguments.read({"pretrained": "embedded", "reduction_ratio": "60%", "samples": 4, "keep_recipe": str(kept)})
    first, second = given.resolve(small), given.resolve(small)
    assert first.source.startswith("recipe fitted now on 4 samples")
    assert (second.recipe, second.source) == (first.recipe, f"recipe fitted earlier on 4 samples, {kept}")
    assert first.recipe is not None
    assert first.recipe.samples == 4


def test_other_models_need_questions_to_fit_on(small: VLM) -> None:
    alone = {"pretrained": "./mine", "reduction_ratio": 0.6}
    with pytest.raises(FitPruneError, match=r"no recipe of \./mine is published for 0.6: name one with recipe=FILE"):
        Arguments.read(alone).resolve(small)
    data = embedded()
    named = {"calibration_file": str(data.calibration), "calibration_images": str(data.calibration_images), "samples": 2}
    assert Arguments.read(alone | named).resolve(small).source.startswith("recipe fitted now on 2 samples")
    assert Arguments.read(alone | {"reduction_ratio": 0}).resolve(small).recipe is None


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str | None] = []
    monkeypatch.setattr(arguments, "load", lambda *args, **options: devices.append(options["device"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def loaded_on(**given: Any) -> str | None:
        Arguments.read({"pretrained": "embedded", **given}).load()
        return devices[-1]

    for name, value in (LAUNCHED | {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [loaded_on(device=named) for named in (None, "cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:1", "cuda:3", "cpu"]
    with pytest.raises(FitPruneError, match="8 processes run"):
        loaded_on(device_map="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [loaded_on(device=named) for named in (None, "cuda")] == [None, "cuda"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert loaded_on(device_map="auto") is None


def test_processes_prune_with_one_recipe(tmp_path: Path) -> None:
    alone = {"pretrained": "embedded", "reduction_ratio": 60, "samples": 3, "device": "cpu"}

    def resolved(rank: int) -> Choice:
        torch.distributed.init_process_group("gloo")  # as lmms-eval does, in its own way
        given = Arguments.read(alone | {"keep_recipe": str(tmp_path / "kept.json")})
        return given.resolve(given.load())

    one = Arguments.read(alone)
    recipe = one.resolve(one.load()).recipe
    for found in together(2, resolved):
        assert found.recipe == recipe
        assert "fitted now on 3 samples" in found.source
    assert together(2, resolved)[1].source.startswith("recipe fitted earlier")


def test_the_folder_of_tasks_is_printed_and_has_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("fitprune.lmms", run_name="__main__")
    assert Path(capsys.readouterr().out.strip()) == TASKS
    task = (TASKS / "fitprune_textvqa.yaml").read_text(encoding="utf-8")
    (data,) = (line.split(": ")[1] for line in task.splitlines() if line.strip().startswith("validation:"))
    assert (TASKS / data).resolve() == embedded().annotations.resolve()


@pytest.mark.skipif(not INSTALLED, reason="lmms_eval is not installed: pip install 'fitprune[lmms-eval]'")
def test_the_command_scores_as_we_do(small: VLM, tmp_path: Path) -> None:
    limit, kept = 24, tmp_path / "kept.json"
    command = [sys.executable, "-m", "lmms_eval", "--model", "fitprune", "--tasks", "fitprune_textvqa"]
    command += ["--include_path", str(TASKS), "--batch_size", "8", "--limit", str(limit), "--device", "cpu"]
    command += ["--model_args", f"pretrained=embedded,reduction_ratio=0.6,samples=8,keep_recipe={kept}"]
    command += ["--log_samples", "--output_path", str(tmp_path / "out")]
    place = {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True)
    assert kept.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    assert "|exact_match|" in done.stdout
    (samples,), (results,) = (list((tmp_path / "out").rglob(name)) for name in ("*samples*.jsonl", "*results.json"))
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])

    questions = read_questions(embedded().questions)[:limit]
    recipe = fitprune.Recipe.load(kept)
    path = tmp_path / "a.jsonl"
    answer(small, questions, embedded().images, path, recipe=recipe, batch_size=8, progress=False)
    ours = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert [row["filtered_resps"] for row in rows] == ours

    people = read_annotations(embedded().annotations)
    asked = [(q.question_id, q.text.splitlines()[0].lower()) for q in questions]
    score = sum(soft_accuracy(said, people[key]) for said, key in zip(ours, asked, strict=True)) / limit
    theirs = json.loads(results.read_text())["results"]["fitprune_textvqa"]["exact_match,none"]
    assert theirs == pytest.approx(score)
    assert 0.5 < score < 1
