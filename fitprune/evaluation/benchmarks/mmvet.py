"""MM-Vet: open questions that a language model grades; this makes the JSON file that its notebook and server take.

As LLaVA's `convert_mmvet_for_eval` does: an object from "v1_" and the question's number to the answer as it is. Of two
answers to a question the last one counts. Answers may be long, so the limit is LLaVA's 1024 new tokens.

Left out: a score. MM-Vet's own notebook asks GPT-4 for it.

    python -m fitprune.evaluation.benchmarks.mmvet --src answers.jsonl --dst upload.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ... import arguments, entry
from ...files import write_atomically
from ..benchmark import Benchmark, Result
from ..scoring import read_answers


def submission(answers: Path, path: Path) -> Result:
    """Writes what is handed in; errors as `read_answers`."""
    said = {f"v1_{answer.question_id}": answer.text for answer in read_answers(answers)}
    write_atomically(path, json.dumps(said, indent=2).encode())
    report = f"{path}: {len(said)} answers; MM-Vet's notebook scores them"
    return Result(None, {"answered": len(said)}, report, written=(path,))


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the file for the notebook to `out`."""
    return submission(answers, out / f"{answers.stem}.json")


def run(args: argparse.Namespace) -> int:
    """Converts one answers file; returns the exit code."""
    print(submission(Path(args.src), Path(args.dst)).report)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`convert_mmvet_for_eval`: 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="convert_mmvet_for_eval", description="MM-Vet's answers as the JSON file that its notebook takes.")
    parser.add_argument("--src", required=True, help="answers file (JSON lines)")
    parser.add_argument("--dst", required=True, help="the file to make")
    return entry.guarded(run, parser, argv)


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    folder="mm-vet",
    questions="llava-mm-vet.jsonl",
    images="images",
    metric="JSON for MM-Vet's notebook",
    needs=(),
    score=score,
    max_new_tokens=1024,
)

if __name__ == "__main__":
    raise SystemExit(main())
