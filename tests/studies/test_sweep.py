"""`fitprune sweep` on the embedded model: what it writes, and that an interrupted one goes on as if nothing had happened."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fitprune.arguments import ratios
from fitprune.cli import main
from fitprune.errors import FitPruneError
from fitprune.evaluation.rows import Row
from fitprune.families import VLM, load
from fitprune.observe import Observer
from fitprune.recipe import Recipe
from fitprune.studies.ablate import panels
from fitprune.studies.before import WAYS, Before
from fitprune.studies.methods import CONTROLS
from fitprune.studies.sweep import Tried, _packed, _unpacked
from fitprune.studies.sweep_plot import ablation, curves
from fitprune.studies.sweep_table import Point, markdown

LIMIT, BATCH = 4, 2
METHODS = ("fastv", "cross", *CONTROLS)
RUNS = 2 * (1 + 2 * len(METHODS))  # two benchmarks: dense, and every method at two ratios
SWEEP = ["sweep", "--ratios", "0,40,70", "--methods", "fastv,cross", "--benchmarks", "textvqa,gqa", "--samples", "3"]
SWEEP += ["--limit", str(LIMIT), "--batch-size", str(BATCH), "--max-new-tokens", "4", "--output"]


class Asked:
    """Counts the questions that the model is asked, warming up left out, and interrupts before a certain one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.questions, self.observed, self.stop = 0, 0, 10**9
        generate = VLM.generate

        def counted(vlm: VLM, inputs: dict[str, Any], **options: Any) -> list[str]:
            if options["max_new_tokens"] > 1:
                if self.questions >= self.stop:
                    raise KeyboardInterrupt
                self.questions += len(inputs["input_ids"])
            return generate(vlm, inputs, **options)

        def observed(*args: Any, **options: Any) -> Any:
            self.observed += 1
            return Observer(*args, **options)

        monkeypatch.setattr(VLM, "generate", counted)
        monkeypatch.setattr("fitprune.calibrate.Observer", observed)


def answers(folder: Path) -> dict[str, list[Any]]:
    """By file, everything but the answers' random ids."""
    keys = ("question_id", "prompt", "text", "model_id", "metadata")
    return {
        path.name: [[line[key] for key in keys] for line in map(json.loads, path.read_text().splitlines())]
        for path in sorted(folder.glob("*.jsonl"))
    }


