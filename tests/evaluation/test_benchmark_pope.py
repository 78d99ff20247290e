"""POPE: the parse of an answer, the figures of a split, and the lines of the original script."""

import os
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import answer, answered, embedded_folder, lines, write_lines

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.pope import BENCHMARK, Split, evaluate, main, says_yes

ROOT = Path(__file__).parents[2]
DATA = embedded_folder("pope")
SPLITS = ("adversarial", "popular", "random")
OTHER = {"yes": "no", "no": "yes"}


def embedded_labels():
    """The label of each question of the embedded file, in its order, which takes the splits one after the other."""
    questions = lines(DATA / BENCHMARK.questions)
    labels = {split: iter(lines(DATA / f"coco/coco_pope_{split}.json")) for split in SPLITS}
    return questions, [next(labels[question["category"]])["label"] for question in questions]


@pytest.fixture
def folder(tmp_path):
    """Two splits of four and two questions, their lines mixed in the question file; ids and label ids differ."""
    for split, labels in (("popular", ["yes", "no", "yes", "no"]), ("adversarial", ["no", "yes"])):
        write_lines(tmp_path / f"coco/coco_pope_{split}.json", [{"question_id": 1, "label": label} for label in labels])
    categories = ["popular", "adversarial", "popular", "popular", "adversarial", "popular"]
    questions = [
        {"question_id": 10 + at, "image": "a.jpg", "text": f"q{at}", "category": category} for at, category in enumerate(categories)
    ]
    write_lines(tmp_path / BENCHMARK.questions, questions)
    return tmp_path


def run(folder, *said, ids=None):
    """Scores answers to the questions of `folder` in the order of `ids`."""
    ids = ids or range(10, 10 + len(said))
    path = write_lines(folder / "answers.jsonl", [answer(*pair) for pair in zip(ids, said, strict=True)])
    splits, worth = evaluate(folder / "coco", folder / BENCHMARK.questions, path)
    return {split.category: split for split in splits}, worth


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True), ("yes.", True), ("No", False), ("no", False), ("not", False), ("No.", False), ("No, it is", False),
        ("", True), ("NO", True), ("Not", True), ("NOT", True), ("none", True), ("nothing", True), ("maybe", True),
        ("There is no cat", False), ("It is not there. Yes", False), ("Yes. There is no cat", True), (". no", True),
        ("Well, no", False), ("n,o", False), ("No,there", True), ("no!", True), ("no\n", True), ("Yes\nno", True),
        ("  no", False), ("\tno", True), ("Yes and no", False), ("1.5 no", True),
    ],
)  # fmt: skip
def test_parse_is_by_whole_words_of_the_first_sentence(text, yes):
    assert says_yes(text) is yes


@pytest.mark.parametrize(
    ("said", "f1", "accuracy", "yes_ratio"), [("label", 100, 100, 50), ("other", 0, 0, 50), ("yes", 200 / 3, 50, 100), ("no", 0, 50, 0)]
)
def test_embedded_questions(tmp_path, said, f1, accuracy, yes_ratio):
    questions, labels = embedded_labels()
    texts = [{"label": label, "other": OTHER[label]}.get(said, said) for label in labels]
    path = answered(tmp_path / "answers.jsonl", questions, texts)
    result = find("pope").score(DATA, path, tmp_path / "out")
    assert result.headline == pytest.approx(f1)
    for split in SPLITS:
        assert result.details[f"{split} F1"] == pytest.approx(f1)
        assert result.details[f"{split} accuracy"] == pytest.approx(accuracy)
        assert result.details[f"{split} yes ratio"] == pytest.approx(yes_ratio)
    assert result.per_answer == [float(text == label) for text, label in zip(texts, labels, strict=True)]
    assert result.report.count("# samples: 132") == 3
    assert result.written == ()
    assert not (tmp_path / "out").exists()
    find("pope").check(DATA)


