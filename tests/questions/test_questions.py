"""Question files and their chunks."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.questions import Question, chunk, read_questions

OCR = "What is the brand?\nReference OCR token: DAKOTA, DIGITAL\nAnswer the question using a single word or phrase."


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_reads_every_kind_of_line_in_file_order(tmp_path):
    path = write(
        tmp_path / "q.jsonl",
        {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "text": OCR, "category": "default"},
        {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "text": "Another?\nAnswer."},  # id repeats
        {"question_id": 7, "image": "a/b.png", "text": "Is there a dog?", "category": "adversarial", "label": "yes"},
        {"question_id": "v5006", "text": "no picture"},
    )
    assert read_questions(path) == [
        Question("003a8ae2ef43b901", "003a8ae2ef43b901.jpg", OCR, "default"),
        Question("003a8ae2ef43b901", "003a8ae2ef43b901.jpg", "Another?\nAnswer.", None),
        Question(7, "a/b.png", "Is there a dog?", "adversarial"),
        Question("v5006", None, "no picture", None),
    ]


def test_a_number_and_its_text_stay_different_ids(tmp_path):
    path = write(tmp_path / "q.jsonl", {"question_id": 1, "image": "a", "text": "t"}, {"question_id": "1", "image": "a", "text": "t"})
    assert [q.question_id for q in read_questions(path)] == [1, "1"]


def test_only_a_newline_ends_a_line(tmp_path):
    text = "one\u2028two\u0085three\x0bfour\rfive"  # str.splitlines would cut at each
    path = tmp_path / "q.jsonl"
    entry = json.dumps({"question_id": 1, "image": "a", "text": text}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + entry.encode() + b"\r\n\n" + entry.encode())  # BOM, CRLF, blank line, no last \n
    assert [q.text for q in read_questions(path)] == [text, text]


def test_text_keeps_its_outer_white_space(tmp_path):
    path = write(tmp_path / "q.jsonl", {"question_id": 1, "image": "a", "text": "  what ? \n"})
    assert read_questions(path)[0].text == "  what ? \n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"question_id": 1, "image": "a", "te', "line 2 .*torn"),
        ("[1, 2]", "line 2 .*not a JSON object"),
        ('{"image": "a", "text": "t"}', "line 2 .*question_id"),
        ('{"question_id": 1, "image": "a"}', "line 2 .*'text'"),
        ('{"question_id": true, "image": "a", "text": "t"}', "line 2.*whole number or a string"),
        ('{"question_id": 1.5, "image": "a", "text": "t"}', "line 2.*whole number or a string"),
        ('{"question_id": null, "image": "a", "text": "t"}', "line 2.*whole number or a string"),
        ('{"question_id": 1, "image": 5, "text": "t"}', "line 2.*image must be a path"),
        ('{"question_id": 1, "image": "a", "text": ["t"]}', "line 2.*text must be a string"),
        ('{"question_id": 1, "image": "a", "text": "is <image> a cat?"}', "line 2.*leave it out"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = write(tmp_path / "q.jsonl", {"question_id": 1, "image": "a", "text": "t"}, line)
    with pytest.raises(FitPruneError, match=says) as caught:
        read_questions(path)
    assert "q.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_a_torn_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question_id": 1, "image": "a", "text": "\xff"}\n')
    with pytest.raises(FitPruneError, match=r"line 1 .*torn"):
        read_questions(path)


def test_missing_empty_and_unreadable_files(tmp_path):
    with pytest.raises(FitPruneError, match=r"nowhere\.jsonl does not exist"):
        read_questions(tmp_path / "nowhere.jsonl")
    with pytest.raises(FitPruneError, match="cannot read"):
        read_questions(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    with pytest.raises(FitPruneError, match="holds no questions"):
        read_questions(tmp_path / "empty.jsonl")


def test_chunks_are_slices_of_the_rounded_up_size():
    items = list(range(10))
    assert [chunk(items, 3, k) for k in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert chunk(items, 1, 0) == items
    assert [chunk(items, 6, k) for k in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    with pytest.raises(FitPruneError, match="5 slices"):  # rounding up leaves nothing for the sixth
        chunk(items, 6, 5)


@pytest.mark.parametrize(("num_chunks", "index"), [(3, 3), (3, -1), (0, 0), (-2, 0)])
def test_impossible_chunks(num_chunks, index):
    with pytest.raises(FitPruneError):
        chunk(list(range(10)), num_chunks, index)


def test_no_questions_have_no_chunk():
    with pytest.raises(FitPruneError, match="no questions"):
        chunk([], 2, 0)


@given(n=st.integers(1, 60), num_chunks=st.integers(1, 80))
def test_chunks_in_index_order_are_the_whole(n, num_chunks):
    items = list(range(n))
    size = math.ceil(n / num_chunks)
    expected = [items[i : i + size] for i in range(0, n, size)]
    assert [chunk(items, num_chunks, k) for k in range(len(expected))] == expected
    for k in range(len(expected), num_chunks + 1):
        with pytest.raises(FitPruneError):
            chunk(items, num_chunks, k)
