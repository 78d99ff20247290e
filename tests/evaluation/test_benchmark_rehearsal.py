"""Scoring tried before a model is loaded: what would fail after the last answer fails first, by the run's own file names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import BENCHMARKS
from fitprune.evaluation.layout import with_pictures
from fitprune.evaluation.rehearsal import rehearse


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_embedded_counterpart_can_be_scored(name: str, tmp_path: Path) -> None:
    if name.startswith("mmbench"):
        pytest.importorskip("openpyxl")  # what its server takes
    benchmark = BENCHMARKS[name]
    data = embedded().data / benchmark.folder
    questions = benchmark.read(data / benchmark.questions)
    rehearse(benchmark, data, questions)
    rehearse(benchmark, data, benchmark.first(questions, 3))


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded().data / "pope", tmp_path / "pope"))


def test_labels_of_something_else_are_found_before_the_model_is_loaded(pope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = pope / "coco/coco_pope_random.json"
    label.write_text(label.read_text().replace("red", "violet"))
    assert main(["eval", "--benchmark", "pope", "--data", str(pope), "--model-path", "no/model", "--output", str(pope / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fitprune: error: POPE could not be scored afterwards: question ")
    assert "coco_pope_random.json has no label for it" in said
    assert said.count("\n") == 1


def test_lines_are_those_of_the_question_file(pope: Path) -> None:
    benchmark = BENCHMARKS["pope"]
    questions = benchmark.read(pope / benchmark.questions)
    lines = (pope / benchmark.questions).read_text().splitlines()
    other = {**json.loads(lines[1]), "text": "Is there a cat in the image?"}
    (pope / benchmark.questions).write_text("\n".join([lines[0], json.dumps(other), *lines[2:]]) + "\n")
    with pytest.raises(FitPruneError, match=r"afterwards: \S*llava_pope_test\.jsonl line 2 answers"):
        rehearse(benchmark, pope, questions)


def test_pictures_are_found_before_the_model_is_loaded_and_where_they_are(pope: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pope / "val2014").rename(pope / "moved")
    (pope / "val2014").mkdir()
    benchmark = BENCHMARKS["pope"]
    flags = ["eval", "--benchmark", "pope", "--data", str(pope), "--model-path", "no/model", "--output", str(pope / "out")]
    assert main(flags) == 2
    out = capsys.readouterr()
    assert f"images are in {pope / 'moved'}, not in {pope / 'val2014'}" in out.out
    assert "no checkpoint" in out.err or "no/model" in out.err
    questions = with_pictures(benchmark.read, pope / "val2014", pope)(pope / benchmark.questions)
    assert questions[0].image == str(pope / "moved" / "COCO_val2014_000000000000.jpg")
    shutil.rmtree(pope / "moved")
    assert main(flags) == 2
    assert "questions have no picture" in capsys.readouterr().err
    assert with_pictures(benchmark.read, pope / "val2014", pope)(pope / benchmark.questions)[0].image == "COCO_val2014_000000000000.jpg"
