"""SEED-Bench: exact letters, accuracy by kind and data type, the file for the leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile
from fitprune.evaluation.benchmarks.seed import ANNOTATIONS, BENCHMARK, evaluate, main, score

KINDS = {"Scene Understanding": 1, "Text Understanding": 9, "Action Recognition": 10}


def annotations(path: Path, *questions: tuple[Any, int, str, str]) -> Path:
    """Questions of (id, kind, data type, letter)."""
    names = ("question_id", "question_type_id", "data_type", "answer")
    asked = [dict(zip(names, question, strict=True)) for question in questions]
    path.write_text(json.dumps({"question_type": KINDS, "questions": asked}))
    return path


def answers(path: Path, *lines: tuple[Any, str]) -> Path:
    path.write_text("".join(json.dumps({"question_id": key, "prompt": "q", "text": text}) + "\n" for key, text in lines))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return annotations(
        tmp_path / ANNOTATIONS,
        ("101669", 9, "image", "A"),
        ("v5006", 10, "video", "B"),
        ("3", 1, "image", "C"),
        (4, 1, "image", "D"),
        ("5", 1, "image", "A"),
    )


def test_an_answer_is_right_to_the_character(truth: Path, tmp_path: Path) -> None:
    file = answers(
        tmp_path / "a.jsonl",
        (101669, "A"),  # the annotation's "101669"
        ("v5006", "B."),  # not the letter
        (3, "A"),  # the later line wins
        (3, "C"),
        ("5", "A"),  # text is not the number 5
        (4, "d"),
        (77, "A"),  # nobody asked
    )
    result = evaluate(truth, file)
    assert result.report.split("\n") == [
        "Scene Understanding: 33.33%",
        "Text Understanding: 100.00%",
        "Action Recognition: 0.00%",
        "Total accuracy: 40.00%",
        "image accuracy: 50.00%",
        "video accuracy: 0.00%",
    ]
    assert result.headline == 40
    assert list(result.details) == [line.split(":")[0] for line in result.report.split("\n")]
    assert result.per_answer == [1, 0, 0, 1, 0, 0, 0]


def test_what_the_original_cannot_divide_is_said(tmp_path: Path) -> None:
    truth = annotations(tmp_path / ANNOTATIONS, ("1", 9, "image", "A"))
    result = evaluate(truth, answers(tmp_path / "a.jsonl", (1, "B")))
    assert result.report.endswith("Total accuracy: 0.00%\nimage accuracy: 0.00%\nvideo accuracy: nan%")
    assert "video accuracy" not in result.details


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(list(KINDS.values())), st.sampled_from(["image", "video"]), st.booleans()), min_size=1))
def test_the_total_is_the_mean_over_questions(tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, str, bool]]) -> None:
    folder = tmp_path_factory.mktemp("seed")
    truth = annotations(folder / "t.json", *((str(at), kind, data, "A") for at, (kind, data, _) in enumerate(asked)))
    file = answers(folder / "a.jsonl", *((at, "A" if right else "B") for at, (_, _, right) in enumerate(asked)))
    details = evaluate(truth, file).details
    assert details["Total accuracy"] == pytest.approx(100 * sum(right for *_, right in asked) / len(asked))
    for name in ("image", "video"):
        of_type = [right for _, data, right in asked if data == name]
        assert details.get(f"{name} accuracy") == (sum(of_type) / len(of_type) * 100 if of_type else None)
    for name, number in KINDS.items():
        of_kind = [right for kind, _, right in asked if kind == number]
        assert details.get(name) == (sum(of_kind) / len(of_kind) * 100 if of_kind else None)


def test_the_upload_lists_every_question_in_the_annotations_order(truth: Path, tmp_path: Path) -> None:
    lines = ((5, "x"), (4, "D"), ("v5006", "B"), (3, "C"), (101669, "A"))
    result = score(tmp_path, answers(tmp_path / "a.jsonl", *lines), tmp_path / "out")
    assert [json.loads(line) for line in result.written[0].read_text().splitlines()] == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "v5006", "prediction": "B"},
        {"question_id": "3", "prediction": "C"},
        {"question_id": 4, "prediction": "D"},
        {"question_id": "5", "prediction": "x"},
    ]
    part = score(tmp_path, answers(tmp_path / "a.jsonl", *lines[1:]), tmp_path / "part")
    assert (part.written, part.headline) == ((), 80)
    assert not (tmp_path / "part").exists()


def test_the_script(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = answers(tmp_path / "a.jsonl", (101669, "A"))
    flags = ["--annotation-file", str(truth), "--result-file", str(file)]
    assert main(flags) == 0
    assert "Total accuracy: 20.00%\nimage accuracy: 25.00%\nvideo accuracy: 0.00%\n" in (out := capsys.readouterr().out)
    assert out.endswith("\n1 of 5 questions are answered; the others count as wrong\n")
    assert main([*flags, "--result-upload-file", str(tmp_path / "u.jsonl")]) == 2  # as the original: figures, then stops
    printed = capsys.readouterr()
    assert "Total accuracy: 20.00%" in printed.out
    assert "no answer to question 'v5006'" in printed.err
    assert not (tmp_path / "u.jsonl").exists()
    with pytest.raises(SystemExit) as done:
        main(flags[:2])
    assert done.value.code == 2
    assert "required: --result-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "no questions with their types"),
        ('{"question_type": {}, "questions": []}', "no questions with their types"),
        ('{"question_type": {}, "questions": [{"question_id": "1"}]}', "no questions with their types"),
        ("{", "torn or not JSON"),
        (
            '{"question_type": {"x": 1}, "questions": [{"question_id": "1", "question_type_id": 2, "data_type": "image", "answer": "A"}]}',
            "unnamed type 2",
        ),
    ],
)
def test_a_bad_annotation_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / ANNOTATIONS).write_text(content)
    with pytest.raises(FitPruneError, match=said) as caught:
        evaluate(tmp_path / ANNOTATIONS, answers(tmp_path / "a.jsonl", (1, "A")))
    assert ANNOTATIONS in str(caught.value)


def test_what_is_no_letter_is_wrong_and_said(tmp_path: Path) -> None:
    questions = []
    for number, letter in enumerate("ABA", start=1):
        one = {"question_id": str(number), "question_type_id": 1, "data_type": "image", "answer": letter}
        questions.append({**one, "choice_a": "a red one", "choice_b": "Blue."})
    content = {"question_type": {"Kind": 1}, "questions": questions}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ANNOTATIONS).write_text(json.dumps(content))
    file = answers(tmp_path / "a.jsonl", (1, "A red one."), (2, "blue"), (3, "B"))
    result = BENCHMARK.score(tmp_path / "data", file, tmp_path)
    assert result.headline == 0
    assert result.report.endswith("\n2 answers name no letter, which is wrong by the official rule; said in words, the right choice: 2")
    file = answers(tmp_path / "a.jsonl", (1, "A"), (2, "B."), (3, "B"))
    assert "\n1 answer names no letter" in BENCHMARK.score(tmp_path / "data", file, tmp_path).report
    file = answers(tmp_path / "a.jsonl", (1, "A"), (2, "A"))
    plain = evaluate(tmp_path / "data" / ANNOTATIONS, file).report
    said = "2 of 3 questions are answered; the others count as wrong"
    assert BENCHMARK.score(tmp_path / "data", file, tmp_path).report == f"{plain}\n{said}"
    file = answers(tmp_path / "a.jsonl", ("1", "A"), ("2", "A"))  # ids as the annotation writes them, not as answers carry them
    with pytest.raises(FitPruneError, match=r"a\.jsonl answers no question of .*\(ids like '1', there like 1\)"):
        evaluate(tmp_path / "data" / ANNOTATIONS, file)


def test_the_embedded_questions_can_be_answered_all_right(tmp_path: Path) -> None:
    data = embedded().data / BENCHMARK.folder
    BENCHMARK.check(data)
    questions = BENCHMARK.read(data / BENCHMARK.questions)
    letters = {one["question_id"]: one["answer"] for one in json.loads((data / ANNOTATIONS).read_text())["questions"]}
    for suffix, figure in (("", 100), (".", 0)):
        with AnswersFile(tmp_path / "a.jsonl", questions, "m", overwrite=True) as file:
            file.write([letters[str(q.question_id)] + suffix for q in questions])
        result = BENCHMARK.score(data, tmp_path / "a.jsonl", tmp_path)
        assert {*result.details.values()} == {figure}
        assert {"Total accuracy", "image accuracy", "video accuracy"} < {*result.details}
        assert len(result.written[0].read_text().splitlines()) == len(questions)
    for question in questions:
        assert (data / BENCHMARK.images / str(question.image)).is_file()
