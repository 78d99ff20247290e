"""What scorers have in common: the lines of an answers file, a word on choices, a share of something that may be empty.

python -c "from fitprune.evaluation.scoring import *; print(read_answers('answers.jsonl')[0])"
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FitPruneError
from ..files import read_json_lines
from ..questions import is_question_id


@dataclass(frozen=True)
class Answer:
    """One line of an answers file: which question, the text that was asked ("" if the line has none), what was said."""

    question_id: int | str
    prompt: str
    text: str


def read_answers(path: str | os.PathLike[str]) -> list[Answer]:
    """The answers of a file, in its order, which several scores depend on.

    Raises:
        FitPruneError: for a file that is missing, torn or empty, and a line that is no answer.
    """
    answers = []
    for number, entry in read_json_lines(path, "answers file"):
        question_id, prompt, text = entry.get("question_id"), entry.get("prompt", ""), entry.get("text")
        if not (is_question_id(question_id) and isinstance(prompt, str) and isinstance(text, str)):
            raise FitPruneError(f"answers file {path} line {number} needs question_id and text: score a file that model_vqa_loader wrote")
        answers.append(Answer(question_id, prompt, text))
    if not answers:
        raise FitPruneError(f"answers file {path} holds no answers: there is nothing to score")
    return answers


def without_letter(answers: Sequence[tuple[str, str]]) -> str:
    """A line about answers of multiple choice that name no letter, "" if there are none; it changes no figure.

    Args:
        answers: Of each of them what was said, and the right choice in words.
    """
    if not answers:
        return ""
    right = sum(said.strip().rstrip(".").lower() == words.strip().rstrip(".").lower() for said, words in answers)
    are = "1 answer names" if len(answers) == 1 else f"{len(answers)} answers name"
    return f"{are} no letter, which is wrong by the official rule; said in words, the right choice: {right}"


def share(part: float, whole: float) -> float:
    """part / whole, and 0 of nothing."""
    return part / whole if whole else 0.0
