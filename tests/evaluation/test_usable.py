"""One bad picture among many: its question is skipped and counted, in every command, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fitprune
from fitprune import FitPruneError
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.evaluation import loader
from fitprune.evaluation.benchmarks import pope
from fitprune.evaluation.usable import screen, screened, skipped_line
from fitprune.questions import Calibration, Question, read_questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten questions about pictures of the embedded set, two of which cannot be used."""
    chosen = [question for question in read_questions(embedded().questions) if question.image][:10]
    (tmp_path / "images").mkdir()
    lines = []
    for number, question in enumerate(chosen):
        whole = (embedded().images / str(question.image)).read_bytes()
        if number != 7:  # which is missing
            (tmp_path / "images" / f"{number}.jpg").write_bytes(whole[:900] if number == 2 else whole)
        lines.append({"question_id": number, "image": f"{number}.jpg", "text": question.text})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def run(*command: str, folder: Path) -> int:
    return main([*command, "--question-file", str(folder / "q.jsonl"), "--image-folder", str(folder / "images"), "--device", "cpu"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_are_set_aside_with_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llava, questions = fitprune.load("embedded", device="cpu"), read_questions(folder / "q.jsonl")
    found = screen(llava, questions, folder / "images")
    assert [question.question_id for question in found if question.unusable] == [2, 7]
    assert "2.jpg" in found[2].unusable
    assert [question.visual for question in found].count(True) == 8
    assert capsys.readouterr().out.count("skipped: question") == 2
    assert skipped_line(found, "so").startswith("skipped: 2 of 10 questions")
    assert skipped_line(questions, "so") == ""
    with pytest.raises(FitPruneError, match=r"2\.jpg"):
        screen(llava, questions, folder / "images", strict=True)
    with pytest.raises(FitPruneError, match="no picture of these questions can be used"):
        screen(llava, questions, folder)
    assert screen(llava, [Question("t", None, "Why?")], folder)[0].unusable == ""


def test_a_calibration_is_made_of_the_others_and_looks_when_it_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llava = fitprune.load("embedded", device="cpu")
    made = screened(llava, Calibration(folder / "q.jsonl", folder / "images"))
    assert capsys.readouterr().out == ""
    assert [question.question_id for question in made.questions()] == [0, 1, 3, 4, 5, 6, 8, 9]
    assert made.questions() == made.questions()
    assert capsys.readouterr().out.count("2 of 10 calibration questions skipped") == 1


def test_eval_answers_the_others_and_goes_on_where_it_was_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "eval",
        "--reduction-ratio",
        "0.5",
        "--samples",
        "4",
        "--batch-size",
        "3",
        "--max-new-tokens",
        "4",
        "--output",
        str(folder / "runs"),
    ]
    assert run(*command, folder=folder) == 0
    assert "skipped: 2 of 10 questions" in capsys.readouterr().out
    for path in (folder / "runs").glob("*.jsonl"):
        answers = lines(path)
        assert [answer["question_id"] for answer in answers] == list(range(10))
        assert [answer["question_id"] for answer in answers if "skipped" in answer["metadata"]] == [2, 7]
        assert [answer["text"] for answer in answers if "skipped" in answer["metadata"]] == ["", ""]
        whole = path.read_text().splitlines(keepends=True)
        for cut in (2, 3, 7, 10):
            path.write_text("".join(whole[:cut]))
            assert run(*command, folder=folder) == 0
            assert [(one["question_id"], one["text"]) for one in lines(path)] == [(one["question_id"], one["text"]) for one in answers]
        break
    for number in (2, 7):
        (folder / "images" / f"{number}.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    capsys.readouterr()
    command[2] = "0"  # with all pictures there, another recipe would be fitted
    assert run(*command, folder=folder) == 0
    assert "2 questions were skipped earlier whose pictures can be used now" in capsys.readouterr().out
    (folder / "images" / "2.jpg").write_bytes(b"")
    assert run(*command, "--strict", "--overwrite", folder=folder) == 2
    assert "2.jpg" in capsys.readouterr().err


@pytest.mark.rest
def test_report_fit_and_the_authors_script_go_on_with_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--samples", "10", "--batch-size", "4"]
    assert run("report", "--reduction-ratio", "0.5", "--max-new-tokens", "2", *few, folder=folder) == 0
    said = capsys.readouterr().out
    assert "on 8 questions" in said
    assert "skipped: 2 of 10 questions" in said
    given = ["--calibration-file", str(folder / "q.jsonl"), "--image-folder", str(folder / "images"), "--device", "cpu"]
    fitting = ["fit", "--by", "mass", "--reduction-ratio", "0.5", "--output", str(folder / "fitted"), *given]
    assert main(fitting) == 0
    assert "2 of 10 calibration questions skipped" in capsys.readouterr().out
    assert main([*fitting, "--strict"]) == 2
    asked = ["--question-file", str(folder / "q.jsonl"), "--answers-file", str(folder / "a.jsonl"), "--reduction_ratio", "0"]
    assert loader.main([*asked, *given[2:], "--max_new_tokens", "2"], "embedded") == 0
    assert "skipped: 2 of 10 questions" in capsys.readouterr().out
    assert len(lines(folder / "a.jsonl")) == 10


def test_pope_takes_no_skipped_question_for_a_yes(tmp_path: Path) -> None:
    (tmp_path / "coco_pope_random.json").write_text('{"label": "yes"}\n{"label": "no"}\n{"label": "yes"}\n')
    asked = [{"question_id": number, "image": "a.jpg", "text": "Is it?", "category": "random"} for number in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, asked)))
    for skipped, worth in ((False, [1, 0, 1]), (True, [0, 0, 1])):
        metadata = {"skipped": "cannot read image"} if skipped else {}
        answers = [
            {"question_id": number, "text": text, "metadata": metadata if text == "" else {}} for number, text in enumerate(("", "", "Yes"))
        ]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, answers)))
        assert pope.evaluate(tmp_path, tmp_path / "q.jsonl", tmp_path / "a.jsonl")[1] == worth


def test_pictures_a_folder_deeper_or_spelled_otherwise_are_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images").rename(folder / "unpacked")
    (folder / "images").mkdir()
    (folder / "unpacked").rename(folder / "images" / "images")
    (folder / "images" / "images" / "3.jpg").rename(folder / "images" / "images" / "3.JPG")
    llava = fitprune.load("embedded", device="cpu")
    kept = screened(llava, Calibration(folder / "q.jsonl", folder / "images", 10)).questions()
    assert [question.question_id for question in kept] == [0, 1, 3, 4, 5, 6, 8, 9]
    assert f"9 images are in {folder}/images/images" in capsys.readouterr().out
    assert run("report", "--limit", "4", "--reduction-ratio", "0.5", "--by", "mass", folder=folder) == 0
    assert "skipped: 1 of 4" in capsys.readouterr().out
    assert run("report", "--limit", "4", "--reduction-ratio", "0.5", folder=folder / "images") == 2


def test_a_chunk_may_hold_none_but_bad_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--question-file", str(folder / "q.jsonl"), "--image-folder", str(folder / "images"), "--device", "cpu"]
    for chunk, said in ((2, "torn"), (7, "lost")):
        file = folder / f"{said}.jsonl"
        assert loader.main([*flags, "--num-chunks", "10", "--chunk-idx", str(chunk), "--answers-file", str(file)]) == 0
        assert [(line["question_id"], line["text"], "skipped" in line["metadata"]) for line in lines(file)] == [(chunk, "", True)]
        assert "skipped: 1 of 1" in capsys.readouterr().out
