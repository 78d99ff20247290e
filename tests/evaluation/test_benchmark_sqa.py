"""ScienceQA: the list of conversations, the letter in an answer, the figures and files of eval_science_qa."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import QUICK

from fitprune.cli import main as main_of_eval
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile
from fitprune.evaluation.benchmarks.sqa import AS_LLAVA_HR, BENCHMARK, FAILED, PLEASE, letter, main, read, score
from fitprune.evaluation.loader_choices import science

PROBLEMS = {  # id: number of choices, index of the right one
    "1": (2, 0),
    "2": (4, 1),
    "3": (5, 4),
    "4": (3, 2),
    "5": (2, 1),
    "9": (2, 0),  # of another split
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    problems = {pid: {"question": "?", "choices": ["x"] * count, "answer": right} for pid, (count, right) in PROBLEMS.items()}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", "4", "5"], "val": ["9"]}))
    return tmp_path


def answers(path: Path, *lines: tuple[Any, str, bool]) -> Path:
    """Lines of (id, answer, whether there was an image)."""
    entries = [{"question_id": pid, "prompt": "<image>\nq" if picture else "q", "text": text} for pid, text, picture in lines]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", FAILED),
        ("a", FAILED),
        (" A", FAILED),
        ("", FAILED),
        ("AB", FAILED),
        ("ABCDE", FAILED),  # not "one of the letters" though part of the word
        ("A.", FAILED),
        ("A. ", "A"),
        ("C. cat", "C"),
        ("C.cat", FAILED),
        ("F. cat", FAILED),
        ("Because", FAILED),
        ("The answer is B.", "B"),
        ("The answer is B", FAILED),  # nothing behind the letter
        ("The answer is B\n", FAILED),  # a line break is no character to the original's pattern
        ("The answer is Blue", "B"),
        ("So: The answer is D, see.", "D"),
        ("The answer is Z.", "Z"),
        ("the answer is B.", FAILED),
        ("The answer is b.", FAILED),
        ("The answer is A. The answer is A.", FAILED),  # twice, though the same
        ("A. or The answer is B.", "A"),  # the first rule that fits
    ],
)
def test_the_letter_that_an_answer_means(text: str, expected: str) -> None:
    assert letter(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("Because", "B"), ("C.cat", "C"), ("A.", FAILED), ("Fun", FAILED)])
def test_llava_hrs_reading_wants_no_period(text: str, expected: str) -> None:
    assert letter(text, any_start=True) == expected


def by_hand(text: str) -> str:
    """The rules by scanning the characters."""
    if text in list("ABCDE"):
        return text
    if text[:1] in list("ABCDE") and text[1:2] == "." and text[2:3] == " ":
        return text[0]
    lead, found, at = "The answer is ", [], 0
    while at < len(text):
        end = at + len(lead)
        if text[at:end] == lead and "A" <= text[end : end + 1] <= "Z" and text[end + 1 : end + 2] not in ("", "\n"):
            found.append(text[end])
            at = end + 2
        else:
            at += 1
    return found[0] if len(found) == 1 else FAILED


@given(st.lists(st.sampled_from(["The answer is ", "T", "A", "B", "Z", ".", " ", "\n", "x"]), max_size=7).map("".join))
def test_the_letter_is_found_as_by_hand(text: str) -> None:
    assert letter(text) == by_hand(text)


def test_every_problem_of_the_split_counts(base: Path) -> None:
    file = answers(
        base / "a.jsonl",
        ("1", "B", True),  # the later line wins
        ("1", "A", True),
        ("2", "The answer is B.", False),
        ("3", "E. x", True),
        ("4", "D", True),  # a letter beyond the three choices
        ("9", "A", True),  # another split's
        (5, "B", True),  # a number is not the id "5"
    )
    result = score(base, file, base / "out")
    assert result.report.splitlines() == [
        "Total: 5, Correct: 3, Accuracy: 60.00%, IMG-Accuracy: 66.67%",
        f"2 answers are to no question of {base / 'pid_splits.json'}, '9' for one, and count for nothing",
        "4 of 5 questions are answered; the others count as wrong",
    ]
    with pytest.raises(FitPruneError, match=r"b\.jsonl answers no question of .*\(ids like 5, there like '1'\)"):
        score(base, answers(base / "b.jsonl", (5, "B", True)), base / "out")
    assert result.headline == pytest.approx(200 / 3)
    assert result.details == {"Total": 5, "Correct": 3, "Accuracy": 60.0, "IMG-Accuracy": result.headline}
    assert result.per_answer == [0, 1, 1, 1, 0, 0, 0]
    output, summary = (json.loads(path.read_text()) for path in result.written)
    assert [path.name for path in result.written] == ["a_output.jsonl", "a_result.json"]
    assert [one["question_id"] for one in output["correct"]] == ["1", "2", "3"]
    assert output["incorrect"] == [
        {"question_id": "4", "parsed_ans": "D", "ground_truth": "C", "question": "<image>\nq", "pred": "D", "is_multimodal": True},
        {"question_id": "5", "parsed_ans": FAILED, "ground_truth": "B", "question": "Unknown", "pred": FAILED, "is_multimodal": False},
    ]
    assert summary == {
        "acc": 60.0,
        "correct": 3,
        "count": 5,
        "results": {"1": 0, "2": 1, "3": 4, "4": -1, "5": -1},
        "outputs": {"1": "A", "2": "The answer is B.", "3": "E. x", "4": "D", "5": FAILED},
    }


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_figures_are_shares_of_what_was_asked(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sqa")
    count = data.draw(st.integers(1, 8))
    rights = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    said = data.draw(st.lists(st.sampled_from(["A", "B", "C", "x", None]), min_size=count, max_size=count))
    seen = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    problems = {str(at): {"choices": ["x", "y"], "answer": right} for at, right in enumerate(rights)}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    lines = [("unknown", "A", True), ("0", "x", False)]  # the first counts nowhere; of two answers the last one counts
    lines += [(str(at), text, picture) for at, (text, picture) in enumerate(zip(said, seen, strict=True)) if text]
    result = score(folder, answers(folder / "a.jsonl", *lines), folder)
    right = [at for at in range(count) if said[at] == "AB"[rights[at]]]
    illustrated = [at for at in range(count) if said[at] and seen[at]]
    assert result.details["Accuracy"] == len(right) / count * 100
    expected = len(set(right) & set(illustrated)) / len(illustrated) * 100 if illustrated else None
    assert result.headline == expected
    assert ("IMG-Accuracy: nan%" in result.report) == (not illustrated)


def test_the_script_prints_and_writes_what_the_original_does(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = answers(base / "a.jsonl", ("1", "Always", True), ("9", "A", False))
    flags = ["--base-dir", str(base), "--result-file", str(file)]
    written = ["--output-file", str(base / "o.json"), "--output-result", str(base / "r.json")]
    assert main([*flags, *written]) == 0
    notes = f"1 answer is to no question of {base / 'pid_splits.json'}, '9' for one, and counts for nothing\n"
    notes += "1 of 5 questions are answered; the others count as wrong\n"
    assert capsys.readouterr().out == "Total: 5, Correct: 0, Accuracy: 0.00%, IMG-Accuracy: 0.00%\n" + notes
    assert json.loads((base / "r.json").read_text())["results"]["1"] == -1
    assert len(json.loads((base / "o.json").read_text())["incorrect"]) == 5
    assert main(flags, any_start=True) == 0
    assert main([*flags, "--any-start"]) == 0
    assert capsys.readouterr().out == 2 * ("Total: 5, Correct: 1, Accuracy: 20.00%, IMG-Accuracy: 100.00%\n" + notes)
    assert main([*flags, "--split", "val"]) == 0
    assert capsys.readouterr().out.startswith("Total: 1, Correct: 1, Accuracy: 100.00%, IMG-Accuracy: nan%\n")


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["LLaVA_1.5/llava", "LLaVA_NEXT/llava", "LLaVA_HR/llava_hr"])
def test_each_familys_scripts(package: str, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def call(script: Path, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(script), *flags])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(script), run_name="__main__")
        assert done.value.code == 0
        return capsys.readouterr().out

    place = ROOT / package
    file = answers(base / "a.jsonl", ("1", "Always", True))
    out = call(place / "eval" / "eval_science_qa.py", "--base-dir", str(base), "--result-file", str(file))
    right = int(package.endswith("llava_hr"))  # whose own script takes the first letter of any word
    assert out.startswith(f"Total: 5, Correct: {right},")
    for name in ("model_vqa_science", "model_vqa_mmbench"):
        shown = call(place / "eval" / f"{name}.py", "--help")
        assert f"usage: {name}" in shown
        model = {"LLaVA_1.5/llava": "embedded", "LLaVA_NEXT/llava": "embedded-next"}.get(package, "embedded-hr")
        assert f"(default: {model})" in " ".join(shown.split())
    most: list[int] = []
    monkeypatch.setattr("fitprune.evaluation.loader.run", lambda args, read: most.append(args.max_new_tokens) or 0)
    call(place / "eval" / "model_vqa_science.py")
    assert most == [64 if right else 1024]  # LLaVA-HR's own limit
    for name in ("convert_mmbench_for_submission", "convert_seed_for_submission"):
        assert f"usage: {name}" in call(place.parent / "scripts" / f"{name}.py", "--help")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--split", "train"], "no split 'train': choose from test, val"),
        (["--options", "AB"], "only 2 letters"),
        (["--result-file", "gone.jsonl"], "gone.jsonl does not exist"),
        (["--base-dir", "nowhere"], "pid_splits.json does not exist"),
    ],
)
def test_bad_input_is_one_line(base: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    file = answers(base / "a.jsonl", ("1", "A", True))
    assert main(["--base-dir", str(base), "--result-file", str(file), *flags]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


@pytest.mark.parametrize("flags", [[], ["--base-dir", "x"], ["--result-file", "x"]])
def test_what_to_score_has_to_be_said(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(flags)
    assert done.value.code == 2
    assert "required: --" in capsys.readouterr().err


def test_an_answer_line_without_text_is_refused(base: Path) -> None:
    (base / "a.jsonl").write_text('{"question_id": "1", "prompt": "A"}\n')
    with pytest.raises(FitPruneError, match="line 1 needs question_id and text"):
        score(base, base / "a.jsonl", base)


def items(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def item(pid: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"id": pid, **more, "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "B"}]}


def test_the_questions_and_what_is_kept_as_their_prompts(tmp_path: Path) -> None:
    file = items(
        tmp_path / "q.json",
        item("21206", "<image>\nContext: x\nWhich?\nA. a\nB. b", image="21196/image.png"),
        item("2", "Which?\nA. a\n<image>", image="2/image.png"),
        item("3", " Which?\nA. a\n"),
        item("4", "Which?", image=None),
    )
    short, plain = read(file), read(file, single_pred_prompt=False)
    assert [q.question_id for q in short] == ["21206", "2", "3", "4"]
    assert [q.image for q in short] == ["21196/image.png", "2/image.png", None, None]
    assert [q.text for q in plain] == ["Context: x\nWhich?\nA. a\nB. b", "Which?\nA. a", "Which?\nA. a", "Which?"]
    assert [q.text for q in short] == [f"{q.text}\n{PLEASE}" for q in plain]
    for questions in (short, plain):
        assert [q.saved for q in questions] == [f"<image>\n{q.text}" if q.image else q.text for q in questions]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not a list"),
        ("[]", "not a list"),
        ("[{]", "torn or not JSON"),
        ('[{"id": "1"}]', "entry 1 has no id and conversation"),
        ('[{"id": "1", "conversations": []}]', "entry 1 has no id"),
        ("[7]", "entry 1 has no id"),
        ('[{"id": 1.5, "conversations": [{"value": "x"}]}]', "entry 1: id"),
        ('[{"id": "1", "image": 3, "conversations": [{"value": "x"}]}]', "must be text"),
    ],
)
def test_a_bad_question_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(FitPruneError, match=said) as caught:
        read(tmp_path / "q.json")
    assert "q.json" in str(caught.value)


def test_llava_hrs_rule_in_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own `sqa.sh`: 64 new tokens, and the first letter of any word; the answers are there, so none is asked."""
    data = embedded().data / BENCHMARK.folder
    questions = BENCHMARK.read(data / BENCHMARK.questions)[:8]
    truth = json.loads((data / "problems.json").read_text())
    file = tmp_path / "embedded-hr-dense-first8.jsonl"
    with AnswersFile(file, questions, "embedded-hr", metadata={"max_new_tokens": AS_LLAVA_HR.max_new_tokens}) as answers:
        answers.write(["ABCDE"[truth[q.question_id]["answer"]] + " it is" for q in questions])
    flags = ["--model-path", "embedded-hr", "--limit", "8", "--reduction-ratio", "0", "--output", str(tmp_path)]
    assert (AS_LLAVA_HR.max_new_tokens, BENCHMARK.max_new_tokens) == (64, 1024)
    assert main_of_eval(["eval", "--benchmark", "sqa", "--any-start", *flags]) == 0
    assert "read as LLaVA-HR does" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["headline"], row["details"]["Correct"]) == (100, 8)
    assert BENCHMARK.score(data, file, tmp_path).details["Correct"] == 0  # by LLaVA's rule none says a letter
    assert main_of_eval(["eval", "--benchmark", "gqa", "--any-start", *flags]) == 2
    assert "leave it out for GQA" in capsys.readouterr().err