def test_mean_f1_of_splits_that_differ(tmp_path):
    questions, labels = embedded_labels()
    wrong = {"adversarial": "yes", "popular": None, "random": "no"}  # what is said; None: the truth
    texts = [wrong[question["category"]] or label for question, label in zip(questions, labels, strict=True)]
    result = BENCHMARK.score(DATA, answered(tmp_path / "a.jsonl", questions, texts), tmp_path)
    assert result.headline == pytest.approx((200 / 3 + 100 + 0) / 3)


def test_counts_by_position_in_the_split(folder):
    splits, worth = run(folder, "Yes", "yes", "Yes", "Yes", "no", "no")
    assert splits["popular"] == Split("popular", 4, true_yes=2, false_yes=1, true_no=1, false_no=0, said_yes=3)
    assert splits["adversarial"] == Split("adversarial", 2, true_yes=0, false_yes=1, true_no=0, false_no=1, said_yes=1)
    assert worth == [1, 0, 0, 1, 0, 1]


def test_an_answer_is_compared_with_the_label_of_its_question(folder):
    popular, said = [10, 12, 13, 15], ["yes", "no", "yes", "no"]
    assert run(folder, *said, ids=popular)[0]["popular"].accuracy == 1
    assert run(folder, *said[::-1], ids=popular[::-1])[0]["popular"].accuracy == 1  # in another order
    assert run(folder, *said[::-1], ids=popular)[0]["popular"].accuracy == 0
    assert run(folder, "no", ids=[15])[0]["popular"].accuracy == 1  # the fourth label, not the first


PINNED = [("1", "a cat", "yes"), ("1", "an ox", "no"), ("2", "a dog", "yes"), ("2", "a cup", "no")]


def pictured(folder, labels, questions=PINNED, **fields):
    """Labels and questions that both say what they are about, and the right answers to the questions."""
    number = "COCO_val2014_00000000000{}.jpg"
    write_lines(
        folder / "coco/coco_pope_popular.json",
        [{"image": number.format(at), "text": f"Is there {what} in the image?", "label": label, **fields} for at, what, label in labels],
    )
    asked = [
        {"question_id": at, "image": number.format(image), "text": f"Is there {what} in the imange?\nAnswer.", "category": "popular"}
        for at, (image, what, _) in enumerate(questions)
    ]
    write_lines(folder / BENCHMARK.questions, asked)
    return answered(folder / "answers.jsonl", asked, [label for _, _, label in questions])


@pytest.mark.parametrize("labels", [PINNED[::-1], [*PINNED[:1], ("3", "a cat", "no"), *PINNED[1:]], [*PINNED, PINNED[0]]])
def test_labels_of_another_revision_are_looked_up_and_that_is_said(folder, capsys, labels):
    file = pictured(folder, labels)
    result = BENCHMARK.score(folder, file, folder)
    assert result.headline == 100
    assert result.per_answer == [1, 1, 1, 1]
    moved = sum(label != question for label, question in zip(labels, PINNED, strict=False))
    assert result.report.count("looked up") == bool(moved)
    assert f"popular: {folder / 'coco/coco_pope_popular.json'} has another order" in result.report or not moved
    assert f"({moved} of 4 stood elsewhere)" in result.report or not moved


def test_labels_in_other_clothes(folder):
    """A JSON list, a name for JSON lines, pictures without COCO's prefix, the names that other tools give the fields."""
    file = pictured(folder, PINNED)
    labels = folder / "coco/coco_pope_popular.json"
    found = lines(labels)
    labels.write_text("\n[" + ",\n".join(str(one).replace("'", '"') for one in found) + "]")
    assert BENCHMARK.score(folder, file, folder).headline == 100
    write_lines(labels.with_suffix(".jsonl"), found)
    with pytest.raises(FitPruneError, match=r"popular\.json and .*popular\.jsonl are both labels of 'popular'"):
        BENCHMARK.score(folder, file, folder)
    labels.unlink()
    plain = [{"picture": one["image"][13:].upper(), "question": f"{one['text']} ", "label": one["label"].title()} for one in found[::-1]]
    write_lines(labels.with_suffix(".jsonl"), plain)
    result = BENCHMARK.score(folder, file, folder)
    assert (result.headline, "looked up" in result.report) == (100, True)


