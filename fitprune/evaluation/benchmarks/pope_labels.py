"""POPE's label files: which label is that of a question.

LLaVA's `eval_pope.py` compares the i-th answer with the i-th label. The label files exist in several revisions (today's has
3000 random questions in another order, LLaVA's question file 2910), so a label is taken by its place only if it is about the
question's picture and text, and is looked up by these otherwise. Files that do not say what a line is about are trusted to
have the question file's order if they have as many lines.

    python -c "from fitprune.embedded import embedded; from fitprune.evaluation.benchmarks.pope_labels import read_labels; \\
        print(*read_labels(embedded().data / 'pope' / 'coco'))"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import FitPruneError
from ...files import read_bytes, read_json, read_json_lines
from ...questions import Question
from ..scoring import first_words, shortened

PREFIX, SUFFIX = "coco_pope_", ".json"
SUFFIXES = (SUFFIX, ".jsonl")
SOURCE = "get output/coco of AoiDragon/POPE at commit e3e3926, to which LLaVA's question file belongs"

Key = tuple[str, str]  # of a picture and a question, as they can be compared across files


@dataclass(frozen=True)
class Labels:
    """A label file: whether yes is right, line by line, and what each line is about, None where it does not say."""

    file: Path
    right: list[bool]
    about: list[Key | None]

    @cached_property
    def known(self) -> dict[Key, set[bool]] | None:
        """What is said of each picture and question; None where a line does not say what it is about."""
        found: dict[Key, set[bool]] = {}
        for right, about in zip(self.right, self.about, strict=True):
            if about is None:
                return None
            found.setdefault(about, set()).add(right)
        return found

    def of(self, question: Question, place: int, questions: int) -> tuple[bool, bool]:
        """The label of the question at that place among so many of its split; and whether it stood in another place.

        Raises:
            FitPruneError: if no label is about it, or labels and questions cannot be compared and are not as many.
        """
        key, what = _key(question.image, question.text), f"question {question.question_id!r}"
        there = self.about[place] if place < len(self.about) else None
        if key is None or self.known is None:
            if len(self.right) != questions:
                raise FitPruneError(f"{self.file} has {len(self.right)} labels for {questions} questions: {SOURCE}")
            return self.right[place], False
        if there == key:
            return self.right[place], False
        found = self.known.get(key, set())
        if len(found) != 1:
            has = "labels it both yes and no" if found else "has no label for it"
            line = f"; its line {place + 1} is about {there[1]!r}, {there[0]}" if there else ""
            raise FitPruneError(f"{what}, {shortened(key[1])} about {question.image}: {self.file} {has}{line}: {SOURCE}")
        return True in found, True


def _key(image: object, text: object) -> Key | None:
    """What a question is about: COCO's pictures are known with and without their prefix, POPE's own typo is one."""
    if not (isinstance(image, str) and isinstance(text, str)):
        return None
    picture = re.sub(r"^coco_(train|val)2014_", "", Path(image).stem.lower())
    return picture, first_words(text).replace("imange", "image")


def read_labels(folder: Path) -> dict[str, Labels]:
    """The labels of every `coco_pope_<split>.json` in a folder (JSON lines, or a list), sorted by split.

    Raises:
        FitPruneError: for a folder without such a file, two files of a split, and a line whose label is not yes or no.
    """
    files = sorted(file for ending in SUFFIXES for file in folder.glob(f"{PREFIX}*{ending}"))
    if not files:
        raise FitPruneError(f"{folder} holds no {PREFIX}<split>{SUFFIX}: name the folder of POPE's label files")
    labels: dict[str, Labels] = {}
    for file in files:
        split = file.stem.removeprefix(PREFIX)
        if split in labels:
            raise FitPruneError(f"{labels[split].file} and {file} are both labels of {split!r}: leave one of them there")
        labels[split] = Labels(file, [], [])
        for number, item in _items(file):
            label = str(item.get("label")).strip().lower()
            if label not in ("yes", "no"):
                raise FitPruneError(f"label file {file} line {number} has no label, yes or no: get the file again")
            labels[split].right.append(label == "yes")
            labels[split].about.append(_key(item.get("image", item.get("picture")), item.get("text", item.get("question"))))
    return labels


def _items(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    if not read_bytes(file, "label file").lstrip().startswith(b"["):
        return read_json_lines(file, "label file")
    items = read_json(file, "label file")
    return [(number, item if isinstance(item, dict) else {}) for number, item in enumerate(items, start=1)]
