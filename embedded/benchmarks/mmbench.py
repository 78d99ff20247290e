"""MMBench in miniature: a table that holds its pictures, and every question again with its choices rotated.

A question with k choices is k rows; the further ones have its index plus multiples of a million, and MMBench counts it as
right if all are. Pictures are more strongly compressed than elsewhere, since every row holds one.

    python -c "from embedded.benchmarks import mmbench; print(mmbench.build(1)['mmbench_dev_20230712.tsv'][:300])"
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable

from ..scene import Draw, draw, stream
from .encode import LETTERS, Files, choices, in_turn, picture

QUESTIONS = "mmbench_dev_20230712.tsv"
COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D"),
    *("answer", "category", "image", "source", "l2-category", "comment", "split"),
)
CATEGORIES = {
    "color": ("attribute_recognition", "finegrained_perception (instance-level)", 4),
    "exist": ("object_localization", "finegrained_perception (instance-level)", 2),
    "relation": ("spatial_relationship", "relation_reasoning", 3),
}  # family: category, its group, number of choices
ROTATED = 1_000_000  # what is added to an index for every rotation
JPEG = {"quality": 60, "subsampling": 2}


def build(pictures: int = 8, draw: Draw = draw) -> Files:
    """The table, one question and its rotations about each of so many pictures."""
    return {QUESTIONS: table(pictures, draw=draw)}


def table(pictures: int, say: Callable[[str], str] = str, families: tuple[str, ...] = tuple(CATEGORIES), draw: Draw = draw) -> bytes:
    """The rows; `say` puts questions and choices into another language."""
    file = io.StringIO(newline="")
    rows = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
    rows.writeheader()
    for index in range(pictures):
        scene, random = draw("mmbench", index), stream("mmbench", index, purpose=3)
        asked = in_turn(scene, families)
        if asked is None:
            continue
        category, group, count = CATEGORIES[asked.family]
        options, right = choices(asked, random, count)
        image = base64.b64encode(picture(scene, **JPEG)).decode()
        for turn in range(count):
            turned = options[turn:] + options[:turn]
            rows.writerow(
                {
                    "index": index + turn * ROTATED,
                    "question": say(asked.text),
                    **{letter: say(option) for letter, option in zip(LETTERS, turned, strict=False)},
                    "answer": LETTERS[(right - turn) % count],
                    "category": category,
                    "image": image,
                    "source": "drawn",
                    "l2-category": group,
                    "split": "dev",
                }
            )
    return file.getvalue().encode()
