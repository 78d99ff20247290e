"""MM-Vet: open questions that a language model grades; this makes the JSON file that its notebook and server take.

As LLaVA's `convert_mmvet_for_eval` does: an object from "v1_" and the question's number to the answer as it is. Of two
answers to a question the last one counts. Answers may be long, so the limit is LLaVA's 1024 new tokens.

Left out: a score. MM-Vet's own notebook asks GPT-4 for it.

    python -m fitprune.evaluation.benchmarks.mmvet --src answers.jsonl --dst upload.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...questions import read_questions
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, check_known, noted, printed, read_answers, said, tool, write_json

QUESTIONS = "llava-mm-vet.jsonl"


def submission(answers: Path, path: Path, questions: Path | None = None) -> Result:
    """Writes what is handed in; errors as `read_answers`, and with the question file as `check_known`."""
    lines, notes = read_answers(answers), []
    if questions:
        asked = {question.question_id: question.text for question in read_questions(questions)}
        notes = check_known(lines, asked, questions, "MM-Vet's notebook needs them all")
    named = {f"v1_{question_id}": text for question_id, text in said(lines).items()}
    write_json(path, named, indent=2)
    report = f"{path}: {len(named)} answers; MM-Vet's notebook scores them"
    return noted(Result(None, {"answered": len(named)}, report, written=(path,)), notes)


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the file for the notebook to `out`."""
    return submission(answers, out / f"{answers.stem}.json", data / QUESTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_mmvet_for_eval`."""
    about = "MM-Vet's answers as the JSON file that its notebook takes."
    parser = tool("convert_mmvet_for_eval", about, src=ANSWERS, dst="the file to make")
    return printed(lambda args: [submission(args.src, args.dst).report], parser, argv)


BENCHMARK = Benchmark(
    name="mmvet", title="MM-Vet", folder="mm-vet", questions=QUESTIONS, images="images",
    metric="JSON for MM-Vet's notebook", needs=(), score=score, max_new_tokens=1024,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
