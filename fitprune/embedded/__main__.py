"""A few questions and pictures in a folder of one's own, to try commands and the documentation's examples with.

Written are questions.jsonl, images/a.jpg, b.jpg, …, and picture.jpg, which has a number and a word in it.

    python -m fitprune.embedded /tmp/examples
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

from .. import arguments, entry
from ..errors import FitPruneError
from ..files import check_writable, write_atomically
from ..questions import read_questions
from . import embedded

PICTURES = 8


def run(args: argparse.Namespace) -> int:
    """Writes the files; returns the exit code."""
    folder, data = Path(args.folder), embedded()
    check_writable(folder)
    if (folder / "questions.jsonl").exists() and not args.overwrite:
        raise FitPruneError(f"{folder / 'questions.jsonl'} is there already: name another folder, or give --overwrite")
    questions = read_questions(data.questions)
    names = list(dict.fromkeys(str(question.image) for question in questions))[:PICTURES]
    known = {name: f"{letter}{Path(name).suffix}" for name, letter in zip(names, ascii_lowercase, strict=False)}
    lines = [
        json.dumps({"question_id": number, "image": known[question.image], "text": question.text})
        for number, question in enumerate(q for q in questions if q.image in known)
        if question.image is not None
    ]
    for name, own in known.items():
        write_atomically(folder / "images" / own, (data.images / name).read_bytes())
    write_atomically(folder / f"picture{data.picture.suffix}", data.picture.read_bytes())
    write_atomically(folder / "questions.jsonl", "".join(f"{line}\n" for line in lines).encode())
    print(f"{folder}: {len(lines)} questions about {len(known)} pictures")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="fitprune.embedded", description="Write a few embedded questions and pictures.")
    parser.add_argument("folder", help="where to: . for here")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that are there")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
