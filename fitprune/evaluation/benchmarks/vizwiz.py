"""VizWiz: what blind people asked about their photographs. A server scores it; this makes the JSON file that is handed in.

As LLaVA's `convert_vizwiz_for_submission` does: the image and the answer of every question, in the order of the question
file, answers in the spelling that VQA's evaluations compare (normalise.py). Of two answers to a question the last one counts.

Left out: a score. The answers of the test split are not public.

    python -m fitprune.evaluation.benchmarks.vizwiz --annotation-file llava_test.jsonl --result-file answers.jsonl \\
        --result-upload-file upload.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import FitPruneError
from ...questions import read_questions
from ..benchmark import Benchmark, Result
from ..normalise import normalise
from ..scoring import ANSWERS, check_known, noted, printed, read_answers, said, tool, write_json

QUESTIONS = "llava_test.jsonl"


def submission(questions: Path, answers: Path, path: Path, partial: bool = False) -> Result:
    """Writes what is handed in.

    Args:
        partial: A question without an answer is said in the report, and nothing is written; else it is an error.
    Raises:
        FitPruneError: for files that are missing or torn, a question without an image or without an answer.
    """
    asked, lines = read_questions(questions), read_answers(answers)
    notes = check_known(lines, {question.question_id: question.text for question in asked}, questions)
    text = said(lines)
    answered = sum(question.question_id in text for question in asked)
    details: dict[str, float] = {"questions": len(asked), "answered": answered}
    if answered < len(asked):
        short = f"{answered} of {len(asked)} questions of {questions} are answered; VizWiz takes a file of them all"
        if partial:
            return noted(Result(None, details, f"{short}, so none was written"), notes)
        raise FitPruneError(f"{answers}: {short}: answer the rest first")
    if bare := next((question for question in asked if not question.image), None):
        raise FitPruneError(f"{questions}: question {bare.question_id!r} has no image: give {QUESTIONS}")
    write_json(path, [{"image": question.image, "answer": normalise(text[question.question_id])} for question in asked])
    return noted(Result(None, details, f"{path}: {len(asked)} answers; VizWiz's server scores them", written=(path,)), notes)


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the file for the server to `out` if every question is answered."""
    return submission(data / QUESTIONS, answers, out / f"{answers.stem}.json", partial=True)


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_vizwiz_for_submission`."""
    parser = tool(
        "convert_vizwiz_for_submission", "VizWiz's answers as the JSON file that its server takes.",
        annotation_file=f"the questions, {QUESTIONS}", result_file=ANSWERS, result_upload_file="the file to make",
    )  # fmt: skip
    return printed(lambda args: [submission(args.annotation_file, args.result_file, args.result_upload_file).report], parser, argv)


BENCHMARK = Benchmark(
    name="vizwiz", title="VizWiz", folder="vizwiz", questions=QUESTIONS, images="test",
    metric="JSON for VizWiz's server", needs=(), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