def test_what_labels_and_answers_are_not_about_is_refused(folder):
    with pytest.raises(
        FitPruneError, match=r"question 1, .*an ox.*000001\.jpg: .*popular\.json has no label for it; its line 2 is.*e3e3926"
    ):
        BENCHMARK.score(folder, pictured(folder, [PINNED[0], ("2", "an ox", "no"), *PINNED[2:]]), folder)
    with pytest.raises(FitPruneError, match=r"question 3, .* has no label for it: get"):
        BENCHMARK.score(folder, pictured(folder, PINNED[:3]), folder)
    with pytest.raises(FitPruneError, match="labels it both yes and no"):
        BENCHMARK.score(folder, pictured(folder, [PINNED[1], ("1", "a cat", "no"), PINNED[0]]), folder)
    with pytest.raises(FitPruneError, match="line 2 has no label, yes or no"):
        BENCHMARK.score(folder, pictured(folder, [PINNED[0], ("1", "an ox", "maybe")]), folder)
    file = pictured(folder, PINNED)
    others = lines(file)
    others[2]["prompt"] = others[0]["prompt"]
    with pytest.raises(FitPruneError, match=r"line 3 answers .*a cat.*, but question 2 of .*a dog.*: give the file that was asked"):
        BENCHMARK.score(folder, write_lines(file, others), folder)
    with pytest.raises(FitPruneError, match="line 5 answers question 0 again, after line 1: score one run"):
        BENCHMARK.score(folder, write_lines(file, [*others[:2], *lines(pictured(folder, PINNED))[2:], others[0]]), folder)


def test_labels_that_do_not_say_what_they_are_about_must_be_as_many_as_the_questions(folder):
    run(folder, "yes")
    write_lines(folder / "coco/coco_pope_popular.json", [{"label": "yes"}] * 5)
    with pytest.raises(FitPruneError, match=r"popular\.json has 5 labels for 4 questions: get output/coco"):
        BENCHMARK.score(folder, folder / "answers.jsonl", folder)


def test_ids_that_repeat_do_not_tell_splits_apart(folder):
    questions = lines(folder / BENCHMARK.questions)
    questions[3]["question_id"] = questions[1]["question_id"]
    write_lines(folder / BENCHMARK.questions, questions)
    with pytest.raises(FitPruneError, match="has question 11 twice"):
        run(folder, "yes", ids=[10])


def test_prints_the_lines_of_the_original(folder, capsys):
    run(folder, "Yes", "No", "Yes", "Yes", "yes", "no")
    arguments = ["--annotation-dir", str(folder / "coco"), "--question-file", str(folder / BENCHMARK.questions)]
    assert main([*arguments, "--result-file", str(folder / "answers.jsonl")]) == 0
    rule = "=" * 36
    assert capsys.readouterr().out == (
        "Category: adversarial, # samples: 2\nTP\tFP\tTN\tFN\t\n1\t0\t1\t0\n"
        "Accuracy: 1.0\nPrecision: 1.0\nRecall: 1.0\nF1 score: 1.0\nYes ratio: 0.5\n"
        f"1.000, 1.000, 1.000, 1.000, 0.500\n{rule}\n"
        "Category: popular, # samples: 4\nTP\tFP\tTN\tFN\t\n2\t1\t1\t0\n"
        "Accuracy: 0.75\nPrecision: 0.6666666666666666\nRecall: 1.0\nF1 score: 0.8\nYes ratio: 0.75\n"
        f"0.800, 0.750, 0.667, 1.000, 0.750\n{rule}\n"
    )


