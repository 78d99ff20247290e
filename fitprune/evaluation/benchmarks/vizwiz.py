"""VizWiz: what blind people asked about their photographs. A server scores it; this makes the JSON file that is handed in.

As LLaVA's `convert_vizwiz_for_submission` does: the picture and the answer of every question, in the order of the question
file, answers in the spelling that VQA's evaluations compare (normalise.py). Of two answers to a question the last one counts.

Left out: a score. The answers of the test split are not public.

    python -m fitprune.evaluation.benchmarks.vizwiz --annotation-file llava_test.jsonl --result-file answers.jsonl \\
        --result-upload-file upload.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ... import arguments, entry
from ...errors import FitPruneError
from ...files import write_atomically
from ...questions import read_questions
from ..benchmark import Benchmark, Result
from ..normalise import normalise
from ..scoring import read_answers

QUESTIONS = "llava_test.jsonl"


def submission(questions: Path, answers: Path, path: Path, partial: bool = False) -> Result:
    """Writes what is handed in.

    Args:
        partial: A question without an answer is said in the report, and nothing is written; else it is an error.
    Raises:
        FitPruneError: for files that are missing or torn, a question without a picture or without an answer.
    """
    asked = read_questions(questions)
    said = {answer.question_id: answer.text for answer in read_answers(answers)}
    answered = [question for question in asked if question.question_id in said]
    details: dict[str, float] = {"questions": len(asked), "answered": len(answered)}
    if len(answered) < len(asked):
        short = f"{len(answered)} of {len(asked)} questions of {questions} are answered; VizWiz takes a file of them all"
        if partial:
            return Result(None, details, f"{short}, so none was written")
        raise FitPruneError(f"{answers}: {short}: answer the rest first")
    if bare := next((question for question in asked if not question.image), None):
        raise FitPruneError(f"{questions}: question {bare.question_id!r} has no image: give {QUESTIONS}")
    lines = [{"image": question.image, "answer": normalise(said[question.question_id])} for question in asked]
    write_atomically(path, json.dumps(lines).encode())
    return Result(None, details, f"{path}: {len(asked)} answers; VizWiz's server scores them", written=(path,))


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the file for the server to `out` if every question is answered."""
    return submission(data / QUESTIONS, answers, out / f"{answers.stem}.json", partial=True)


def run(args: argparse.Namespace) -> int:
    """Converts one answers file; returns the exit code."""
    print(submission(Path(args.annotation_file), Path(args.result_file), Path(args.result_upload_file)).report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`convert_vizwiz_for_submission`: 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="convert_vizwiz_for_submission", description="VizWiz's answers as the JSON file that its server takes.")
    parser.add_argument("--annotation-file", required=True, help=f"the questions, {QUESTIONS}")
    parser.add_argument("--result-file", required=True, help="answers file (JSON lines)")
    parser.add_argument("--result-upload-file", required=True, help="the file to make")
    return entry.guarded(run, parser, argv)


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    folder="vizwiz",
    questions=QUESTIONS,
    images="test",
    metric="JSON for VizWiz's server",
    needs=(),
    score=score,
)

if __name__ == "__main__":
    raise SystemExit(main())
