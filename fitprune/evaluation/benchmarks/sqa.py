"""ScienceQA: school questions with two to five choices, half of them about an image; the answer is a letter.

Questions are LLaVA's list of conversations (`llava_test_CQM-A.json`), truth is ScienceQA's own `problems.json` and
`pid_splits.json`. The letter is read out of the answer as LLaVA's `eval_science_qa` does: the answer is a letter; begins
with a letter, a period and a space; or says "The answer is X" once, with a further character behind (not a line break).
LLaVA-HR's copy takes any answer of three characters that begins with a letter ("Because": B) and lets the model say 64 tokens
instead of 1024; `--any-start` does so too, in `fitprune eval` as well (`AS_LLAVA_HR`, what LLaVA_HR's `sqa.sh` runs).
Every problem of the split counts, so one without an answer is wrong. What LLaVA reports is the accuracy on the questions
with an image, which scoring knows by the `<image>` in the saved prompt.

    python -m fitprune.evaluation.benchmarks.sqa --base-dir scienceqa --result-file answers.jsonl
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import FitPruneError
from ...files import read_json
from ...questions import Question, is_question_id
from ...questions.official import with_hint
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, check_known, noted, printed, read_answers, tool, with_words, write_json

PLEASE = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
FAILED = "FAILED"
IMAGE = "<image>"


def read(path: Path, single_pred_prompt: bool = True) -> list[Question]:
    """The questions of LLaVA's list; `single_pred_prompt` asks for the letter alone, as every reported result does.

    Raises:
        FitPruneError: for a file that is missing, torn or another's.
    """
    items = read_json(path, "question file")
    if not isinstance(items, list) or not items:
        error = FitPruneError(f"question file {path} is not a list of conversations: give one like llava_test_CQM-A.json")
        raise with_hint(error, path)
    return [_question(item, f"{path} entry {at}", single_pred_prompt) for at, item in enumerate(items, start=1)]


def _question(item: Any, where: str, single_pred_prompt: bool) -> Question:
    try:
        question_id, image, said = item["id"], item.get("image"), item["conversations"][0]["value"]
    except (TypeError, KeyError, IndexError, AttributeError):
        raise FitPruneError(f"{where} has no id and conversation: ScienceQA's items have id, conversations, image") from None
    if not (is_question_id(question_id) and isinstance(said, str) and isinstance(image, str | None)):
        raise FitPruneError(f"{where}: id, the first value of conversations and image must be text")
    text = said.replace(IMAGE, "").strip()
    if single_pred_prompt:
        text += f"\n{PLEASE}"
    return Question(question_id, image, text, prompt=f"{IMAGE}\n{text}" if image else None)


def letter(text: str, letters: str = LETTERS, any_start: bool = False) -> str:
    """The capital letter that an answer means, "FAILED" if it does not say; `any_start` is LLaVA-HR's reading."""
    if len(text) == 1 and text in letters:
        return text
    if len(text) >= 3 and text[0] in letters and (any_start or text[1:3] == ". "):
        return text[0]
    said = re.findall(r"The answer is ([A-Z]).", text)
    return said[0] if len(said) == 1 else FAILED


def analyse(
    base: Path, answers: Path, *, split: str = "test", letters: str = LETTERS, any_start: bool = False
) -> tuple[Result, dict[str, Any], dict[str, Any]]:
    """Scores an answers file.

    Args:
        base: Folder of `pid_splits.json` and `problems.json`.
    Returns:
        The result, whose report ends with what is to be said of unknown and missing answers; the analyses of correct and
        incorrect answers; the summary (both as the original writes them).
    Raises:
        FitPruneError: for files that are missing, torn or of another kind, an unknown split, an answer beyond `letters`.
    """
    truth = _truth(base, split, len(letters))
    lines = read_answers(answers)
    notes = check_known(lines, dict.fromkeys(truth, ""), base / "pid_splits.json", "the others count as wrong")
    given: dict[int | str, tuple[str, str]] = {}  # by question id: answer, saved prompt
    per_answer = []
    for line in lines:
        given[line.question_id] = line.text, line.prompt
        choices, right = truth.get(line.question_id, (0, 0))
        per_answer.append(float(right == _index(letter(line.text, letters, any_start), choices, letters)))

    sides: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    chosen, outputs = {}, {}
    for pid, (choices, right) in truth.items():
        outputs[pid], prompt = given.get(pid, (FAILED, "Unknown"))
        parsed = letter(outputs[pid], letters, any_start)
        chosen[pid] = _index(parsed, choices, letters)
        found = {"question_id": pid, "parsed_ans": parsed, "ground_truth": letters[right], "question": prompt, "pred": outputs[pid]}
        sides["correct" if chosen[pid] == right else "incorrect"].append({**found, "is_multimodal": IMAGE in prompt})
    correct, count = len(sides["correct"]), len(truth)
    seen = {side: sum(one["is_multimodal"] for one in found) for side, found in sides.items()}
    figures: dict[str, float] = {"Total": count, "Correct": correct, "Accuracy": correct / count * 100}
    shown = "nan"  # the original stops where no answered question has an image
    if any(seen.values()):
        figures["IMG-Accuracy"] = seen["correct"] / sum(seen.values()) * 100
        shown = f"{figures['IMG-Accuracy']:.2f}"
    report = f"Total: {count}, Correct: {correct}, Accuracy: {figures['Accuracy']:.2f}%, IMG-Accuracy: {shown}%"
    summary = {"acc": figures["Accuracy"], "correct": correct, "count": count, "results": chosen, "outputs": outputs}
    return noted(Result(figures.get("IMG-Accuracy"), figures, report, per_answer), notes), sides, summary


