"""GQA: the conversion of answers, the official figures and tables, and the commands around them."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import answer, answered, embedded_folder, lines, write_lines

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.gqa import BENCHMARK, TRUTH, convert, convert_main, distribution, evaluate, main
from fitprune.evaluation.benchmarks.gqa import read_questions as read

ROOT = Path(__file__).parents[2]
DATA = embedded_folder("gqa")


def entry(text, truth, structural, semantic, group, entailed, *steps, balanced=True):
    return {
        "question": text,
        "answer": truth,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
        "groups": {"global": group, "local": "x"},
        "entailed": entailed,
        "semantic": [{"operation": step[0], "argument": step[1], "dependencies": []} for step in steps],
    }


SELECT = ("select", "dog (1)")
QUESTIONS = {
    "1": entry("What color is the dog?", "brown", "query", "attr", "color", ["1", "2", "3"], SELECT, ("query", "color")),
    "2": entry("Is the dog brown?", "yes", "verify", "attr", None, ["2"], SELECT, ("verify color", "brown")),
    "3": entry("Is there a dog?", "yes", "verify", "obj", None, [], SELECT, ("exist", "?"), balanced=False),
    "4": entry("What is it?", "brown", "query", "cat", "color", [], SELECT, ("query", "name")),
    "5": entry(
        "Is it left or right of it, then or now, there?", "left", "choose", "rel", "place", ["4"],
        ("select", "existing lamp (3)"), ("relate", "dog,left,s (1)"), ("choose name", "lamp|dog"),
    ),
}  # fmt: skip
SAID = {"1": "Brown.", "2": "No", "3": "yes", "4": "red", "5": "LEFT..."}
TABLES = """
Accuracy / structural type:
  choose: 100.00% (1 questions)
  query: 50.00% (2 questions)
  verify: 0.00% (1 questions)

Accuracy / semantic type:
  attr: 50.00% (2 questions)
  cat: 0.00% (1 questions)
  rel: 100.00% (1 questions)

Accuracy / steps number:
  1: 50.00% (2 questions)
  2: 50.00% (2 questions)

Accuracy / words number:
  3: 0.00% (1 questions)
  4: 0.00% (1 questions)
  5: 100.00% (1 questions)
  11: 100.00% (1 questions)
"""


def write(folder, questions=QUESTIONS, said=SAID):
    """A GQA folder, its predictions for the official tool, and the answers file, whose path is returned."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / TRUTH).write_text(json.dumps(questions))
    answers = write_lines(folder / "answers.jsonl", [answer(key, text) for key, text in said.items()])
    (folder / "data/testdev_balanced_predictions.json").write_text(json.dumps(convert(answers)))
    return answers


def official(folder, monkeypatch, *flags):
    monkeypatch.chdir(folder / "data")
    return main(["--tier", "testdev_balanced", *flags])


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("Yes.", "yes"), ("YES...", "yes"), ("U.S.", "u.s"), ("no. ", "no. "), (" left", " left"), ("", ""), ("..", ""),
        ("The dog", "the dog"), ("two", "two"), ("t-shirt!", "t-shirt!"), (".5", ".5"), ("Ärmel.", "ärmel"),
    ],
)  # fmt: skip
def test_conversion_takes_off_final_periods_and_lower_cases(tmp_path, text, prediction):
    source = write_lines(tmp_path / "a.jsonl", [answer("20", text), answer(21, text)])
    assert convert_main(["--src", str(source), "--dst", str(tmp_path / "sub/out.json")]) == 0
    expected = [{"questionId": "20", "prediction": prediction}, {"questionId": 21, "prediction": prediction}]
    assert json.loads((tmp_path / "sub/out.json").read_text()) == expected


@pytest.mark.parametrize(
    ("said", "right"), [(lambda a: a, 1), (lambda a: f"{a.capitalize()}.", 1), (lambda a: f"the {a}", 0), (lambda a: "nothing", 0)]
)
def test_embedded_questions(tmp_path, said, right):
    questions, truth = lines(DATA / BENCHMARK.questions), json.loads((DATA / TRUTH).read_text())
    texts = [said(truth[question["question_id"]]["answer"]) for question in questions]
    path = answered(tmp_path / "run.jsonl", questions, texts)
    result = find("gqa").score(DATA, path, tmp_path / "out")
    assert result.headline == result.details["Accuracy"] == 100 * right
    assert result.details["Binary"] == result.details["Open"] == result.details["Consistency"] == 100 * right
    assert (result.details["Distribution"] == 0) == bool(right)
    assert result.per_answer == [right] * len(questions)
    assert result.written == (tmp_path / "out/run_predictions.json",)
    assert json.loads(result.written[0].read_text()) == convert(path)
    assert {"structural type query", "semantic type rel", "steps number 2", "words number 5"} <= result.details.keys()
    assert "answered" not in result.report
    find("gqa").check(DATA)


