"""VQAv2: short answers about photographs. A server scores the test split; this makes the JSON file that is handed in.

As LLaVA's `convert_vqav2_for_submission` does: the test-dev questions are asked, but the file lists every question of the
whole test split, in its order, with an empty answer where none was asked. Answers have the spelling that VQA's evaluations
compare (normalise.py). Lines that are not JSON are counted and passed over; of two answers to a question the last one counts.

Left out: a score (answers of the test split are not public), and the validation split, whose evaluation is VQA's own tool.

    python -m fitprune.evaluation.benchmarks.vqav2 --dir playground/data/eval/vqav2 \\
        --split llava_vqav2_mscoco_test-dev2015 --ckpt llava-v1.5-7b
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ...errors import FitPruneError
from ...files import read_bytes
from ...questions import is_question_id, read_questions
from ..benchmark import Benchmark, Result
from ..normalise import normalise
from ..scoring import Answer, check_known, noted, printed, said, tool, write_json

ASKED = "llava_vqav2_mscoco_test-dev2015.jsonl"
LISTED = "llava_vqav2_mscoco_test2015.jsonl"


def read_whole_lines(path: Path) -> tuple[list[Answer], int]:
    """The answers of a file, and the number of lines that are not JSON.

    Raises:
        FitPruneError: for a file that cannot be read, and a line that is JSON but no answer.
    """
    answers, malformed = [], 0
    for number, line in enumerate(read_bytes(path, "answers file").removesuffix(b"\n").split(b"\n"), start=1):
        try:
            found = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            malformed += 1
            continue
        question_id, prompt, text = (found.get(key) if isinstance(found, dict) else None for key in ("question_id", "prompt", "text"))
        if not (is_question_id(question_id) and isinstance(text, str)):
            raise FitPruneError(f"answers file {path} line {number} needs question_id and text: give an answers file")
        where = f"answers file {path} line {number}"
        answers.append(Answer(question_id, prompt if isinstance(prompt, str) else "", text, where))
    return answers, malformed


def submission(listed: Path, answers: Path, path: Path) -> Result:
    """Writes what is handed in; errors as `read_whole_lines`, `read_questions` and `check_known`."""
    questions = read_questions(listed)
    lines, malformed = read_whole_lines(answers)
    if not lines:
        raise FitPruneError(f"{answers} answers no question of {listed}: give answers to VQAv2's test questions")
    notes = check_known(lines, {one.question_id: one.text for one in questions}, listed)
    text = said(lines)
    answered = sum(one.question_id in text for one in questions)
    write_json(path, [{"question_id": one.question_id, "answer": normalise(text.get(one.question_id, ""))} for one in questions])
    details: dict[str, float] = {"questions": len(questions), "answered": answered, "malformed lines": malformed}
    torn = f", {malformed} malformed lines passed over" if malformed else ""
    report = f"{path}: {answered} of {len(questions)} questions answered{torn}; VQA's server scores them"
    return noted(Result(None, details, report, written=(path,)), notes)


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the file for the server to `out`."""
    return submission(data / LISTED, answers, out / f"{answers.stem}.json")


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_vqav2_for_submission`."""
    parser = tool("convert_vqav2_for_submission", "VQAv2's answers as the JSON file that its server takes.")
    parser.add_argument("--dir", type=Path, default="./playground/data/eval/vqav2", help="VQAv2's folder (default: %(default)s)")
    parser.add_argument("--ckpt", required=True, help="reads answers/SPLIT/CKPT/merge.jsonl in there")
    parser.add_argument("--split", required=True, help="writes answers_upload/SPLIT/CKPT.json in there")

    def work(args: argparse.Namespace) -> list[str]:
        answers, upload = args.dir / "answers" / args.split / args.ckpt / "merge.jsonl", args.dir / "answers_upload" / args.split
        return [submission(args.dir / LISTED, answers, upload / f"{args.ckpt}.json").report]

    return printed(work, parser, argv)


BENCHMARK = Benchmark(
    name="vqav2", title="VQAv2", folder="vqav2", questions=ASKED, images="test2015",
    metric="JSON for VQA's server", needs=(LISTED,), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
