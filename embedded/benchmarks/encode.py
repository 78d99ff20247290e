"""Pictures and questions as bytes: what the files of all benchmarks have in common.

A benchmark is made in memory, as a dictionary from path to bytes: it can then be tested without a disk and written in
one go. JPEG bytes depend on the machine's libjpeg (the pixels before it do not), so files are the same for the same
Pillow, not for every Pillow.

    python -c "from embedded.benchmarks.encode import *; print(json_lines([question(1, 'a.jpg', 'Is it red?', 'verify')]))"
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..canvas import place
from ..questions import Question, one_of_each
from ..scene import COLORS, KINDS, Draw, Scene, Split, draw
from ..tokens import INSTRUCTION

Files = dict[str, bytes]  # path below the benchmark's folder: content
JPEG = {"quality": 92, "subsampling": 0, "optimize": True}
LETTERS = "ABCDE"
CHOICES: dict[str, list[str]] = {
    "color": list(COLORS),
    "shape": list(KINDS),
    "relation": list(KINDS),
    "count": [str(number) for number in range(1, 7)],
    "exist": ["yes", "no"],
}  # family: every answer to its questions


def png(scene: Scene) -> bytes:
    """The picture of a scene as a PNG file: the pixels themselves."""
    file = io.BytesIO()
    place(scene).save(file, "PNG", optimize=True)
    return file.getvalue()


def picture(scene: Scene, **jpeg: Any) -> bytes:
    """The picture of a scene as a JPEG file; colour in full resolution, since letters are a few pixels wide."""
    file = io.BytesIO()
    place(scene).save(file, "JPEG", **{**JPEG, **jpeg})
    return file.getvalue()


def question(question_id: int | str, image: str, text: str, category: str, please: str = INSTRUCTION) -> dict[str, Any]:
    """One line of a question file as LLaVA writes it; the instruction, if any, is the second line of `text`."""
    asked = f"{text}\n{please}" if please else text
    return {"question_id": question_id, "image": image, "text": asked, "category": category}


def in_turn(scene: Scene, families: Sequence[str]) -> Question | None:
    """One question about a scene, of the family whose turn it is by the scene's number, else of the next that it has."""
    found = {one.family: one for one in one_of_each(scene, tuple(families))}
    turned = (families[(scene.index + at) % len(families)] for at in range(len(families)))
    return next((found[family] for family in turned if family in found), None)


def asked_in_turn(
    split: Split,
    pictures: int,
    families: Sequence[str],
    path: str,
    encoded: Callable[[Scene], bytes],
    category: str | None = None,
    please: str = INSTRUCTION,
    draw: Draw = draw,
) -> tuple[Files, list[dict[str, Any]]]:
    """Those of a split's first pictures that have something to ask about, and a question about each, as `in_turn` chooses it.

    Args:
        path: Of a picture by its number: "images/{}.jpg".
        encoded: A picture's bytes.
        category: Of every question; None for the family of each.
    """
    files, questions = Files(), list[dict[str, Any]]()
    for index in range(pictures):
        scene, image = draw(split, index), path.format(index)
        if asked := in_turn(scene, families):
            files[image] = encoded(scene)
            questions.append(question(index, image.rpartition("/")[2], asked.text, category or asked.family, please))
    return files, questions


def choices(asked: Question, random: np.random.RandomState, count: int = 4) -> tuple[list[str], int]:
    """So many answers that a question of the families in `CHOICES` could have, shuffled, and which one is right."""
    others = [answer for answer in CHOICES[asked.family] if answer != asked.answer]
    taken = [asked.answer, *(others[at] for at in random.permutation(len(others))[: count - 1])]
    shuffled = [taken[at] for at in random.permutation(len(taken))]
    return shuffled, shuffled.index(asked.answer)


def lettered(text: str, options: Sequence[str]) -> str:
    """A question and its choices, one a line: "A. red"."""
    return "\n".join([text, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def json_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """One JSON object per line, UTF-8."""
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()


def json_file(content: Any) -> bytes:
    """One JSON value, UTF-8."""
    return json.dumps(content).encode()