def test_embedded_questions_all_answered_yes(tmp_path):
    questions, truth = lines(DATA / BENCHMARK.questions), json.loads((DATA / TRUTH).read_text())
    result = BENCHMARK.score(DATA, answered(tmp_path / "a.jsonl", questions, ["Yes"] * len(questions)), tmp_path)
    right = [one["answer"] == "yes" for one in truth.values()]
    assert result.headline == pytest.approx(100 * sum(right) / len(right))
    assert result.details["Open"] == 0
    assert result.per_answer == [float(value) for value in right]  # both files are in the same order
    assert 0 < result.details["Consistency"] < 100
    tables = result.report.split("Accuracy / ")[1:]
    assert [sum(int(row.split("(")[1].split()[0]) for row in table.splitlines() if "(" in row) for table in tables] == [len(questions)] * 4


@pytest.mark.parametrize("consistency", [False, True])
def test_prints_the_lines_of_the_original(tmp_path, monkeypatch, capsys, consistency):
    write(tmp_path)
    assert official(tmp_path, monkeypatch, *["--consistency"] * consistency) == 0
    head = "\nBinary: 50.00%\nOpen: 50.00%\nAccuracy: 50.00%\n"
    head += "Consistency: 25.00%\n" * consistency  # question 1: one of two that follow; question 5: none of one
    assert capsys.readouterr().out == f"{head}Distribution: 0.00 (lower is better)\n{TABLES}"


def test_score_of_an_answers_file(tmp_path):
    result = BENCHMARK.score(tmp_path, write(tmp_path), tmp_path / "out")
    assert result.headline == 50
    assert result.details["Consistency"] == 25
    assert result.details["Distribution"] == pytest.approx(1 / 300)  # color: (1 - 2)² / 2 for two questions; place: 0 for one
    assert result.per_answer is None  # question 3 is not balanced
    assert result.report.endswith(TABLES.removesuffix("\n"))


def test_part_of_the_questions_is_scored_and_said(tmp_path, monkeypatch, capsys):
    answers = write(tmp_path, said={"2": "yes", "4": "Brown", "1": "red"})
    result = BENCHMARK.score(tmp_path, answers, tmp_path)
    assert result.report.startswith("3 of 4 questions are answered; the figures are over these\nBinary: 100.00%\n")
    assert result.per_answer == [1, 1, 0]
    assert "Consistency" not in result.details  # question 3 follows from 1 and is not answered
    assert official(tmp_path, monkeypatch) == 2
    assert "1 of 5 questions have no prediction, 5 for one" in capsys.readouterr().err


def test_consistency_needs_the_questions_that_are_not_balanced_too(tmp_path, monkeypatch, capsys):
    write(tmp_path, said={key: text for key, text in SAID.items() if key != "3"})
    assert official(tmp_path, monkeypatch) == 0
    assert official(tmp_path, monkeypatch, "--consistency") == 2
    write(tmp_path, {key: value for key, value in QUESTIONS.items() if key != "3"})
    assert official(tmp_path, monkeypatch, "--consistency") == 2
    assert "consistency needs question 3" in capsys.readouterr().err


def test_predictions_to_other_questions_do_not_matter_and_the_last_of_two_counts(tmp_path):
    answers = write(tmp_path, said={**SAID, "6": "x"})
    assert BENCHMARK.score(tmp_path, answers, tmp_path).headline == 50
    write_lines(answers, [answer("4", "brown"), *lines(answers), answer("1", "x")])
    assert BENCHMARK.score(tmp_path, answers, tmp_path).headline == 25


def test_ids_are_not_of_another_type(tmp_path):
    answers = write(tmp_path, said={int(key): text for key, text in SAID.items()})
    with pytest.raises(FitPruneError, match=r"answers no question of .*ids like 1, there like '1'"):
        BENCHMARK.score(tmp_path, answers, tmp_path)


def test_without_groups_there_is_no_distribution(tmp_path):
    result = BENCHMARK.score(tmp_path, write(tmp_path, {"2": QUESTIONS["2"]}), tmp_path)
    assert "Distribution" not in result.report + str(result.details)
    assert "Consistency" not in result.details
    assert result.details["Open"] == 0


def test_distribution_of_one_case():
    given = [("a", "x", "x"), ("a", "x", "z"), ("a", "x", "y"), ("a", "y", "z"), ("b", "u", "v"), (None, "p", "q")]
    first = (1 - 3) ** 2 / 3 + (1 - 1) ** 2 / 1  # x: given once, right three times; y: once and once
    assert distribution(given) == pytest.approx((4 * first + 1 * 1) / 5 / 100)


