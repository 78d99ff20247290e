"""Writes the benchmarks and says how large they are.

python -m embedded.benchmarks /tmp/eval [--pictures 5] [--overwrite]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fitprune.errors import FitPruneError

from . import write


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 after one line on stderr that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m embedded.benchmarks", description="Write the embedded benchmarks.")
    parser.add_argument(
        "dest", type=Path, metavar="DEST", help="folder that gets textvqa/, gqa/, MME/, pope/, calibration/"
    )
    parser.add_argument(
        "--pictures", type=int, help="pictures per benchmark, in MME per category (default: each its own)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace such folders that are there, whole")
    args = parser.parse_args(argv)
    try:
        made = write(args.dest, args.pictures, args.overwrite)
    except FitPruneError as problem:
        print(f"embedded.benchmarks: {problem}", file=sys.stderr)
        return 2
    for name, files in made.items():
        pictures = sum(path.endswith(".jpg") for path in files)
        questions = sum(content.count(b"\n") for path, content in files.items() if path.endswith(".jsonl"))
        size = sum(map(len, files.values())) / 1e6
        print(f"{args.dest / name}: {questions} questions about {pictures} pictures, {size:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
