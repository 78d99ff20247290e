"""MM-Vet's upload file: answers as they are, by "v1_" and the question's number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.mmvet import main

BENCHMARK = find("mmvet")


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_the_file_to_the_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write(
        tmp_path / "a.jsonl",
        {"question_id": 10, "prompt": "Why?", "text": 'The "T-shirt", it\'s 2.\nÉté'},
        {"question_id": 2, "prompt": "Who?", "text": "first"},
        {"question_id": "3", "prompt": "Who?", "text": ""},
        {"question_id": 2, "prompt": "Who?", "text": "None"},
    )
    assert main(["--src", str(answers), "--dst", str(tmp_path / "up" / "a.json")]) == 0
    assert "3 answers" in capsys.readouterr().out
    expected = '{\n  "v1_10": "The \\"T-shirt\\", it\'s 2.\\n\\u00c9t\\u00e9",\n  "v1_2": "None",\n  "v1_3": ""\n}'  # no spelling rules
    assert (tmp_path / "up" / "a.json").read_text() == expected
    asked = [{"question_id": key, "text": text} for key, text in ((2, "Who?"), (10, "Why?"), (5, "How?"))]
    write(tmp_path / BENCHMARK.questions, *asked)
    result = BENCHMARK.score(tmp_path, answers, tmp_path)
    assert result.report.splitlines()[1:] == [
        f"1 answer is to no question of {tmp_path / BENCHMARK.questions}, '3' for one, and counts for nothing",
        "2 of 3 questions are answered; MM-Vet's notebook needs them all",
    ]
    assert result.headline is None
    assert result.written[0].read_text() == expected


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--src", str(tmp_path / "none.jsonl"), "--dst", str(tmp_path / "a.json")]) == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err
    with pytest.raises(FitPruneError, match="line 1 needs"):
        BENCHMARK.score(tmp_path, write(tmp_path / "a.jsonl", {"question_id": 1, "text": None}), tmp_path)
    write(tmp_path / BENCHMARK.questions, {"question_id": 1, "text": "Who?"})
    with pytest.raises(FitPruneError, match=r"line 1 answers 'Why\?', but question 1 of .* is 'who\?'"):
        BENCHMARK.score(tmp_path, write(tmp_path / "a.jsonl", {"question_id": 1, "prompt": "Why?", "text": "x"}), tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_answers_may_be_as_long_as_llavas() -> None:
    assert BENCHMARK.max_new_tokens == 1024
