"""SEED-Bench: 19 thousand multiple-choice questions in twelve kinds about images and videos (a frame stands for a video).

Scored as LLaVA's `convert_seed_for_submission` does: an answer is right if it is the letter, to the character; a question
without an answer is wrong. Ids are numbers for images and strings ("v5006") for videos; the annotation's "101669" is
the answers' 101669. The upload file lists every question, so it is written only if all are answered. Two cases in which
the original stops are figures here: a kind with no right answer is 0.00%, a data type with no question nan%.

    python -m fitprune.evaluation.benchmarks.seed --annotation-file SEED-Bench.json --result-file answers.jsonl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import FitPruneError
from ...files import read_json, write_atomically
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, as_number, check_known, noted, printed, read_answers, said, tool, with_words

ANNOTATIONS = "SEED-Bench.json"
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Asked:
    """One annotated question: its id as written and as answers carry it, text, kind, "image" or "video", right letter and choice."""

    written: int | str
    question_id: int | str
    text: str
    kind: int
    data_type: str
    answer: str
    choice: str


def read_annotations(path: Path) -> tuple[dict[int, str], list[Asked]]:
    """The names of the kinds by number, and the questions in order.

    Raises:
        FitPruneError: for a file that is missing, torn or another's.
    """
    content, asked = read_json(path, "annotation file"), []
    try:
        names = {number: name for name, number in content["question_type"].items()}
        for one in content["questions"]:
            written, answer, choice = one["question_id"], one["answer"], one.get(f"choice_{str(one['answer']).lower()}", "")
            text = str(one.get("question", ""))
            asked.append(Asked(written, as_number(written), text, one["question_type_id"], one["data_type"], answer, str(choice)))
    except (TypeError, KeyError, AttributeError):
        asked = []  # of another kind of file
    if not asked:
        raise FitPruneError(f"annotation file {path} has no questions with their types and answers: give {ANNOTATIONS}")
    if unknown := next((one for one in asked if one.kind not in names), None):
        raise FitPruneError(f"annotation file {path}: question {unknown.written!r} has the unnamed type {unknown.kind!r}")
    return names, asked


def evaluate(annotations: Path, answers: Path) -> Result:
    """Accuracy by kind, by data type and in total, as the original prints it; errors as `analyse`."""
    return analyse(annotations, answers)[0]


def analyse(annotations: Path, answers: Path) -> tuple[Result, list[str]]:
    """The same, and what is to be said of answers to other questions and of questions without an answer.

    Raises:
        FitPruneError: as `read_annotations`, `read_answers` and `check_known`.
    """
    names, asked = read_annotations(annotations)
    lines = read_answers(answers)
    notes = check_known(lines, {one.question_id: one.text for one in asked}, annotations, "the others count as wrong")
    given = said(lines)
    right = [float(given.get(one.question_id) == one.answer) for one in asked]
    kinds: dict[int, list[float]] = {}
    types: dict[str, list[float]] = {"image": [], "video": []}
    for one, value in zip(asked, right, strict=True):
        kinds.setdefault(one.kind, []).append(value)
        types.setdefault(one.data_type, []).append(value)
    shares = {names[kind]: _percent(kinds[kind]) for kind in sorted(kinds)}
    shares["Total accuracy"] = _percent(right)
    shares |= {f"{name} accuracy": _percent(types[name]) for name in ("image", "video")}
    letters = {one.question_id: one.answer for one in asked}
    result = Result(
        headline=shares["Total accuracy"],
        details={name: value for name, value in shares.items() if value is not None},
        report="\n".join(f"{name}: {'nan' if value is None else f'{value:.2f}'}%" for name, value in shares.items()),
        per_answer=[float(letters.get(line.question_id) == line.text) for line in lines],
    )
    return result, notes


def _percent(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) * 100 if values else None


def upload(annotations: Path, answers: Path) -> bytes:
    """The file for SEED-Bench's leaderboard: id and answer of every question, in the annotation's order.

    Raises:
        FitPruneError: as `evaluate`, and for a question without an answer.
    """
    _, asked = read_annotations(annotations)
    given = said(read_answers(answers))
    lines = []
    for one in asked:
        if (key := one.written if one.written in given else one.question_id) not in given:
            raise FitPruneError(f"{answers} has no answer to question {one.written!r}: an upload needs them all")
        lines.append(json.dumps({"question_id": one.written, "prediction": given[key]}) + "\n")
    return "".join(lines).encode()


def score(data: Path, answers: Path, out: Path) -> Result:
    """Scores, and writes the upload file to `out` if every question is answered; says how many answers are no letter."""
    result = noted(*analyse(data / ANNOTATIONS, answers))
    asked = {one.question_id: one for one in read_annotations(data / ANNOTATIONS)[1]}
    given = said(read_answers(answers))
    result = with_words(result, [(text, asked[key].choice) for key, text in given.items() if key in asked and text not in LETTERS])
    try:
        content = upload(data / ANNOTATIONS, answers)
    except FitPruneError:
        return result  # part of the questions: a score, nothing to upload
    path = out / f"{answers.stem}_upload.jsonl"
    write_atomically(path, content)
    return replace(result, written=(path,))


def reports(args: argparse.Namespace) -> Iterator[str]:
    """The original's lines and what is not answered, before the upload file is written."""
    yield noted(*analyse(args.annotation_file, args.result_file)).report
    if args.result_upload_file is not None:
        write_atomically(args.result_upload_file, upload(args.annotation_file, args.result_file))


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_seed_for_submission`."""
    about = "SEED-Bench's accuracy of an answers file, and its upload file."
    parser = tool("convert_seed_for_submission", about, annotation_file=ANNOTATIONS, result_file=f"{ANSWERS} to score")
    parser.add_argument("--result-upload-file", type=Path, help="where the file for the leaderboard goes")
    return printed(reports, parser, argv)


BENCHMARK = Benchmark(
    name="seed", title="SEED-Bench", folder="seed_bench", questions="llava-seed-bench.jsonl", images=".",
    metric="accuracy, %", needs=(ANNOTATIONS,), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