def figures(folder: Path) -> list[dict[str, Any]]:
    """The runs without what a stop-watch or the folder decides."""
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    return [{k: v for k, v in run.items() if k not in ("milliseconds", "timed", "answers", "written")} for run in runs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main([*SWEEP, str(folder)]) == 0
    return folder


def test_every_method_at_every_ratio_on_every_benchmark(whole: Path) -> None:
    content = json.loads((whole / "sweep.json").read_text())
    assert content["left_out"] == []
    keys = [(run["benchmark"], run["method"], run["ratio"]) for run in content["runs"]]
    assert keys == [
        (benchmark, *one)
        for benchmark in ("textvqa", "gqa")
        for one in [("dense", 0.0), *((method, ratio) for ratio in (0.4, 0.7) for method in METHODS)]
    ]
    table = (whole / "sweep.md").read_text()
    with (whole / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["runs"]) == len(answers(whole)) == RUNS
    for run, row in zip(content["runs"], rows, strict=True):
        assert all(row[name] == ("" if run[name] is None else str(run[name])) for name in row)
        assert f"| {run['method']} | {100 * run['ratio']:.6g}% | {run['headline']:.2f} |" in table
        assert run["timed"] == run["questions"] == LIMIT
        assert run["score"] is None or run["method"] != "dense"
        share = run["headline"] / 100
        if run["benchmark"] == "gqa":  # every answer is worth 0 or 1
            error = 100 * (share * (1 - share) / (LIMIT - 1)) ** 0.5
            assert (run["standard_error"] or 0) == pytest.approx(error)
        assert run["milliseconds"] > 0
    assert (whole / "sweep.png").exists() == (find_spec("matplotlib") is not None)


def test_costs_are_those_of_the_recipe(whole: Path) -> None:
    runs = json.loads((whole / "sweep.json").read_text())["runs"][: RUNS // 2]
    dense, methods = runs[0], {(run["method"], run["ratio"]): run for run in runs[1:]}
    cost, tokens = load("embedded", device="cpu").cost, 144
    for (method, ratio), run in methods.items():
        assert ratio <= run["visual_reduction"] < ratio + 1 / tokens, method
        assert run["alive"][-1] < dense["visual_tokens"] == tokens
        saved = 1 - run["prefill_gflops"] / dense["prefill_gflops"]
        assert 0 < saved == pytest.approx(run["prefill_reduction"])
        gone = [a - b for a, b in zip([tokens, *run["alive"]], run["alive"], strict=False)]
        per_token = 2 * cost.kv_heads * cost.head_dim * 4  # float32 on a CPU
        entering = [tokens, *run["alive"][:-1]]
        assert dense["kv_bytes"] - run["kv_bytes"] == pytest.approx(per_token * sum(tokens - n for n in entering))
        if method == "fastv":
            assert gone == Recipe.step(layer=1, keep=run["alive"][-1] / tokens).deletions(tokens, cost.layers)
    assert methods["random", 0.4]["alive"] == methods["cross", 0.4]["alive"]  # our schedule
    assert len(set(methods["uniform", 0.4]["alive"])) == cost.layers
    assert [methods[name, 0.4]["score"] for name in METHODS] == ["last", "cross", "random", "fitprune"]


@pytest.mark.rest
@pytest.mark.parametrize("stop", [0, 6, RUNS * LIMIT - BATCH])
def test_interrupted_and_resumed_is_as_uninterrupted(stop: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.stop = stop
    assert main([*SWEEP, str(tmp_path)]) == 130
    before = answers(tmp_path)
    asked.stop = 10**9
    assert main([*SWEEP, str(tmp_path)]) == 0
    assert asked.questions == RUNS * LIMIT  # nothing twice
    assert asked.observed == 1
    after = answers(tmp_path)
    assert after == answers(whole)
    assert all(after[name][: len(lines)] == lines for name, lines in before.items())
    assert figures(tmp_path) == figures(whole)
    times = [run["milliseconds"] for run in json.loads((tmp_path / "sweep.json").read_text())["runs"]]
    assert None not in times
    assert main([*SWEEP, str(tmp_path)]) == 0  # finished: checked and scored only, the times are kept
    assert asked.questions == RUNS * LIMIT
    assert [run["milliseconds"] for run in json.loads((tmp_path / "sweep.json").read_text())["runs"]] == times


def test_other_samples_are_observed_anew_and_their_answers_not_mixed(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in whole.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    other = [*SWEEP, str(tmp_path), "--samples", "2"]
    kept = answers(tmp_path)
    assert main(other) == 2  # the fitted recipe is another one
    assert "another" in capsys.readouterr().err
    assert answers(tmp_path) == kept
    assert len(list(tmp_path.glob("statistics-*"))) == 2


def test_what_cannot_be_saved_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ratios", "95", "--methods", "fastv", "--benchmarks", "textvqa", "--limit", "1", "--samples", "2"]
    assert main(["sweep", *flags, "--max-new-tokens", "2", "--output", str(tmp_path)]) == 0
    assert "Left out: fastv: a reduction ratio of 0.95 cannot be reached" in capsys.readouterr().out
    methods = [run["method"] for run in json.loads((tmp_path / "sweep.json").read_text())["runs"]]
    assert methods == ["dense", *CONTROLS]


def test_a_picture_of_another_size_that_cannot_save_as_much_stops_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deletions = Recipe.deletions

    def out_of_reach(recipe: Recipe, visual_tokens: int, layers: int | None = None) -> list[int]:
        if recipe.source == "fastv":
            raise FitPruneError("ask for less")
        return deletions(recipe, visual_tokens, layers)

    for path in whole.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(Recipe, "deletions", out_of_reach)
    assert main([*SWEEP, str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("Left out: fastv on gqa: ask for less.") == 2
    assert figures(tmp_path) == [run for run in figures(whole) if run["method"] != "fastv"]


BEFORE = ["sweep", "--ratios", "60", "--methods", "divprune,cdpruner,downsample", "--benchmarks", "textvqa", "--samples", "2"]
BEFORE += ["--limit", "4", "--batch-size", "2", "--max-new-tokens", "4", "--output"]


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    assert main([*BEFORE, str(folder)]) == 0
    return folder


def test_before_the_decoder_costs_are_those_of_what_enters_it(ahead: Path) -> None:
    """FLOPs and bytes as of a dense model that makes so few tokens; a time only where such a model ran."""
    content = json.loads((ahead / "sweep.json").read_text())
    assert content["left_out"] == []
    runs = {run["method"]: run for run in content["runs"]}
    assert list(runs) == ["dense", *WAYS, *CONTROLS]
    cost, dense = load("embedded", device="cpu").cost, runs["dense"]
    for name, enter in {"divprune": 61, "cdpruner": 61, "downsample": 49}.items():
        run = runs[name]
        assert run["alive"] == [enter] * cost.layers
        assert 0.6 <= run["visual_reduction"] == pytest.approx(1 - cost.dense_macs(enter) / cost.dense_macs(144))
        assert run["prefill_reduction"] == pytest.approx(1 - run["prefill_gflops"] / dense["prefill_gflops"])
        each = 2 * cost.kv_heads * cost.head_dim * 4 * cost.layers  # bytes of a token, float32 on a CPU
        assert dense["kv_bytes"] - run["kv_bytes"] == pytest.approx(each * (144 - enter))
        assert run["score"] is None
        assert run["questions"] == 4
    assert [runs[name]["milliseconds"] is None for name in WAYS] == [True, True, False]
    assert [runs[name]["timed"] for name in WAYS] == [0, 0, 4]
    untimed = [line for line in (ahead / "sweep.md").read_text().splitlines() if line.endswith("| - |")]
    assert [line.split(" | ")[0] for line in untimed] == ["| divprune", "| cdpruner"]
    metadata = {json.loads(path.read_text().splitlines()[0])["metadata"].get("before") for path in ahead.glob("*.jsonl")}
    assert metadata == {None, *WAYS}


def test_what_comes_before_the_decoder_is_not_asked_twice_and_not_mixed(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ahead.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    asked = Asked(monkeypatch)
    assert main([*BEFORE, str(tmp_path)]) == 0
    assert asked.questions == 0
    assert figures(tmp_path) == figures(ahead)
    (tmp_path / "textvqa-divprune-r60-first4.jsonl").write_bytes((ahead / "textvqa-cdpruner-r60-first4.jsonl").read_bytes())
    assert main([*BEFORE, str(tmp_path)]) == 2
    assert "another" in capsys.readouterr().err


def test_a_model_that_cannot_leaves_the_method_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model-path", "embedded-hr", "--ratios", "50", "--methods", "downsample,divprune", "--benchmarks", "textvqa", "--limit", "1"]
    assert main(["sweep", *flags, "--samples", "2", "--max-new-tokens", "2", "--output", str(tmp_path)]) == 0
    assert "Left out: downsample on textvqa: embedded-hr: downsample needs a vision tower" in capsys.readouterr().out
    assert [run["method"] for run in json.loads((tmp_path / "sweep.json").read_text())["runs"]] == ["dense", "divprune", *CONTROLS]


def test_what_runs_goes_to_other_processes_whole() -> None:
    tried: list[Tried] = [
        ("divprune", 0.5, Before("divprune", 0.5)),
        ("fastv", 0.5, (Recipe.step(layer=1, keep=0.5), "last")),
        ("vtw", 0.9, FitPruneError("cannot be reached")),
    ]
    *made, (name, ratio, error) = _unpacked(_packed(tried))
    assert made == tried[:2]
    assert (name, ratio, str(error)) == ("vtw", 0.9, "cannot be reached")


ABLATION = ["sweep", "--ablate", "samples=1,3", "criterion=both,cross", "score=last", "--ratios", "50", "--samples", "2"]
ABLATION += ["--benchmarks", "textvqa", "--limit", "4", "--batch-size", "2", "--max-new-tokens", "4", "--output"]
VARIED = ["fitprune", "fitprune samples=1", "fitprune criterion=cross", "last", *CONTROLS]


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablated")
    assert main([*ABLATION, str(folder)]) == 0
    return folder


def test_an_ablation_varies_one_choice_at_a_time_beside_the_controls(ablated: Path) -> None:
    content = json.loads((ablated / "sweep.json").read_text())
    assert [run["method"] for run in content["runs"]] == ["dense", *VARIED]
    assert content["about"]["samples"] == 3  # the largest number, though --samples says 2
    alive = {run["method"]: run["alive"] for run in content["runs"]}
    assert alive["last"] == alive["fitprune"] == alive["random"] != alive["fitprune samples=1"]
    for run in content["runs"][1:]:
        assert 0.5 <= run["visual_reduction"] < 0.5 + 1 / 144, run["method"]
    found = {one["method"]: one for one in content["recipes"]}
    assert list(found) == VARIED[:3]
    assert found["fitprune"]["moved"] == 0 < found["fitprune samples=1"]["moved"] < 0.2
    for name, one in found.items():
        assert one["alive"] == alive[name]
        assert f"| {name} | 50% |" in (ablated / "sweep.md").read_text().partition("## Recipes")[2]
    kept = ["dense", *(f"{name.replace(' ', '-').replace('=', '-')}-r50" for name in VARIED)]
    assert set(answers(ablated)) == {f"textvqa-{name}-first4.jsonl" for name in kept}
    assert len(list(ablated.glob("statistics-*"))) == 1
    assert (ablated / "ablation.png").exists() == (find_spec("matplotlib") is not None)


@pytest.mark.rest
@pytest.mark.parametrize("stop", [0, 14])
def test_an_interrupted_ablation_goes_on(stop: int, ablated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.stop = stop
    assert main([*ABLATION, str(tmp_path)]) == 130
    asked.stop = 10**9
    assert main([*ABLATION, str(tmp_path)]) == 0
    assert asked.questions == 4 * (1 + len(VARIED))  # dense once, nothing twice
    assert asked.observed == 1
    assert answers(tmp_path) == answers(ablated)
    assert figures(tmp_path) == figures(ablated)
    kept = [json.loads((folder / "sweep.json").read_text())["recipes"] for folder in (tmp_path, ablated)]
    assert kept[0] == kept[1]
    more = [*ABLATION, str(tmp_path), "--methods", "cross,fitprune samples=2"]  # further methods, the same statistics
    assert main(more) == 0
    assert asked.observed == 1
    assert asked.questions == 4 * (3 + len(VARIED))
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert [run["method"] for run in runs][1:3] == ["cross", "fitprune samples=2"]


def test_the_picture_of_an_ablation_has_a_panel_per_choice_and_a_line_per_ratio() -> None:
    pytest.importorskip("matplotlib")
    score = {("dense", 0.0): 90, ("fitprune", 0.5): 80, ("fitprune", 0.7): 60, ("fitprune samples=1", 0.5): 70}
    points: Any = [
        SimpleNamespace(method=method, ratio=ratio, row=SimpleNamespace(benchmark="b", headline=value, metric="points"))
        for (method, ratio), value in score.items()
    ]
    figure = ablation(points, panels([("samples", ["1", "4"]), ("score", ["last"])], 4))
    samples, scores = figure.axes
    assert [list(line.get_ydata()) for line in samples.lines[:2]] == [[90, 90], [70, 80]]  # dense, then 50%
    assert str(samples.lines[2].get_ydata()[0]) == "nan"  # left out at 70%
    assert [label.get_text() for label in samples.get_xticklabels()] == ["1", "4"]
    assert [label.get_text() for label in scores.get_xticklabels()] == ["last", "fitprune"]
    assert samples.get_ylabel() == "b: points"


def point(method: str, ratio: float, headline: float | None, **more: Any) -> Point:
    """A run whose three costs differ from one another in size and in order."""
    row: dict[str, Any] = dict.fromkeys((one.name for one in fields(Row)), 0.0)
    row |= {"name": method, "benchmark": "b", "metric": "points", "headline": headline, "standard_error": None}
    row |= {"questions": 40, "visual_tokens": 8.0, "alive": [8.0, 2.0], "prefill_gflops": 5 - 4 * ratio}
    row |= {"milliseconds": 100 + ratio, "report": "", "answers": "", "written": [], "details": {}}
    return Point(method, "random", ratio, (1 + ratio) * 2**20, 40, Row(**row | more))


POINTS = [
    point("dense", 0.0, 80.0, alive=[], standard_error=4.25),
    point("fitprune", 0.5, 77.5, standard_error=5.5),
    point("vtw", 0.5, 81.25, alive=[8.0, 0.0]),
    point("random", 0.5, None),
]


def test_the_table_by_hand() -> None:
    lines = [line for line in markdown(POINTS, [], {}).splitlines() if line.startswith("| ")]
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert cells[0][:6] == ["method", "ratio", "points", "±", "against dense", "questions"]
    assert cells[0][7:] == ["prefill GFLOPs", "KV MiB", "ms/question"]
    assert [row[:6] for row in cells[1:]] == [
        ["dense", "0%", "80.00", "4.25", "+0.00", "40"],
        ["fitprune", "50%", "77.50", "5.50", "-2.50", "40"],  # worse than dense
        ["vtw", "50%", "81.25", "-", "+1.25", "40"],
        ["random", "50%", "-", "-", "-", "40"],
    ]
    assert cells[1][7:] == ["5.000", "1.00", "100.0"]
    assert cells[2][7:] == ["3.000", "1.50", "100.5"]


def test_what_ranks_nothing_has_no_score() -> None:
    assert [one.figures["score"] for one in POINTS] == [None, "random", None, "random"]
    assert [one.figures["standard_error"] for one in POINTS] == [4.25, 5.5, None, None]
    assert {one.figures["questions"] for one in POINTS} == {40}


def test_each_axis_shows_what_it_is_called() -> None:
    pytest.importorskip("matplotlib")
    panels = curves(POINTS[:3]).axes
    costs = {"prefill GFLOPs": [3, 5], "ms per question": [100.5, 100], "key-value cache, MiB": [1.5, 1]}
    assert [panel.get_xlabel() for panel in panels] == list(costs)
    for panel, (pruned, dense) in zip(panels, costs.values(), strict=True):
        drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panel.lines}
        assert drawn["dense"] == [(dense, 80)]
        assert drawn["fitprune"] == [(pruned, 77.5)]
        assert drawn["vtw"] == [(pruned, 81.25)]
    assert panels[0].get_ylabel() == "b: points"


@pytest.mark.parametrize("varied", ["samples=none", "criterion=either", "score=fastv", "ratio=3"])
def test_what_cannot_be_varied_is_said(varied: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "--ablate", varied])
    assert stopped.value.code == 2
    assert varied in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "fitprune,nothing"], "unknown method 'nothing'"),
        (["--benchmarks", "gqa,nothing"], "nothing"),
        (["--benchmarks", ""], "no benchmark to run"),
        (["--benchmarks", "vqav2", "--model-path", "other"], "docs/evaluation.md"),  # an embedded model has its own
        (["--output", __file__], "is a file"),
        (["--ablate", "samples=4,500"], "--ablate samples=500"),
        (["--methods", "fastv samples=4"], "the schedule of fastv is not fitted"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fitprune.families.loading.load", lambda *args, **options: pytest.fail("vlm"))
    assert main(["sweep", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_ratios_go_on_in_the_same_steps() -> None:
    assert ratios("0,10,...,90") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert ratios("0.2, 0.3, …, 0.5, ") == [0.2, 0.3, 0.4, 0.5]
    assert ratios("50,60%") == [0.5, 0.6]
    for wrong in ("...,90", "10,...,90", "10,20,...", "20,10,...,5", "10,20,...,40,50"):
        with pytest.raises(argparse.ArgumentTypeError):
            ratios(wrong)
