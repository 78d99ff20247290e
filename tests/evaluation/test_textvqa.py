"""The TextVQA score and the script around it."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks.textvqa import main, question_of, scored_with, soft_accuracy

SHORT = "Answer the question using a single word or phrase."
IMAGE = "003a8ae2ef43b901"


def annotation(question, answers, image_id=IMAGE):
    return {"question": question, "question_id": 34602, "image_id": image_id, "answers": answers, "set_name": "val"}


def answer(prompt, text, image_id=IMAGE):
    return {"question_id": image_id, "prompt": prompt, "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.json"
    entries = [
        annotation("What is the Brand?", ["nokia"] * 3 + ["Nokia."] + ["toshiba"] * 2 + ["dell", "hp", "acer", "lg"]),
        annotation("what number is written?", ["2"] * 3 + ["two"] * 6 + ["7"]),
        annotation("what number is written?", ["9"] * 10, image_id="other"),
    ]
    path.write_text(json.dumps({"dataset_name": "textvqa", "dataset_version": "0.5.1", "data": entries}))
    return path


def evaluate(annotations, answers):
    return scored_with(annotations).score(annotations.parent, answers, annotations.parent)


def write(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_worth_by_the_number_of_people_who_agree(count, expected):
    people = ["yes"] * count + [f"other{i}" for i in range(10 - count)]
    assert soft_accuracy("Yes.", people) == pytest.approx(expected, abs=1e-12)
    assert soft_accuracy("Yes.", people[::-1]) == pytest.approx(expected, abs=1e-12)


def brute(prediction, people):
    """The definition, word for word (on answers that are normal already)."""
    worth = {}
    for unique in set(people):
        values = []
        for left_out in range(10):
            others = [person for i, person in enumerate(people) if i != left_out]
            values.append(min(1, others.count(unique) / 3))
        worth[unique] = sum(values) / 10
    return worth.get(prediction, 0)


@given(st.lists(st.sampled_from("pqrst"), min_size=10, max_size=10), st.sampled_from("pqrstu"))
def test_soft_accuracy_is_its_definition_to_the_bit(people, prediction):
    assert soft_accuracy(prediction, people) == brute(prediction, people)


def test_both_sides_are_normalised():
    assert soft_accuracy("None", ["0"] * 10) == 1
    assert soft_accuracy("the t-shirt", ["T shirt"] * 10) == 1
    assert soft_accuracy("dont", ["don't"] * 10) == 1
    assert soft_accuracy("", ["the"] * 10) == 1  # both are nothing


@pytest.mark.parametrize("count", [0, 9, 11])
def test_ten_answers_are_needed(count):
    with pytest.raises(FitPruneError, match="needs 10"):
        soft_accuracy("x", ["x"] * count)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        (f"What IS it?\nReference OCR token: A, B\n{SHORT}", "what is it?"),
        (f"Reference OCR token: A, B\nWhat is it?\n{SHORT}", "what is it?"),
        (f"Reference OCR token:\nWhat is it?\nReference OCR token: {SHORT}", "what is it?"),
        (f"What is it?\n{SHORT}", "what is it?"),
        ("Reference OCR token: A\nWhat is it?", "reference ocr token: a"),  # two lines: the first, whatever it says
        (f"Reference OCR token:\n{SHORT}", "reference ocr token:"),
        ("OCR tokens: A, B. Question: What is it? Short answer:", "what is it?"),
        ("OCR tokens: A\nQuestion: What\nis it? Short answer: Short answer:", "what\nis it?"),
        ("OCR tokens: Question: a Question: b Short answer:", "a question: b"),
        (f"OCR tokens: A\nReference OCR token: Question: q Short answer:\n{SHORT}", "q"),  # the first rule wins
        ("what number is written ?", "what number is written ?"),  # ours: no instruction line
        (" Padded \nx", " padded "),
    ],
)
def test_the_question_inside_a_prompt(prompt, question):
    assert question_of(prompt) == question


@pytest.mark.parametrize(
    "prompt",
    [
        f"a\nb\n{SHORT}",  # three lines without OCR tokens
        f"a\nReference OCR token:\n{SHORT}",  # the mark needs its space when it does not begin the prompt
        f"a\nReference OCR token: x\n{SHORT}\n",
        "OCR tokens: A. Question: What is it?",
        "OCR tokens: A\nWhat is it?",
    ],
)
def test_a_prompt_without_a_question(prompt):
    with pytest.raises(FitPruneError, match="no TextVQA question"):
        question_of(prompt)


def test_answers_are_joined_by_image_and_question(tmp_path, annotations):
    result = write(
        tmp_path / "r.jsonl",
        answer(f"WHAT is the brand?\nReference OCR token: NOKIA\n{SHORT}", "Nokia"),  # 4 of 10
        answer(f"what number is written?\n{SHORT}", "two"),  # 9 of 10
        answer("what number is written?", "7"),  # 1 of 10
        answer("what number is written?", "7", image_id="other"),  # the same question about another image
        answer("What is the brand?", "Toshiba"),  # 2 of 10
    )
    score = evaluate(annotations, result)
    assert score.details["samples"] == 5
    assert score.per_answer == pytest.approx([1, 1, 0.3, 0, 0.6])
    assert score.headline == score.details["accuracy"] == pytest.approx(58.0)


def test_prints_the_lines_of_the_original(tmp_path, annotations, capsys):
    result = write(
        tmp_path / "llava.v1.jsonl",
        answer("what number is written?", "7"),
        answer("what is the brand?", "x"),
        answer("what is the brand?", "nokia"),
    )
    assert main(["--annotation-file", str(annotations), "--result-file", str(result)]) == 0
    assert capsys.readouterr().out == "llava.v1\nSamples: 3\nAccuracy: 43.33%\n\n"


def test_a_folder_in_order_of_names(tmp_path, annotations, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder / "b.jsonl", answer("what is the brand?", "x"))
    write(folder / "a.jsonl", answer("what is the brand?", "nokia"))
    (folder / "notes.txt").write_text("")
    assert main(["--annotation-file", str(annotations), "--result-dir", str(folder)]) == 0
    assert capsys.readouterr().out == ("a\nSamples: 1\nAccuracy: 100.00%\n\nb\nSamples: 1\nAccuracy: 0.00%\n\nSkipping notes.txt\n")


def good(folder):
    return write(folder / "good.jsonl", answer("what is the brand?", "nokia"))


def torn(folder):
    path = good(folder)
    path.write_text(path.read_text() + '{"question_id": "00')
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: d / "nowhere.jsonl", "nowhere.jsonl does not exist"),
        (torn, "good.jsonl line 2 is torn"),
        (lambda d: write(d / "r.jsonl", answer("who is this?", "x")), "line 1.*'who is this\\?' is not in the annot"),
        (lambda d: write(d / "r.jsonl", answer("what is the brand?", "x", "elsewhere")), "line 1.*'elsewhere'"),
        (lambda d: write(d / "r.jsonl", answer("a\nb\nc", "x")), "line 1.*no TextVQA question"),
        (lambda d: write(d / "r.jsonl", {"question_id": IMAGE, "text": "x"}), "line 1 needs"),
        (lambda d: write(d / "r.jsonl", answer("what is the brand?", None)), "line 1 needs"),
        (lambda d: write(d / "r.jsonl", answer("what is the brand?", "x", [1])), "line 1 needs"),
        (lambda d: write(d / "r.jsonl"), "holds no answers"),
        (lambda d: d, "cannot read"),
    ],
)
def test_a_bad_answers_file_is_one_line_and_status_2(tmp_path, annotations, capsys, make, says):
    path = make(tmp_path)
    with pytest.raises(FitPruneError, match=says):
        evaluate(annotations, path)
    assert main(["--annotation-file", str(annotations), "--result-file", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ('{"data": [', "torn"),
        ("[]", "no list 'data'"),
        ('{"data": 5}', "no list 'data'"),
        ('{"data": [5]}', "entry 1"),
        ('{"data": [{"image_id": "x", "question": "q", "answers": "yes"}]}', "entry 1"),
        ('{"data": [{"image_id": "x", "answers": []}]}', "entry 1"),
        (json.dumps({"data": [annotation("what is the brand?", ["a"] * 9)]}), "needs 10"),
        (b"\xff\xfe", "torn"),
    ],
)
def test_a_bad_annotation_file(tmp_path, content, says, capsys):
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FitPruneError, match=says):
        evaluate(path, good(tmp_path))
    assert main(["--annotation-file", str(path), "--result-file", str(tmp_path / "good.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_missing_is_said(annotations, tmp_path, capsys):
    for arguments in ([], ["--result-file", "x"]):
        with pytest.raises(SystemExit) as done:
            main(arguments)
        assert done.value.code == 2
    assert main(["--annotation-file", str(annotations)]) == 2
    assert main(["--annotation-file", str(annotations), "--result-dir", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 4


def test_runs_as_a_module(tmp_path, annotations):
    command = [sys.executable, "-m", "fitprune.evaluation.benchmarks.textvqa", "--annotation-file", str(annotations)]
    failed = subprocess.run([*command, "--result-file", "nowhere"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1


def test_a_skipped_question_is_wrong_also_where_people_said_next_to_nothing(tmp_path):
    truth = tmp_path / "annotations.json"
    truth.write_text(json.dumps({"data": [annotation("What is written?", ["a"] * 10)]}))  # spelled as VQA's evaluations compare: nothing
    lines = [answer("What is written?", ""), answer("What is written?", "") | {"metadata": {"skipped": "torn"}}]
    assert evaluate(truth, write(tmp_path / "r.jsonl", *lines)).per_answer == [1.0, 0.0]
