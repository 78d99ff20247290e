"""VQAv2's upload file: the whole test split in order, empty where nothing was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.vqav2 import main
from fitprune.evaluation.normalise import normalise

BENCHMARK = find("vqav2")
SPLIT = "llava_vqav2_mscoco_test-dev2015"


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def question(number: int) -> dict[str, Any]:
    return {"question_id": number, "image": f"COCO_test2015_{number:012d}.jpg", "text": f"What is {number}?\nAnswer."}


def answer(number: int, text: str) -> dict[str, Any]:
    return {"question_id": number, "prompt": question(number)["text"], "text": text}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", *(question(number) for number in (3, 1, 2, 4)))
    return tmp_path


def test_every_question_of_the_test_split_in_its_order(data: Path) -> None:
    answers = write(data / "a.jsonl", answer(2, "Two."), answer(3, "x"), answer(3, "It's a cat."), answer(99, "beyond"))
    result = BENCHMARK.score(data, answers, data / "upload")
    assert result.headline is None
    assert result.details == {"questions": 4, "answered": 2, "malformed lines": 0}
    assert json.loads(result.written[0].read_text()) == [
        {"question_id": 3, "answer": "it 's cat"},
        {"question_id": 1, "answer": ""},
        {"question_id": 2, "answer": "2"},
        {"question_id": 4, "answer": ""},
    ]


def test_lines_that_are_not_json_are_counted(data: Path) -> None:
    whole = [json.dumps(answer(number, str(number))) for number in (1, 2)]
    (data / "a.jsonl").write_bytes(f"{whole[0]}\n\n{whole[1]}\n".encode() + b'\xff\xfe\n{"question_id": 4, "te')
    result = BENCHMARK.score(data, data / "a.jsonl", data)
    assert result.details["malformed lines"] == 3  # a blank one, one of another encoding, a torn one
    assert result.details["answered"] == 2
    assert "3 malformed lines" in result.report


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("[1]\n", "line 1 needs question_id and text"),
        ('{"question_id": 1, "text": null}', "line 1 needs question_id and text"),
        ('{"question_id": "1", "text": "a"}\n', "answers no question"),  # a string is another question than the number
        ("", "answers no question"),
    ],
)
def test_answers_to_something_else(data: Path, lines: str, says: str) -> None:
    (data / "a.jsonl").write_text(lines)
    with pytest.raises(FitPruneError, match=says):
        BENCHMARK.score(data, data / "a.jsonl", data)


def test_the_script_finds_its_files_by_split_and_checkpoint(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "answers" / SPLIT / "llava" / "merge.jsonl", answer(1, "a b"))
    flags = ["--dir", str(data), "--split", SPLIT, "--ckpt"]
    assert main([*flags, "llava"]) == 0
    assert "1 of 4 questions answered" in capsys.readouterr().out
    assert json.loads((data / "answers_upload" / SPLIT / "llava.json").read_text())[1]["answer"] == "b"  # no article
    assert main([*flags, "other"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "other/merge.jsonl does not exist" in error


def test_the_whole_list_is_looked_for_before_a_run(data: Path) -> None:
    write(data / BENCHMARK.questions, question(1))
    (data / BENCHMARK.images).mkdir()
    BENCHMARK.check(data)
    (data / "llava_vqav2_mscoco_test2015.jsonl").unlink()
    with pytest.raises(FitPruneError, match=r"VQAv2 needs .*test2015.jsonl, which does not exist: docs/evaluation.md"):
        BENCHMARK.check(data)


@given(st.dictionaries(st.integers(0, 9), st.text(max_size=8), min_size=1), st.permutations(range(10)))
def test_each_answer_stands_at_its_question(tmp_path_factory: pytest.TempPathFactory, said: dict[int, str], order: list[int]) -> None:
    data = tmp_path_factory.mktemp("vqav2")
    write(data / "llava_vqav2_mscoco_test2015.jsonl", *(question(number) for number in order))
    answers = write(data / "a.jsonl", *(answer(number, text) for number, text in said.items()))
    (made,) = BENCHMARK.score(data, answers, data).written
    assert json.loads(made.read_text()) == [
        {"question_id": number, "answer": normalise(said[number]) if number in said else ""} for number in order
    ]
