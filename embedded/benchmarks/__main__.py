"""Writes the benchmarks and says how large they are.

python -m embedded.benchmarks /tmp/eval [--pictures 5] [--overwrite] [--scenes cluttered]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fitprune import arguments, entry

from ..clutter import SCENES
from . import BENCHMARKS, scienceqa, write


def run(args: argparse.Namespace) -> int:
    """Writes them; returns the exit code."""
    for name, files in write(args.dest, args.pictures, args.overwrite, SCENES[args.scenes]).items():
        pictures = sum(path.endswith((".jpg", ".png")) for path in files)
        questions = max(map(_questions, files, files.values()))  # VQAv2 has some of them in a second file
        size = sum(map(len, files.values())) / 1e6
        print(f"{args.dest / name}: {questions} questions about {pictures} pictures, {size:.2f} MB")
    return 0


def _questions(path: str, content: bytes) -> int:
    """How many questions a file holds, if it is a question file: lines, rows below a head, items of ScienceQA's list."""
    if path.endswith(".jsonl"):
        return content.count(b"\n")
    if path.endswith(".tsv"):
        return content.count(b"\n") - 1
    return len(json.loads(content)) if path == scienceqa.QUESTIONS else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 after one line on stderr that says what is wrong."""
    parser = arguments.Parser(prog="embedded.benchmarks", description="Write the embedded benchmarks.")
    parser.add_argument("dest", type=Path, metavar="DEST", help=f"folder that gets {', '.join(BENCHMARKS)}")
    parser.add_argument("--pictures", type=int, help="pictures per benchmark, in MME per category (default: each its own)")
    parser.add_argument("--scenes", choices=list(SCENES), default="plain", help="cluttered ones are what the judge was trained on")
    parser.add_argument("--overwrite", action="store_true", help="replace such folders that are there, whole")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
