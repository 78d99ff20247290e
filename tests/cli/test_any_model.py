"""A model that has no module here, by command: fit → eval → report → draw → sweep → serve, on a tiny checkpoint with a real processor."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import processors
import pytest
from PIL import Image

import fitprune
from fitprune.calibrate import Calibration, observe_questions
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import BENCHMARKS
from fitprune.recipe import Recipe
from fitprune.web.demo import figures
from fitprune.web.demo.engine import Engine
from fitprune.web.serve import needed, server

FIRST = ("Qwen2_5_VL",)  # the others go to `make test-rest`
WALKED = ("Qwen2_5_VL", "Qwen3VL", "InternVL", "LlavaOnevision", "SmolVLM", "Gemma3")
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.rest) for name in WALKED]
UNPLACED = ("LlavaOnevision",)  # whose tokens are no grid that its inputs tell

try:
    needed()
    MISSING = ""
except FitPruneError as error:
    MISSING = str(error)


@pytest.fixture(scope="module", params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(processors.for_module(request.param, tmp_path_factory))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four questions, one of them without an image."""
    folder = tmp_path_factory.mktemp("data")
    lines: list[dict[str, Any]] = [{"question_id": 3, "text": "Why not?"}]
    for number, size in enumerate([(50, 30), (30, 60), (40, 40)]):
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{number}.png")
        lines.insert(number, {"question_id": number, "image": f"{number}.png", "text": f"What is shape {number}?"})
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def recipe(path: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fitprune fit` makes."""
    target = tmp_path_factory.mktemp("fitted") / "half.json"
    questions = ["--question-file", str(data / "questions.jsonl"), "--image-folder", str(data)]
    assert main(["fit", "--by", "mass", "--model-path", path, *questions, "--reduction-ratio", "0.5", "--output", str(target)]) == 0
    return target


@pytest.mark.rest
def test_fit_chooses_by_drift_for_any_model(path: str, data: Path, tmp_path: Path) -> None:
    lines = (data / "questions.jsonl").read_text().splitlines()
    (tmp_path / "nine.jsonl").write_text("\n".join(lines * 3))
    questions = ["--question-file", str(tmp_path / "nine.jsonl"), "--image-folder", str(data)]
    assert main(["fit", "--model-path", path, *questions, "--reduction-ratio", "0.5", "--output", str(tmp_path / "by.json")]) == 0
    made = Recipe.load(tmp_path / "by.json")
    made.check_model(fitprune.load(path, device="cpu").cost)
    assert (made.samples, made.score is None, made.drift is None) == (9, False, False)


def common(path: str, data: Path, recipe: Path) -> list[str]:
    asked = ["--question-file", str(data / "questions.jsonl"), "--image-folder", str(data)]
    return ["--model-path", path, *asked, "--recipe", str(recipe), "--max-new-tokens", "3"]


def test_fit_makes_a_recipe_of_the_model(path: str, recipe: Path) -> None:
    made, vlm = Recipe.load(recipe), fitprune.load(path, device="cpu")
    made.check_model(vlm.cost)
    assert made.samples == 3
    assert made.achieved is not None
    assert made.achieved >= 0.5 - 1e-9


def test_eval_answers_as_ask_does(path: str, data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *common(path, data, recipe), "--output", str(tmp_path), "--batch-size", "2"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    vlm = fitprune.load(path, device="cpu")
    counts = [vlm.tokens_for(Image.open(data / f"{number}.png")) for number in range(3)]
    assert rows[0]["visual_tokens"] == rows[1]["visual_tokens"] == pytest.approx(sum(counts) / 3)
    assert rows[1]["visual_reduction"] > 0.4
    schedule = Recipe.load(recipe)
    want = sum(schedule.alive(count, vlm.cost.layers)[-1] for count in counts) / 3
    assert rows[1]["alive"][-1] == pytest.approx(want)
    for row in rows:
        with fitprune.prune(vlm.model, schedule if row["name"] != "dense" else Recipe.none(vlm.cost.layers)):
            for line in map(json.loads, Path(row["answers"]).read_text().splitlines()):
                shown = [data / f"{line['question_id']}.png"] if line["question_id"] < 3 else []
                assert line["text"] == vlm.ask(line["prompt"], *shown, max_new_tokens=3)


def test_report_measures_against_dense(path: str, data: Path, recipe: Path, tmp_path: Path) -> None:
    vlm = fitprune.load(path, device="cpu")
    nothing, kept = tmp_path / "nothing.json", tmp_path / "report.json"
    Recipe.none(vlm.cost.layers).save(nothing)
    assert main(["report", *common(path, data, nothing), "--json", str(kept)]) == 0
    questions = json.loads(kept.read_text())
    assert '"changed": []' in json.dumps(questions)
    assert main(["report", *common(path, data, recipe), "--json", str(kept)]) == 0


def test_draw(
    path: str, request: pytest.FixtureRequest, data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = ["--image", str(data / "0.png"), "--question", "What?", "--recipe", str(recipe), "--max-new-tokens", "2"]
    code = main(["draw", "--model-path", path, *options, "--output", str(tmp_path / "drawn")])
    if request.node.callspec.params["path"] in UNPLACED:
        assert code == 2
        assert "do not tell where in the picture its" in capsys.readouterr().err
    else:
        assert code == 0
        assert {file.name for file in (tmp_path / "drawn").iterdir()} == {
            "heat.png", "recipe.png", "survivors.gif", "survivors.html", "survivors.png",
        }  # fmt: skip


def test_sweep(path: str, data: Path, tmp_path: Path) -> None:
    calibration = ["--calibration-file", str(data / "questions.jsonl"), "--calibration-images", str(data)]
    options = [
        "--benchmarks",
        "textvqa",
        "--ratios",
        "0,50",
        "--methods",
        "fitprune",
        "--limit",
        "2",
        "--max-new-tokens",
        "2",
        "--playground",
        str(embedded().data),
    ]
    assert main(["sweep", "--model-path", path, *options, *calibration, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "sweep.md").read_text().count("| 50% |") == 3  # two comparison methods beside it


def test_the_demo_answers_and_draws_where_it_can(path: str, request: pytest.FixtureRequest, data: Path) -> None:
    vlm = fitprune.load(path, device="cpu")
    engine = Engine(vlm, observe_questions(vlm, Calibration(data / "questions.jsonl", data), progress=False), max_new_tokens=3)
    made = engine.compare(Image.open(data / "0.png"), "What is it?", 0.5, "fitprune")
    assert made.dense.text == vlm.ask("What is it?", data / "0.png", max_new_tokens=3)
    assert made.pruned.alive[0] == vlm.tokens_for(Image.open(data / "0.png")) > made.pruned.alive[-1]
    if request.node.callspec.params["path"] in UNPLACED:
        assert not made.frames
        assert "do not tell where" in figures.frames(made, 0)
    else:
        assert len(made.frames) == vlm.cost.layers + 1


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_serve_answers_as_ask_does(path: str, recipe: Path) -> None:
    vlm = fitprune.load(path, device="cpu")
    image, schedule = Image.linear_gradient("L").resize((50, 30)).convert("RGB"), Recipe.load(recipe)
    with fitprune.prune(vlm.model, schedule):
        expected = vlm.ask("What is it?", image, max_new_tokens=4)
    with running(vlm, schedule) as address:
        content = io.BytesIO()
        image.save(content, "png")
        url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)["choices"][0]["message"]["content"]
    for added in vlm.tokenizer.added_tokens_decoder.values():  # transformers' server leaves them in for templates that may call tools
        said = said.replace(added.content if added.special else "", "")
    assert said.strip() == expected


class running:
    """A server in a thread, at an address, while the block lasts."""

    def __init__(self, vlm: fitprune.families.VLM, recipe: Recipe) -> None:
        self.made = server(vlm, recipe, port=0)
        self.thread = threading.Thread(target=self.made.run, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        while not self.made.started:
            assert self.thread.is_alive()
            time.sleep(0.02)
        host, port = self.made.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    def __exit__(self, *_: Any) -> None:
        self.made.should_exit = True
        self.thread.join(30)


@pytest.mark.rest
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark(benchmark: str, tmp_path: Path, small: str) -> None:
    options = ["--benchmark", benchmark, "--limit", "2" if benchmark != "vizwiz" else "12", "--reduction-ratio", "0.5", "--batch-size", "2"]
    questions = ["--model-path", small, "--max-new-tokens", "2", "--output", str(tmp_path), "--playground", str(embedded().data)]
    assert main(["eval", *options, *questions, "--samples", "2"]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(processors.saved("Qwen2_5_VL", tmp_path_factory.mktemp("small") / "tiny"))