def test_shares_of_nothing_are_zero_and_an_empty_split_counts_for_nothing(folder):
    splits, _ = run(folder, "no", "no", "no", ids=[10, 12, 13])
    assert (splits["popular"].precision, splits["popular"].recall, splits["popular"].f1) == (0, 0, 0)
    assert splits["popular"].report.splitlines()[-2] == "0.000, 0.333, 0.000, 0.000, 0.000"
    assert splits["adversarial"].samples == 0
    assert splits["adversarial"].report.splitlines()[-2] == "0.000, 0.000, 0.000, 0.000, 0.000"
    run(folder, "yes", "no", ids=[10, 12])
    assert BENCHMARK.score(folder, folder / "answers.jsonl", folder).headline == 100


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_figures_are_those_of_their_definitions(pairs):
    """(said yes, is yes); F1 in the form 2TP / (2TP + FP + FN)."""
    both = [sum(pair == kind for pair in pairs) for kind in ((True, True), (True, False), (False, False), (False, True))]
    split = Split("x", len(pairs), *both, said_yes=sum(said for said, _ in pairs))
    true_yes, false_yes, _, false_no = both
    wrong = Fraction(false_yes + false_no)
    assert split.accuracy == pytest.approx(float(1 - wrong / len(pairs)))
    assert split.f1 == pytest.approx(float(2 * true_yes / (2 * true_yes + wrong)) if true_yes else 0)
    assert split.yes_ratio == pytest.approx(sum(said for said, _ in pairs) / len(pairs))
    assert 0 <= split.precision <= 1
    low, high = sorted([split.precision, split.recall])
    assert low - 1e-12 <= split.f1 <= high + 1e-12


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda d: (d / "answers.jsonl").unlink(), "does not exist"),
        (lambda d: (d / "answers.jsonl").write_text(""), "holds no answers"),
        (lambda d: write_lines(d / "answers.jsonl", [answer(99, "yes")]), "line 1 answers question 99, not in"),
        (lambda d: write_lines(d / "answers.jsonl", [{"question_id": 10, "text": None}]), "line 1 needs"),
        (lambda d: write_lines(d / "answers.jsonl", [answer(10, "yes")] * 5), "line 2 answers question 10 again"),
        (lambda d: write_lines(d / "coco/coco_pope_popular.json", [{"text": "q"}]), "line 1 has no label"),
        (lambda d: [file.unlink() for file in (d / "coco").iterdir()], "holds no coco_pope_"),
        (lambda d: [file.rename(d / "coco/coco_pope_x.json") for file in (d / "coco").iterdir()], "answers no question"),
    ],
)
def test_bad_files_are_one_line_and_status_2(folder, capsys, break_it, says):
    run(folder, "yes", "no")
    break_it(folder)
    with pytest.raises(FitPruneError, match=says):
        BENCHMARK.score(folder, folder / "answers.jsonl", folder)
    arguments = ["--annotation-dir", str(folder / "coco"), "--question-file", str(folder / BENCHMARK.questions)]
    assert main([*arguments, "--result-file", str(folder / "answers.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_missing_is_said(folder, capsys):
    with pytest.raises(SystemExit) as done:
        main([])
    assert done.value.code == 2
    assert "required: --annotation-dir" in capsys.readouterr().err
    (folder / "val2014").mkdir()
    with pytest.raises(FitPruneError, match=r"coco_pope_random\.json.*docs/evaluation\.md"):
        BENCHMARK.check(folder)


def test_other_files_in_the_label_folder_are_passed_over_and_splits_without_labels_do_not_count(folder):
    (folder / "coco/.DS_Store").write_bytes(b"\0")
    (folder / "coco/coco_pope_adversarial.json").unlink()
    splits, worth = run(folder, "yes", "yes", "no", "yes", "yes", "no")
    assert list(splits) == ["popular"]
    assert splits["popular"].accuracy == 1
    assert worth is None


def arguments(folder):
    run(folder, "yes", "no")
    return [
        "--annotation-dir", str(folder / "coco"), "--question-file", str(folder / BENCHMARK.questions),
        "--result-file", str(folder / "answers.jsonl"),
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["LLaVA_1.5/llava", "LLaVA_NEXT/llava", "LLaVA_HR/llava_hr"])
def test_entry_points(place, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval_pope.py", *arguments(folder)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / place / "eval/eval_pope.py"), run_name="__main__")
    assert done.value.code == 0
    assert "Category: popular, # samples: 1" in capsys.readouterr().out


def test_as_a_script(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "llava/eval/eval_pope.py", *arguments(folder)]
    done = subprocess.run(command, cwd=ROOT / "LLaVA_1.5", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Category: adversarial, # samples: 1\n")