TRIPLES = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from("xyz"), st.sampled_from("xyzw")))


@given(TRIPLES, st.randoms())
def test_distribution_looks_at_how_often_not_at_which(triples, random):
    groups = defaultdict(list)
    for group, right, said in triples:
        groups[group].append((right, said))
    groups.pop(None, None)
    alike = all(Counter(r for r, _ in one) == Counter(s for _, s in one) for one in groups.values())
    value = distribution(triples)
    assert value >= 0
    assert (value == 0) == alike
    shuffled = []
    for group, one in groups.items():
        said = [s for _, s in one]
        random.shuffle(said)
        shuffled += [(group, right, other) for (right, _), other in zip(one, said, strict=True)]
    assert distribution(shuffled) == pytest.approx(value)


@given(st.data())
def test_tables_are_parts_of_the_whole(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "gqa_questions.json"
    if not path.exists():
        path.write_text(json.dumps(QUESTIONS))
    said = {key: data.draw(st.sampled_from(["brown", "yes", "left"])) for key in QUESTIONS}
    scores = evaluate(read(path), said, consistency=True)
    for rows in scores.tables.values():
        assert sum(count for _, count in rows.values()) == 4
        assert sum(value * count for value, count in rows.values()) / 4 == pytest.approx(scores.metrics["Accuracy"])
    assert scores.metrics["Accuracy"] == pytest.approx((scores.metrics["Binary"] + scores.metrics["Open"]) / 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (d / TRUTH).unlink(), "does not exist"),
        (lambda d: (d / TRUTH).write_text('{"1": '), "torn"),
        (lambda d: (d / TRUTH).write_text("[]"), "does not map ids"),
        (lambda d: (d / TRUTH).write_text('{"1": {"question": "q"}}'), "question 1 lacks"),
        (lambda d: write(d, {"3": QUESTIONS["3"]}), "none of the questions is in|no balanced question"),
        (lambda d: (d / "data/testdev_balanced_predictions.json").write_text('{"1": "x"}'), "is not a list of questionId"),
        (lambda d: (d / "data/testdev_balanced_predictions.json").write_text('[{"questionId": "1"}]'), "is not a list"),
    ],
)
def test_bad_files_are_one_line_and_status_2(tmp_path, monkeypatch, capsys, change, says):
    answers = write(tmp_path)
    change(tmp_path)
    assert official(tmp_path, monkeypatch) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    if "questionId" not in says and "is not a list" not in says:  # `score` makes its own predictions
        with pytest.raises(FitPruneError, match=says):
            BENCHMARK.score(tmp_path, answers, tmp_path)


@pytest.mark.parametrize(("arguments", "says"), [([], "required: --src, --dst"), (["--src", "a"], "required: --dst")])
def test_what_to_convert_has_to_be_said(arguments, says, capsys):
    with pytest.raises(SystemExit) as done:
        convert_main(arguments)
    assert done.value.code == 2
    assert says in capsys.readouterr().err


def test_a_conversion_of_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert_main(["--src", "nowhere", "--dst", "b"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_is_refused(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    assert official(tmp_path, monkeypatch, "--grounding") == 2
    assert "grounding" in capsys.readouterr().err
    (tmp_path / TRUTH).unlink()
    (tmp_path / "data/images").mkdir()
    write_lines(tmp_path / BENCHMARK.questions, [])
    with pytest.raises(FitPruneError, match=r"testdev_balanced_questions\.json.*docs/evaluation\.md"):
        BENCHMARK.check(tmp_path)


@pytest.mark.parametrize("family", ["LLaVA_1.5", "LLaVA_NEXT", "LLaVA_HR"])
def test_entry_points(family, tmp_path, monkeypatch):
    answers = write(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert", "--src", str(answers), "--dst", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / family / "scripts/convert_gqa_for_eval.py"), run_name="__main__")
    assert done.value.code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == convert(answers)


def test_as_scripts(tmp_path):
    """As LLaVA's gqa.sh does: convert from the family's folder, evaluate in gqa/data."""
    predictions = tmp_path / "data/testdev_balanced_predictions.json"
    answers = write(tmp_path)
    predictions.unlink()
    for folder, command in (
        (ROOT / "LLaVA_1.5", ["scripts/convert_gqa_for_eval.py", "--src", answers, "--dst", predictions]),
        (tmp_path / "data", ["-m", "fitprune.evaluation.benchmarks.gqa", "--tier", "testdev_balanced"]),
    ):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "Accuracy: 50.00%" in done.stdout