def _truth(base: Path, split: str, most: int) -> dict[int | str, tuple[int, int]]:
    """Number of choices and index of the right one, by the ids of the split."""
    splits = read_json(base / "pid_splits.json", "ScienceQA's splits")
    problems = read_json(base / "problems.json", "ScienceQA's problems")
    if not isinstance(splits, dict) or not isinstance(problems, dict):
        raise FitPruneError(f"{base} holds no ScienceQA: pid_splits.json and problems.json map names and ids")
    if not splits.get(split):
        raise FitPruneError(f"{base / 'pid_splits.json'} has no split {split!r}: choose from {', '.join(splits)}")
    truth = {}
    for pid in splits[split]:
        problem: Any = problems.get(pid)
        try:
            choices, right = len(problem["choices"]), int(problem["answer"])
        except (TypeError, KeyError, ValueError):
            raise FitPruneError(f"{base / 'problems.json'} needs choices and answer for problem {pid!r}") from None
        if not 0 <= right < most:
            raise FitPruneError(f"problem {pid!r} has answer {right}, --options only {most} letters: name more of them")
        truth[pid] = choices, right
    return truth


def _index(parsed: str, choices: int, letters: str) -> int:
    """Which choice a letter is; -1 for a letter without a choice and for none."""
    return letters[:choices].find(parsed) if len(parsed) == 1 else -1


def score(data: Path, answers: Path, out: Path, any_start: bool = False) -> Result:
    """Scores the test split; writes the two files of `eval_science_qa` to `out`; says how many answers name no letter."""
    result, sides, summary = analyse(data, answers, any_start=any_start)
    problems = read_json(data / "problems.json", "ScienceQA's problems")
    unparsed = [one for one in sides["incorrect"] if one["parsed_ans"] == FAILED != one["pred"]]
    words = [str(problems[one["question_id"]]["choices"][LETTERS.index(one["ground_truth"])]) for one in unparsed]
    files = {out / f"{answers.stem}_output.jsonl": sides, out / f"{answers.stem}_result.json": summary}
    for path, content in files.items():
        write_json(path, content, indent=2)
    result = with_words(result, [(one["pred"], right) for one, right in zip(unparsed, words, strict=True)])
    return replace(result, written=tuple(files))


def reports(args: argparse.Namespace) -> Iterator[str]:
    """The original's line and what is not answered, before the files that were asked for are written."""
    result, sides, summary = analyse(args.base_dir, args.result_file, split=args.split, letters=args.options, any_start=args.any_start)
    yield result.report
    for path, content in ((args.output_file, sides), (args.output_result, summary)):
        if path is not None:
            write_json(path, content, indent=2)


def main(argv: Sequence[str] | None = None, any_start: bool = False) -> int:
    """LLaVA's `eval_science_qa`."""
    parser = tool(
        "eval_science_qa", "ScienceQA's accuracy of an answers file.", base_dir="folder of pid_splits.json and problems.json",
        result_file=f"{ANSWERS} to score",
    )  # fmt: skip
    parser.add_argument("--output-file", type=Path, help="where the analysis of each answer goes")
    parser.add_argument("--output-result", type=Path, help="where accuracy, choices and answers go")
    parser.add_argument("--split", default="test", help="which problems (default: test)")
    parser.add_argument("--options", default=LETTERS, help=f"the letters, as one word (default: {LETTERS})")
    parser.add_argument("--any-start", action="store_true", default=any_start, help="a first letter counts without a period behind it")
    return printed(reports, parser, argv)


BENCHMARK = Benchmark(
    name="sqa", title="ScienceQA", folder="scienceqa", questions="llava_test_CQM-A.json", images="images/test",
    metric="accuracy on questions with an image, %", needs=("pid_splits.json", "problems.json"), score=score,
    read=read, max_new_tokens=1024,
)  # fmt: skip
AS_LLAVA_HR = replace(
    BENCHMARK, metric="accuracy on questions with an image, %, read as LLaVA-HR does",
    score=partial(score, any_start=True), max_new_tokens=64,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
