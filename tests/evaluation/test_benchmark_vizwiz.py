"""VizWiz's upload file: every question, in order, spelled as VQA's evaluations compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.vizwiz import main

BENCHMARK = find("vizwiz")
PLEASE = "When the provided information is insufficient, respond with 'Unanswerable'."
SHORT = "Answer the question using a single word or phrase."


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def question(number: int) -> dict[str, Any]:
    image = f"VizWiz_test_{number:08d}.jpg"
    return {"question_id": number, "image": image, "text": f"What's in this picture\n{PLEASE}\n{SHORT}"}


def answer(number: int, text: str) -> dict[str, Any]:
    return {"question_id": number, "prompt": question(number)["text"], "text": text, "metadata": {}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "llava_test.jsonl", question(2), question(0), question(1))
    return tmp_path


def test_all_questions_in_the_order_of_the_question_file(data: Path) -> None:
    answers = write(data / "a.jsonl", answer(0, "Two."), answer(1, "x"), answer(2, "The T-shirt"), answer(1, "None"), answer(7, "?"))
    result = BENCHMARK.score(data, answers, data / "new" / "upload")
    assert result.headline is None
    assert result.details == {"questions": 3, "answered": 3}
    assert result.written == (data / "new" / "upload" / "a.json",)
    assert json.loads(result.written[0].read_text()) == [
        {"image": "VizWiz_test_00000002.jpg", "answer": "t shirt"},
        {"image": "VizWiz_test_00000000.jpg", "answer": "2"},
        {"image": "VizWiz_test_00000001.jpg", "answer": "0"},  # the last answer counts, and "none" is a number word
    ]


def test_some_of_the_questions_give_no_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write(data / "a.jsonl", answer(0, "a"), answer(2, "b"))
    result = BENCHMARK.score(data, answers, data / "upload")
    assert result.written == ()
    assert "2 of 3 questions" in result.report
    assert not (data / "upload").exists()
    flags = ["--annotation-file", str(data / "llava_test.jsonl"), "--result-file", str(answers)]
    assert main([*flags, "--result-upload-file", str(data / "up.json")]) == 2
    assert "answer the rest first" in capsys.readouterr().err
    assert not (data / "up.json").exists()


def test_the_script_writes_what_the_benchmark_does(data: Path) -> None:
    answers = write(data / "a.jsonl", *(answer(number, f"It's {number}!") for number in range(3)))
    flags = ["--annotation-file", str(data / "llava_test.jsonl"), "--result-file", str(answers)]
    assert main([*flags, "--result-upload-file", str(data / "deep" / "up.json")]) == 0
    (made,) = BENCHMARK.score(data, answers, data).written
    assert (data / "deep" / "up.json").read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("lines", "says"),
    [('{"question_id": 0', "line 1 is torn"), ('{"question_id": 0}\n', "line 1 needs question_id and text"), ("", "holds no answers")],
)
def test_bad_answers(data: Path, lines: str, says: str) -> None:
    (data / "a.jsonl").write_text(lines)
    with pytest.raises(FitPruneError, match=says):
        BENCHMARK.score(data, data / "a.jsonl", data)


def test_a_question_without_an_image(data: Path) -> None:
    write(data / "llava_test.jsonl", {"question_id": 0, "text": question(0)["text"]})
    with pytest.raises(FitPruneError, match="question 0 has no image"):
        BENCHMARK.score(data, write(data / "a.jsonl", answer(0, "a")), data)


def test_answers_to_other_questions_of_the_same_numbers(data: Path) -> None:
    others = [{**answer(number, "a"), "prompt": f"Is it {number}?\nAnswer."} for number in range(2)]
    with pytest.raises(FitPruneError, match=r"line 1 answers 'Is it 0\?.*, but question 0 of .*llava_test\.jsonl is .*: give the file"):
        BENCHMARK.score(data, write(data / "a.jsonl", *others), data)
    with pytest.raises(FitPruneError, match=r"a\.jsonl answers no question of .*\(ids like 'x', there like \d\)"):
        BENCHMARK.score(data, write(data / "a.jsonl", {**answer(0, "a"), "question_id": "x"}), data)


@settings(deadline=None)
@given(st.permutations(range(6)), st.lists(st.text(max_size=8), min_size=6, max_size=6))
def test_the_order_of_the_answers_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int], texts: list[str]) -> None:
    data = tmp_path_factory.mktemp("vizwiz")
    write(data / "llava_test.jsonl", *(question(number) for number in range(6)))
    made = []
    for name, numbers in (("sorted", sorted(order)), ("shuffled", order)):
        answers = write(data / f"{name}.jsonl", *(answer(number, texts[number]) for number in numbers))
        made.append(BENCHMARK.score(data, answers, data).written[0].read_bytes())
    assert made[0] == made[1]
    assert [line["image"] for line in json.loads(made[0])] == [question(number)["image"] for number in range(6)]
