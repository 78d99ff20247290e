"""The answers file: its format, and resuming after a cut at any byte."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile, model_id
from fitprune.questions import Question

QUESTIONS = [
    Question("5eed", "a.png", "What number is written?\nAnswer the question using a single word or phrase."),
    Question("5eed", "a.png", "wo ist die Tür?\n\u2028"),  # the id repeats; text beyond ASCII; an odd line separator
    Question(3, "b.png", 'quotes " and \\ backslash'),
]
TEXTS = ["72", "im Süden", ""]


def write_all(path, questions=QUESTIONS, texts=TEXTS, model="m"):
    with AnswersFile(path, questions, model) as answers:
        answers.write(texts)
    return path


def resume(path, questions=QUESTIONS, texts=TEXTS, model="m"):
    """Open again and answer what is left one by one; how many were there already."""
    with AnswersFile(path, questions, model) as answers:
        found = answers.done
        for text in texts[found:]:
            answers.write([text])
        assert answers.done == len(questions)
    return found


def without_id(line):
    return {key: value for key, value in json.loads(line).items() if key != "answer_id"}


def assert_resumes(path, whole, cut, questions=QUESTIONS, texts=TEXTS):
    """Cut the finished file `whole` to `cut` bytes, resume, and compare with the uninterrupted file."""
    path.write_bytes(whole[:cut])
    found = resume(path, questions, texts)
    after = path.read_bytes()
    kept, before = after.split(b"\n")[:found], whole.split(b"\n")
    assert kept == before[:found]  # untouched, their random ids too
    assert found == sum(1 for end in line_ends(whole) if end <= cut)
    assert after.endswith(b"\n")
    assert after.count(b"\n") == len(questions)
    assert [without_id(line) for line in after.splitlines()] == [without_id(line) for line in whole.splitlines()]


def line_ends(whole):
    """Lengths of the file at which one more answer is complete (its newline may still be missing)."""
    return [i for i, byte in enumerate(whole) if byte == ord("\n")]


def test_a_line_has_the_original_keys_in_the_original_order(tmp_path):
    first, second, third = write_all(tmp_path / "a.jsonl").read_bytes().splitlines()
    entry = json.loads(first)
    assert list(entry) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert len(entry["answer_id"]) == 22
    assert entry["answer_id"] != json.loads(second)["answer_id"]
    assert (entry["question_id"], entry["text"], entry["model_id"], entry["metadata"]) == ("5eed", "72", "m", {})
    assert [json.loads(line)["prompt"] for line in (first, second, third)] == [q.text for q in QUESTIONS]
    assert json.loads(third)["question_id"] == 3
    assert first == json.dumps(entry).encode()


def test_the_name_of_a_model():
    assert model_id("liuhaotian/llava-v1.5-7b") == "llava-v1.5-7b"
    assert model_id("/data/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert model_id("out/llava-v1.5-7b/checkpoint-500") == "llava-v1.5-7b_checkpoint-500"
    assert model_id("checkpoint-500") == "checkpoint-500"
    assert model_id("embedded") == "embedded"


def test_resumes_after_a_cut_at_every_byte(tmp_path):
    whole = write_all(tmp_path / "whole.jsonl").read_bytes()
    for cut in range(len(whole) + 1):
        assert_resumes(tmp_path / "cut.jsonl", whole, cut)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_resumes_whatever_the_texts_are(data):
    text = st.text(st.characters(), max_size=12)  # surrogates included
    ids = st.one_of(st.integers(), text)
    questions = [Question(i, None, t) for i, t in data.draw(st.lists(st.tuples(ids, text), min_size=1, max_size=5))]
    texts = data.draw(st.lists(text, min_size=len(questions), max_size=len(questions)))
    with tempfile.TemporaryDirectory() as folder:
        whole = write_all(Path(folder, "whole"), questions, texts).read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        assert_resumes(Path(folder, "cut"), whole, cut, questions, texts)


def test_zeros_after_a_whole_line(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = write_all(path).read_bytes()
    for end in (0, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end] + b"\0" * 100)
        assert resume(path) == (0 if end == 0 else 3 if end == len(whole) else 1)
        assert path.read_bytes().startswith(whole[:end])
        assert b"\0" not in path.read_bytes()


def test_cut_twice_and_zeros_left_by_a_crash(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = write_all(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with AnswersFile(path, QUESTIONS, "m") as answers:
        answers.write(TEXTS[answers.done : answers.done + 1])
    path.write_bytes(path.read_bytes()[:-3] + b"\0" * 100)
    resume(path)
    assert [without_id(line) for line in path.read_bytes().splitlines()] == [without_id(line) for line in whole.splitlines()]


def test_nothing_is_answered_twice(tmp_path):
    path = write_all(tmp_path / "a.jsonl")
    before = path.read_bytes()
    with AnswersFile(path, QUESTIONS, "m") as answers:
        assert (answers.done, answers.remaining) == (3, [])
        answers.write([])
        with pytest.raises(ValueError, match="0 questions"):
            answers.write(["once more"])
    assert path.read_bytes() == before


def test_answers_are_on_disk_after_each_write(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    path = tmp_path / "a.jsonl"
    with AnswersFile(path, QUESTIONS, "m") as answers:
        for count, text in enumerate(TEXTS, start=1):
            answers.write([text])
            assert path.read_bytes().count(b"\n") == count
            assert answers.done == count
            assert answers.remaining == QUESTIONS[count:]
            assert synced[-1] == path.stat().st_size
    assert len(synced) == 3


def test_overwrite_starts_anew_even_on_another_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("my shopping list\n")
    with AnswersFile(path, QUESTIONS, "m", overwrite=True) as answers:
        assert answers.done == 0
        answers.write(["x"])
    assert path.read_bytes().count(b"\n") == 1


def test_folders_are_created(tmp_path):
    assert write_all(tmp_path / "x" / "y" / "a.jsonl").exists()


OTHER_ID = [Question("5eee", "a.png", QUESTIONS[0].text), *QUESTIONS[1:]]
OTHER_TYPE = [*QUESTIONS[:2], Question("3", "b.png", QUESTIONS[2].text)]
OTHER_TEXT = [QUESTIONS[0], Question("5eed", "a.png", QUESTIONS[1].text.strip()), QUESTIONS[2]]


@pytest.mark.parametrize(
    ("questions", "model", "says"),
    [
        (OTHER_ID, "m", "line 1 answers question '5eed', not '5eee'"),
        (OTHER_TYPE, "m", "line 3 answers question 3, not '3'"),
        (OTHER_TEXT, "m", "line 2 answers another text"),
        (QUESTIONS[:2], "m", "line 3 is one more than the 2 questions"),
        (QUESTIONS, "n", "line 1 comes from model 'm', not 'n'"),
        (QUESTIONS[::-1], "m", "line 1 answers question"),
    ],
)
def test_a_file_of_another_run_is_refused_and_left_alone(tmp_path, questions, model, says):
    path = write_all(tmp_path / "a.jsonl")
    before = path.read_bytes()
    with pytest.raises(FitPruneError, match=says) as caught:
        AnswersFile(path, questions, model)
    assert "--overwrite" in str(caught.value)
    assert "a.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole.replace(b'"text"', b'"txt"', 1),
        lambda whole: whole.replace(b'"72"', b"72", 1),
        lambda whole: whole.replace(b'"question_id": 3', b'"question_id": 3.0'),
        lambda whole: whole[:30] + b"\n" + whole,  # torn in the middle, not at the end
        lambda whole: whole + whole.splitlines()[0],  # one more, without its newline
        lambda whole: whole + b'{"question_id": "5e',  # all is answered: the start of a line is not ours
        lambda whole: b"the only copy of a diary",  # an unfinished last line, but not of an answer
        lambda whole: b"\x89PNG\r\n\x1a\n",
        lambda whole: b'{"version": 1}',
        lambda whole: b"[]\n",
    ],
)
def test_somebody_elses_data_is_never_cut(tmp_path, damage):
    path = write_all(tmp_path / "a.jsonl")
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(FitPruneError, match="cannot be resumed"):
        AnswersFile(path, QUESTIONS, "m")
    assert path.read_bytes() == damaged


def test_resumes_a_file_of_the_original_that_does_not_escape(tmp_path):
    """Another writer may leave letters unescaped and separate otherwise: complete lines count by content."""
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "alt", "question_id": q.question_id, "prompt": q.text, "answer_id": "x", "model_id": "m", "metadata": {}}
        for q in QUESTIONS[:1]
    ]
    torn = json.dumps({"question_id": "5eed", "prompt": QUESTIONS[1].text, "text": "Sü"}, ensure_ascii=False).encode()
    kept = json.dumps(lines[0], ensure_ascii=False).encode() + b"\n"
    path.write_bytes(kept + torn[:-3])  # inside a letter of two bytes
    assert resume(path) == 1
    assert path.read_bytes().startswith(kept)
    assert path.read_bytes().count(b"\n") == 3


def test_metadata_tells_runs_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    with AnswersFile(path, QUESTIONS, "m", metadata={"recipe": [1, 2]}) as answers:
        answers.write(["x"])
    assert json.loads(path.read_bytes())["metadata"] == {"recipe": [1, 2]}
    with AnswersFile(path, QUESTIONS, "m", metadata={"recipe": (1, 2)}) as answers:
        assert answers.done == 1
    for other in (None, {"recipe": [1, 3]}):
        with pytest.raises(FitPruneError, match="metadata"):
            AnswersFile(path, QUESTIONS, "m", metadata=other)


def test_a_path_that_cannot_be_opened(tmp_path):
    with pytest.raises(FitPruneError, match="cannot open answers file"):
        AnswersFile(tmp_path, QUESTIONS, "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(FitPruneError, match="cannot open answers file"):
        AnswersFile(tmp_path / "file" / "a.jsonl", QUESTIONS, "m")


def test_a_full_disk_is_said_and_resumed_from(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    with AnswersFile(path, QUESTIONS, "m") as answers:
        answers.write(TEXTS[:1])
        with monkeypatch.context() as patch:

            def full(handle):
                raise OSError(28, "No space left on device")

            patch.setattr(os, "fsync", full)
            with pytest.raises(FitPruneError, match="No space left"):
                answers.write(TEXTS[1:2])
        assert answers.done == 1
        with pytest.raises(ValueError, match="closed"):
            answers.write(TEXTS[1:2])
    resume(path)
    assert [json.loads(line)["text"] for line in path.read_bytes().splitlines()] == TEXTS


def test_a_string_is_not_a_list_of_answers(tmp_path):
    with AnswersFile(tmp_path / "a.jsonl", QUESTIONS, "m") as answers, pytest.raises(ValueError, match="list"):
        answers.write("abc")


def test_two_runs_on_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswersFile(path, QUESTIONS, "m") as first:
        first.write(["one"])
        before = path.read_bytes()
        for overwrite in (False, True):
            with pytest.raises(FitPruneError, match="another run is writing"):
                AnswersFile(path, QUESTIONS, "m", overwrite)
        assert path.read_bytes() == before
    with AnswersFile(path, QUESTIONS, "m") as again:
        assert again.done == 1