def test_what_is_no_letter_is_wrong_and_said(base: Path, tmp_path: Path) -> None:
    file = answers(tmp_path / "a.jsonl", ("1", "X.", True), ("2", "the second", True), ("3", "E", True))
    result = BENCHMARK.score(base, file, tmp_path)
    assert result.details["Correct"] == 1
    assert result.report.endswith(
        "count as wrong\n2 answers name no letter, which is wrong by the official rule; said in words, the right choice: 1"
    )  # those without an answer are not among them
    file = answers(tmp_path / "a.jsonl", ("1", "B", True))
    assert "name no letter" not in BENCHMARK.score(base, file, tmp_path).report


def test_the_embedded_questions_can_be_answered_all_right(tmp_path: Path) -> None:
    data = embedded().data / BENCHMARK.folder
    BENCHMARK.check(data)
    questions = BENCHMARK.read(data / BENCHMARK.questions)
    truth = json.loads((data / "problems.json").read_text())
    assert {None} < {q.image for q in questions}
    for right in (True, False):
        with AnswersFile(tmp_path / "a.jsonl", questions, "m", overwrite=True) as file:
            file.write(["ABCDE"[truth[q.question_id]["answer"] - (not right)] for q in questions])
        result = BENCHMARK.score(data, tmp_path / "a.jsonl", tmp_path)
        assert (result.headline, result.details["Accuracy"]) == (100 * right, 100 * right)
        assert result.details["Total"] == len(questions)


def test_the_answering_script_asks_with_and_without_images(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    flags = ["--num-chunks", "5", *QUICK]
    assert science([*flags, "--single-pred-prompt", "--answers-file", str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(lines[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert {line["prompt"].startswith("<image>\n") for line in lines} == {True, False}
    assert all(line["prompt"].endswith(PLEASE) for line in lines)
    data = embedded().data / BENCHMARK.folder
    assert BENCHMARK.score(data, file, tmp_path).details["Total"] > len(lines)  # a part is scored as part of all
