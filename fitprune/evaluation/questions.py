"""Question files: JSON lines, one question about one picture each, as LLaVA's loaders read them.

A line is an object with `question_id` (a number or a string; TextVQA and MME repeat it, so it is no key), `image` (a
path inside the image folder), `text` (all that the user says, instruction included, without `<image>`) and an optional
`category`. Other keys are ignored. Blank lines are skipped; anything else that is not a question is refused with its
line number, because a question that is silently lost shifts every benchmark that depends on line order.

Left out: opening the pictures (the model family does). Question files of other shapes (ScienceQA's list, MMBench's
table) are read by their benchmark, into the same `Question`.

    python -c "from fitprune.evaluation.questions import *; print(read_questions('questions.jsonl')[0])"
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

from ..errors import FitPruneError

IMAGE = "<image>"  # stands for a picture in prompts, and so in no question
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """One line of a question file.

    Attributes:
        question_id: The file's own name for it, kept as a number or a string; may repeat.
        image: Path of the picture relative to the image folder, or None for a question without one.
        text: The user's text, byte for byte as in the file (scorers look answers up by it).
        category: The file's free label, if it has one.
        prompt: What the answers file keeps as `prompt`, where that is not the text (`saved` is either).
        picture: The picture file itself, where the question file holds it; `image` then only names it in messages.
        more: Further fields of its answer line, (name, JSON value) each.
    """

    question_id: int | str
    image: str | None
    text: str
    category: str | None = None
    prompt: str | None = None
    picture: bytes | None = field(default=None, repr=False)
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def saved(self) -> str:
        """The `prompt` of its answer line."""
        return self.text if self.prompt is None else self.prompt


def told_apart(questions: Sequence[Question]) -> bytes:
    """What tells lists of questions apart: ids, pictures and texts."""
    return json.dumps([(question.question_id, question.image, question.text) for question in questions]).encode()


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """All questions of a JSON-lines file, in file order.

    Raises:
        FitPruneError: for a missing or unreadable file, a file without questions, and a line that is torn or is not a
            question (the message names file and line).
    """
    questions = [_question(entry, f"{path} line {number}") for number, entry in read_json_lines(path, "question file")]
    if not questions:
        raise FitPruneError(f"question file {path} holds no questions: give a file with one JSON object per line")
    return questions


def read_json_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers (from 1); lines end at a newline and nowhere else.

    Args:
        path: The file, UTF-8.
        what: What to call the file in messages ("question file").
    Raises:
        FitPruneError: for a file that cannot be read, and (on reaching it) a line that is not a JSON object.
    """
    for number, line in enumerate(read_bytes(path, what).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise FitPruneError(
                f"{path} line {number} is torn or not JSON: repair the {what}, or leave that line out"
            ) from None
        if not isinstance(entry, dict):
            raise FitPruneError(f"{path} line {number} is not a JSON object: a {what} has one object per line")
        yield number, entry


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """A JSON file's value.

    Raises:
        FitPruneError: for a file that cannot be read or is not JSON.
    """
    content = read_bytes(path, what)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise FitPruneError(f"{what} {path} is torn or not JSON: get it again") from None


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """A file without its byte-order mark.

    Raises:
        FitPruneError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise FitPruneError(f"{what} {path} does not exist: check the path") from None
    except (OSError, ValueError) as problem:
        raise FitPruneError(f"cannot read {what} {path}: {getattr(problem, 'strerror', None) or problem}") from None


def is_question_id(value: object) -> TypeGuard[int | str]:
    """Whether a JSON value can be a question's id: a string or a whole number (true and false are neither)."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def chunk(questions: Sequence[Item], num_chunks: int, chunk_idx: int) -> list[Item]:
    """The share of process `chunk_idx` out of `num_chunks`: consecutive slices of ceil(N / num_chunks) items.

    The slices joined in index order are the whole sequence again, so answers may be concatenated. Rounding up can
    leave nothing for the last indices (10 items in 6 chunks make 5 slices of 2): such an index is refused, as the
    original's is.

    Raises:
        FitPruneError: for fewer than one chunk and for an index outside the slices that there are.
    """
    if num_chunks < 1:
        raise FitPruneError(f"--num-chunks {num_chunks} is not possible: give 1 or more")
    size = -(-len(questions) // num_chunks)
    slices = -(-len(questions) // size) if size else 0
    if not 0 <= chunk_idx < slices:
        raise FitPruneError(
            f"--chunk-idx {chunk_idx} is out of range: {len(questions)} questions in --num-chunks {num_chunks} make "
            f"{slices} slices of {size}, so the index goes from 0 to {slices - 1}"
            if slices
            else "there are no questions to cut into chunks: check the question file"
        )
    return list(questions[chunk_idx * size : (chunk_idx + 1) * size])


def _question(entry: dict[str, Any], where: str) -> Question:
    """One parsed line as a Question; `where` begins the message when it is not one."""
    for key in ("question_id", "text"):
        if key not in entry:
            raise FitPruneError(f"{where} has no {key!r}: a question needs question_id, image and text")
    question_id, image, text, category = (entry.get(key) for key in ("question_id", "image", "text", "category"))
    if not is_question_id(question_id):
        raise FitPruneError(f"{where}: question_id must be a whole number or a string, not {question_id!r}")
    if not isinstance(text, str):
        raise FitPruneError(f"{where}: text must be a string, not {text!r}")
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise FitPruneError(f"{where}: text has half of a surrogate pair, which is no character: repair the line")
    if IMAGE in text:
        raise FitPruneError(f"{where}: text contains {IMAGE}: leave it out, the picture's place is before the text")
    if image is not None and not isinstance(image, str):
        raise FitPruneError(f"{where}: image must be a path inside the image folder, not {image!r}")
    return Question(question_id, image, text, None if category is None else str(category))
