"""Chunks of a run: cut and joined, they are the whole run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.evaluation.chunks import begun, chunk_file, merge, slices
from fitprune.questions import Question, chunk


def ask(count: int) -> list[Question]:
    return [Question(number, None, f"q{number}") for number in range(count)]


@given(st.integers(1, 40), st.integers(1, 45))
def test_slices_are_all_that_the_loader_cuts(count: int, num_chunks: int) -> None:
    questions = ask(count)
    parts = slices(questions, num_chunks)
    assert [question for part in parts for question in part] == questions
    assert parts == [chunk(questions, num_chunks, index) for index in range(len(parts))]
    assert len(parts) <= num_chunks
    if len(parts) < num_chunks:  # and the loader refuses the rest
        with pytest.raises(FitPruneError, match="out of range"):
            chunk(questions, num_chunks, len(parts))


def answer(folder: Path, questions: list[Question], num_chunks: int) -> list[str]:
    lines = []
    for index, part in enumerate(slices(questions, num_chunks)):
        written = [json.dumps({"question_id": one.question_id}) + "\n" for one in part]
        chunk_file(folder, num_chunks, index).write_text("".join(written))
        lines += written
    return lines


def test_joined_in_the_order_of_the_questions(tmp_path: Path) -> None:
    questions = ask(23)
    lines = answer(tmp_path, questions, 11)  # which makes eight files
    assert merge(tmp_path, questions, 11) == tmp_path / "merge.jsonl"
    assert (tmp_path / "merge.jsonl").read_text() == "".join(lines)
    lines = answer(tmp_path, questions, 23)  # 10 comes after 9, not after 1
    merge(tmp_path, questions, 23)
    assert (tmp_path / "merge.jsonl").read_text() == "".join(lines)


def test_a_chunk_that_is_not_finished_is_named(tmp_path: Path) -> None:
    questions = ask(5)
    answer(tmp_path, questions, 2)
    path = chunk_file(tmp_path, 2, 1)
    whole = path.read_text()
    for torn, done in ((whole[:-1], 1), (whole.splitlines(keepends=True)[0], 1), (whole + "{", 2), (whole * 2, 4)):
        path.write_text(torn)
        with pytest.raises(FitPruneError, match=rf"2_1.jsonl has {done} of 2 answers: .* --chunk-idx 1 "):
            merge(tmp_path, questions, 2)
    path.unlink()
    with pytest.raises(FitPruneError, match="has 0 of 2"):
        merge(tmp_path, questions, 2)
    assert not (tmp_path / "merge.jsonl").exists()


def test_what_was_begun_is_known_by_its_files(tmp_path: Path) -> None:
    assert begun(tmp_path / "nowhere") == begun(tmp_path) == 0
    for name in ("merge.jsonl", "a_b.jsonl", "3_x.jsonl"):
        (tmp_path / name).write_text("")
    assert begun(tmp_path) == 0
    chunk_file(tmp_path, 4, 3).write_text("")
    assert begun(tmp_path) == 4
    chunk_file(tmp_path, 2, 0).write_text("")
    with pytest.raises(FitPruneError, match=r"in 2 and 4 chunks.*--overwrite"):
        begun(tmp_path)
