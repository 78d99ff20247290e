"""All eleven benchmarks on their embedded counterparts: answered densely and pruned, scored or made ready for a server."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedded.benchmarks import mmvet, vizwiz, vqav2
from embedded.benchmarks.encode import in_turn
from embedded.questions import one_of_each
from embedded.scene import draw
from fitprune import load
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.evaluation.benchmarks import BENCHMARKS
from fitprune.evaluation.normalise import normalise
from fitprune.families import VLM

LIMIT = 12  # all of VizWiz's, which hands in all or nothing
DATA = embedded().data
SCORED = {"textvqa", "gqa", "mme", "pope", "sqa", "seed"}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load("embedded", device="cpu")


def answers_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(row["answers"]).read_text().splitlines()]


def asked(name: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / BENCHMARKS[name].folder / file).read_text().splitlines()]


def check_vqav2(file: Path, said: dict[Any, str]) -> None:
    """The whole test split in its order, compared spelling, nothing where nothing was asked."""
    whole = asked("vqav2", "llava_vqav2_mscoco_test2015.jsonl")
    assert json.loads(file.read_text()) == [
        {"question_id": one["question_id"], "answer": normalise(said.get(one["question_id"], ""))} for one in whole
    ]
    assert len(whole) > len(said) == LIMIT


def check_vizwiz(file: Path, said: dict[Any, str]) -> None:
    """Every image of the question file with its answer."""
    whole = asked("vizwiz", "llava_test.jsonl")
    assert json.loads(file.read_text()) == [{"image": one["image"], "answer": normalise(said[one["question_id"]])} for one in whole]
    assert len(whole) == len(said) == LIMIT


def check_mmvet(file: Path, said: dict[Any, str]) -> None:
    """An object of two spaces' indent, from "v1_" and the number to the answer as it is."""
    assert file.read_text() == json.dumps({f"v1_{number}": text for number, text in said.items()}, indent=2)
    assert list(said) == [one["question_id"] for one in asked("mmvet", "llava-mm-vet.jsonl")]


def check_mmbench(file: Path, said: dict[Any, str]) -> None:
    """The table's rows without the columns that MMBench keeps, the answers in the seventh."""
    openpyxl = pytest.importorskip("openpyxl")
    (table,) = (DATA / file.parents[1].name).glob("*.tsv")
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")), delimiter="\t"))
    head, *made = openpyxl.load_workbook(file).active.iter_rows(values_only=True)
    assert head == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    for row, cells in zip(rows, made, strict=True):
        assert dict(zip(head, cells, strict=True)) == {
            **{name: row[name] or None for name in head if name != "prediction"},
            "index": int(row["index"]),
            "prediction": said.get(int(row["index"])) or None,
        }


CHECKS: dict[str, Callable[[Path, dict[Any, str]], None]] = {
    "vqav2": check_vqav2,
    "vizwiz": check_vizwiz,
    "mmvet": check_mmvet,
    "mmbench": check_mmbench,
    "mmbench_cn": check_mmbench,
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_runs_on_its_embedded_counterpart(
    name: str, vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fitprune.families.loading.load", lambda path, **options: vlm)
    if name.startswith("mmbench"):
        pytest.importorskip("openpyxl")  # what its server takes
    assert main(["eval", "--benchmark", name, "--limit", str(LIMIT), "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert BENCHMARKS[name].metric in out
    rows = json.loads((tmp_path / "runs" / name / "results.json").read_text())
    assert [(row["name"], row["benchmark"]) for row in rows] == [("dense", name), ("60%", name)]
    for row in rows:
        lines = answers_of(row)
        assert 0 < len(lines) <= LIMIT
        assert row["report"].rstrip() in out
        assert (row["headline"] is not None) == (name in SCORED)
        if name in SCORED:
            assert row["headline"] >= 0
        else:
            (file,) = map(Path, row["written"])
            CHECKS[name](file, {line["question_id"]: line["text"] for line in lines})
    dense, pruned = rows
    assert dense["alive"] == []
    assert pruned["alive"][-1] < dense["visual_tokens"]
    assert 0.6 <= pruned["visual_reduction"] < 0.61


def test_these_are_the_issues_eleven() -> None:
    eleven = "textvqa gqa mme pope sqa seed vqav2 vizwiz mmbench mmbench_cn mmvet"
    assert set(BENCHMARKS) == set(eleven.split()) == SCORED | set(CHECKS)
    for benchmark in BENCHMARKS.values():
        benchmark.check(DATA / benchmark.folder)


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "mmvet"])
def test_what_only_a_server_scores_can_be_answered(name: str, vlm: VLM) -> None:
    """Nothing tells how good answers are there, so here they are compared with what was drawn."""
    benchmark, data = BENCHMARKS[name], DATA / BENCHMARKS[name].folder
    questions = benchmark.read(data / benchmark.questions)
    right = 0
    for question in questions:
        index = int(Path(str(question.image)).stem.split("_")[-1])
        scene, text = draw(name, index), question.text.split("\n")[0]
        every = one_of_each(scene, vqav2.FAMILIES)
        drawn = every if name == "vqav2" else [in_turn(scene, (vizwiz if name == "vizwiz" else mmvet).FAMILIES)]
        (answer,) = (one.answer for one in drawn if one and one.text == text)
        said = vlm.ask(question.text, data / benchmark.images / str(question.image))
        right += said == answer
    assert right / len(questions) > 0.75


def test_a_part_of_mme_has_whole_pairs() -> None:
    mme, gqa = BENCHMARKS["mme"], BENCHMARKS["gqa"]
    questions = mme.read(DATA / mme.folder / mme.questions)
    assert [len(mme.first(questions, limit)) for limit in (1, 2, 3, 7, 10**6)] == [2, 2, 2, 6, len(questions)]
    assert mme.first(questions, None) == questions
    assert mme.first(questions, 7) == questions[:6]
    assert len(gqa.first(questions, 7)) == 7


def test_an_odd_limit_of_mme_is_scored(tmp_path: Path) -> None:
    flags = ["--limit", "3", "--no-dense", "--samples", "2", "--max_new_tokens", "2", "--output", str(tmp_path)]
    assert main(["eval", "--benchmark", "mme", *flags]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert len(answers_of(row)) == 2
