"""What scorers have in common: the lines of an answers file, a word on choices, files for servers, the official tools' flags.

python -c "from fitprune.evaluation.scoring import *; print(read_answers('answers.jsonl')[0])"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import arguments, entry
from ..errors import FitPruneError
from ..files import read_json_lines, write_atomically
from ..questions import is_question_id
from .answers import SKIPPED
from .benchmark import Result

ANSWERS = "answers file (JSON lines)"  # as the help of the tools' flags says


@dataclass(frozen=True)
class Answer:
    """One line of an answers file: which question, the text that was asked, what was said, where that stands, for messages, and whether
    nothing was said because the question was skipped: such an answer is wrong."""

    question_id: int | str
    prompt: str
    text: str
    where: str
    skipped: bool = False


def read_answers(path: Path, by_prompt: bool = False) -> list[Answer]:
    """The answers of a file, in its order, which several scores depend on.

    Args:
        by_prompt: Every line needs its prompt; else "" stands for one that is not there.
    Raises:
        FitPruneError: for a file that is missing, torn or empty, and a line that is no answer.
    """
    answers = []
    needs = "question_id, prompt and text" if by_prompt else "question_id and text"
    for number, line in read_json_lines(path, "answers file"):
        question_id, prompt, text = line.get("question_id"), line.get("prompt", None if by_prompt else ""), line.get("text")
        where = f"answers file {path} line {number}"
        if not (is_question_id(question_id) and isinstance(prompt, str) and isinstance(text, str)):
            raise FitPruneError(f"{where} needs {needs}: score a file that model_vqa_loader wrote")
        answers.append(Answer(question_id, prompt, text, where, isinstance(metadata := line.get("metadata"), dict) and SKIPPED in metadata))
    if not answers:
        raise FitPruneError(f"answers file {path} holds no answers: there is nothing to score")
    return answers


def said(answers: Iterable[Answer]) -> dict[int | str, str]:
    """What was answered, by question; of two answers to a question the last one counts."""
    return {answer.question_id: answer.text for answer in answers}


def with_words(result: Result, answers: Sequence[tuple[str, str]]) -> Result:
    """A result whose report ends with a line on answers of multiple choice that name no letter; it changes no figure.

    Args:
        answers: Of each of them what was said, and the right choice in words.
    """
    if not answers:
        return result
    right = sum(text.strip().rstrip(".").lower() == words.strip().rstrip(".").lower() for text, words in answers)
    are = "1 answer names" if len(answers) == 1 else f"{len(answers)} answers name"
    note = f"{are} no letter, which is wrong by the official rule; said in words, the right choice: {right}"
    return replace(result, report=f"{result.report}\n{note}")


def as_number(question_id: Any) -> int | str:
    """An id that a file writes as text as answers carry it: a number where it is one."""
    try:
        return int(question_id)
    except ValueError:
        return str(question_id)


def share(part: float, whole: float) -> float:
    """part / whole, and 0 of nothing."""
    return part / whole if whole else 0.0


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Writes a file as the official tools do; errors as `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=indent).encode())


def tool(prog: str, description: str, **needed: str) -> argparse.ArgumentParser:
    """The command line of an official tool: paths that it cannot do without, each with its help."""
    parser = arguments.Parser(prog=prog, description=description)
    for name, about in needed.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True, help=about)
    return parser


def printed(work: Callable[[argparse.Namespace], Iterable[str]], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs a tool and prints each text as it comes; the exit code is 0, or 2 with one line on stderr for bad input."""

    def run(args: argparse.Namespace) -> int:
        for text in work(args):
            print(text)
        return 0

    return entry.guarded(run, parser, argv)
