"""What ships inside agrees with itself: every question has its picture, and no picture serves two purposes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import fitprune
from fitprune import arguments
from fitprune.embedded import MODELS, embedded, model_path
from fitprune.embedded.__main__ import main as examples
from fitprune.evaluation.benchmarks import find
from fitprune.questions import read_questions

FILES = {
    "textvqa/llava_textvqa_val_v051_ocr.jsonl": "textvqa/train_images",
    "gqa/llava_gqa_testdev_balanced.jsonl": "gqa/data/images",
    "MME/llava_mme.jsonl": "MME/MME_Benchmark_release_version",
    "pope/llava_pope_test.jsonl": "pope/val2014",
    "calibration/statistical_analysis_data.jsonl": "calibration/images",
}  # question file: its pictures


@pytest.mark.parametrize(("questions", "images"), FILES.items())
def test_every_question_has_its_picture(questions: str, images: str) -> None:
    data = embedded().data
    asked = read_questions(data / questions)
    assert len(asked) > 100
    used = {str(question.image) for question in asked}
    there = {str(p.relative_to(data / images)) for p in (data / images).rglob("*.jpg")}
    assert used == there


def test_multiple_choice_questions_have_their_pictures() -> None:
    for name in ("sqa", "seed", "mmbench", "mmbench_cn"):
        benchmark = find(name)
        data = embedded().data / benchmark.folder
        asked = benchmark.read(data / benchmark.questions)
        assert len(asked) >= 8
        used = {str(question.image) for question in asked if question.image and question.content is None}
        there = {str(p.relative_to(data / benchmark.images)) for p in (data / benchmark.images).rglob("*.jpg")}
        assert used == there
        assert sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) < 130_000


def test_no_picture_serves_two_purposes() -> None:
    pictures = list(embedded().data.rglob("*.jpg"))
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in pictures}) == len(pictures)


def test_the_defaults_are_textvqa_with_ten_answers_each() -> None:
    data = embedded()
    truth = {(a["image_id"], a["question"]): a["answers"] for a in json.loads(data.annotations.read_text())["data"]}
    for question in read_questions(data.questions):
        assert (data.images / str(question.image)).is_file()
        assert len(truth[str(question.question_id), question.text.splitlines()[0]]) == 10


def test_recipes_of_the_embedded_model_are_fitted_on_its_own_calibration_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    data = embedded()
    parser = argparse.ArgumentParser()
    arguments.add_data(parser)
    arguments.add_recipe(parser)
    monkeypatch.chdir(data.data / "pope")
    for file in [*(data.data / name for name in FILES), Path("..", *Path(next(iter(FILES))).parts)]:
        used = arguments.calibration(parser.parse_args(["--question-file", str(file)]))
        assert (used.question_file, used.image_folder) == (data.calibration, data.calibration_images)
    mine = arguments.calibration(parser.parse_args(["--question-file", "/mine.jsonl", "--image-folder", "pictures"]))
    assert (mine.question_file, mine.image_folder) == ("/mine.jsonl", "pictures")


def test_it_stays_small() -> None:
    files = [path for path in embedded().model.parent.rglob("*") if path.is_file()]
    for name in MODELS:
        assert (model_path(name) / "model.safetensors").stat().st_size < 20e6
    assert sum(path.stat().st_size for path in files) < 65e6


KINDS = {"embedded": "llava", "embedded-next": "llava_next", "embedded-hr": "llava_hr", "embedded-qwen": "qwen3_vl"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_model_of_each_family_loads_by_name_and_answers(name: str, kind: str) -> None:
    vlm = fitprune.load(name, device="cpu")
    assert (vlm.name, vlm.model.config.model_type) == (name, kind)
    picture = next((embedded().data / "textvqa" / "train_images").glob("*.jpg"))
    assert vlm.ask("How many shapes are there?\nAnswer the question using a single word or phrase.", picture).isdigit()
    assert MODELS.keys() == KINDS.keys()


def test_all_of_it_is_in_the_wheel() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (patterns,) = re.findall(r'"fitprune\.embedded" = (\[.*\])', project)
    root = embedded().model.parent
    packed = {path for pattern in json.loads(patterns) for path in root.glob(pattern) if path.is_file()}
    files = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= packed


def test_examples_are_written_into_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examples([str(tmp_path / "new")]) == 0
    folder = tmp_path / "new"
    questions = read_questions(folder / "questions.jsonl")
    pictures = {str(question.image) for question in questions}
    assert {path.name for path in (folder / "images").iterdir()} == pictures >= {"a.jpg", "b.jpg"}
    known = {q.text: q for q in read_questions(embedded().questions)}
    assert all(question.text in known for question in questions)
    assert (folder / "picture.jpg").read_bytes() == embedded().picture.read_bytes()
    before = (folder / "questions.jsonl").read_bytes()
    assert examples([str(folder)]) == 2
    assert "there already" in capsys.readouterr().err
    assert examples([str(folder), "--overwrite"]) == 0
    assert (folder / "questions.jsonl").read_bytes() == before
    assert examples([str(folder / "picture.jpg")]) == 2
