"""What scorers have in common: the lines of an answers file, a word on choices, files for servers, the official tools' flags.

python -c "from fitprune.evaluation.scoring import *; print(read_answers('answers.jsonl')[0])"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import arguments, entry
from ..errors import FitPruneError
from ..files import read_json_lines, write_atomically
from ..questions import IMAGE, is_question_id
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
        question_id, prompt, text = line.get("question_id"), line.get("prompt"), line.get("text")
        prompt = "" if prompt is None and not by_prompt else prompt
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


def words_of(text: str) -> str:
    """A question as files can be compared by it: without `<image>`, in lower case, one space between words."""
    return " ".join(text.replace(IMAGE, " ").lower().split())


def first_words(text: str) -> str:
    """The same of the first line alone: without the instruction that LLaVA's question files add."""
    return words_of(text.replace(IMAGE, " ").strip().partition("\n")[0])


def check_asked(answers: Iterable[Answer], asked: Mapping[int | str, str], source: Path) -> None:
    """Finds answers to other questions than those that the file has under the same ids, as far as they carry their prompt.

    Args:
        asked: The text of each question; ids that are not in it are not looked at.
    Raises:
        FitPruneError: naming the first of them.
    """
    for answer in answers:
        question = first_words(asked.get(answer.question_id, ""))
        if answer.prompt and question not in words_of(answer.prompt):
            of = f"question {answer.question_id!r} of {source} is {shortened(question)}"
            raise FitPruneError(f"{answer.where} answers {shortened(answer.prompt)}, but {of}: give the file that was asked")


def check_known(answers: Sequence[Answer], asked: Mapping[int | str, str], source: Path, most: str = "") -> list[str]:
    """Compares answers with what a file asks: `check_asked`, and what is said where ids of answers and questions are not the same.

    Args:
        most: What a question without an answer is; nothing is said of these without it.
    Raises:
        FitPruneError: if no answer is to a question of the file; as `check_asked`.
    """
    known, unknown = [one for one in answers if one.question_id in asked], [one for one in answers if one.question_id not in asked]
    if not known:
        file = answers[0].where.rpartition(" line ")[0]
        ids = f"ids like {answers[0].question_id!r}, there like {next(iter(asked))!r}" if asked else "it has none"
        raise FitPruneError(f"{file} answers no question of {source} ({ids}): give answers to this file")
    check_asked(known, asked, source)
    notes, done = [], len({one.question_id for one in known})
    if unknown:
        to, counts = ("1 answer is", "counts") if len(unknown) == 1 else (f"{len(unknown)} answers are", "count")
        notes.append(f"{to} to no question of {source}, {unknown[0].question_id!r} for one, and {counts} for nothing")
    if most and done < len(asked):
        notes.append(f"{done} of {len(asked)} questions are answered; {most}")
    return notes


def noted(result: Result, notes: Sequence[str]) -> Result:
    """A result whose report ends with lines that change no figure."""
    return replace(result, report="\n".join([result.report, *notes]))


def check_once(answers: Iterable[Answer]) -> None:
    """Finds a second answer to the same question, which counts twice where lines are counted one by one.

    Raises:
        FitPruneError: naming it.
    """
    seen: dict[tuple[int | str, str], str] = {}
    for answer in answers:
        first = seen.setdefault((answer.question_id, answer.prompt), answer.where)
        if first != answer.where:
            line = first.rpartition(" ")[2]
            raise FitPruneError(f"{answer.where} answers question {answer.question_id!r} again, after line {line}: score one run at a time")


def shortened(text: str, limit: int = 80) -> str:
    """A text in a message, in quotation marks, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def with_words(result: Result, answers: Sequence[tuple[str, str]]) -> Result:
    """A result whose report ends with a line on answers of multiple choice that name no letter; it changes no figure.

    Args:
        answers: Of each of them what was said, and the right choice in words.
    """
    if not answers:
        return result
    right = sum(text.strip().rstrip(".").lower() == words.strip().rstrip(".").lower() for text, words in answers)
    are = "1 answer names" if len(answers) == 1 else f"{len(answers)} answers name"
    return noted(result, [f"{are} no letter, which is wrong by the official rule; said in words, the right choice: {right}"])


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
