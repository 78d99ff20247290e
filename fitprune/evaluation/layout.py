"""Benchmark folders as people unpack them: which of their folders count, and where a question's picture is.

Archives are unpacked into a folder of their name (`val2014/val2014`), beside the folder that is expected (`coco/val2014`), by a
Mac (`__MACOSX`, `._a.jpg`) or with other spellings of a file's ending (`.JPG`, `.jpeg`). `placed` finds the pictures all the
same, if only one place has most of a folder, says so, and names what is missing before a model is loaded.

Left out: pictures of other names or formats, and archives that are not unpacked.

    python -c "from fitprune.evaluation.layout import *; print(*folders_below(Path('playground/data/eval/MME')))"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from ..errors import FitPruneError
from ..questions import Question

DEPTH = 4  # folders below the benchmark's that are looked into
OURS = ("answers", "answers_upload", "upload", "eval_tool")  # what runs and tools write, never what was unpacked
Missing = Literal["any", "folders", "nothing"]  # pictures that are not there: what is refused
SAME = {".jpeg": ".jpg"}  # endings of one format


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name was left by an operating system: `__MACOSX`, `.DS_Store`, `._a.txt`."""
    return name.startswith((".", "__MACOSX"))


def folders_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder and those in it, nearest first, without litter and what runs write."""
    level = [folder]
    for _ in range(depth + 1):
        yield from level
        level = [below for one in level for below in _folders(one)]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [folder / name for name in names if name not in OURS and not is_litter(name)]


def placed(questions: Sequence[Question], images: Path, data: Path, refuse: Missing = "any") -> tuple[list[Question], list[str]]:
    """The questions with their pictures where these are, and a line on each folder that was not the expected one.

    Args:
        images: The image folder, below which the pictures are looked for first.
        data: The folder below which else they may lie.
        refuse: Whether any picture that is not there is an error; or only a folder none of whose pictures is there, as a wrong layout
            has it (a lone one may have been lost, and skips its question later: usable.py); or nothing, left to whoever opens it.
    Raises:
        FitPruneError: for such pictures, and those that are in several places; names the first.
    """

    @cache
    def names(folder: Path) -> dict[str, list[str]]:
        """The files of a folder by their comparable names."""
        found: dict[str, list[str]] = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not is_litter(entry.name):
                        found.setdefault(_spelling(entry.name), []).append(entry.name)
        except OSError:
            pass
        return found

    def there(root: Path, image: PurePosixPath) -> str | None:
        """The picture's path below a root, in the spelling it has there."""
        same = names(root / image.parent).get(_spelling(image.name), [])
        name = image.name if image.name in same else same[0] if len(same) == 1 else None
        return None if name is None else str(image.parent / name)

    @cache
    def folders(depth: int) -> dict[str, list[tuple[Path, int]]]:
        """The folders below which pictures are looked for by their name, each once, and how far below."""
        once = {folder.resolve(): (folder, top) for top in (images, data) for folder in folders_below(top, depth)}
        found: dict[str, list[tuple[Path, int]]] = {}
        for folder, top in once.values():
            found.setdefault(folder.name, []).append((folder, len(folder.parts) - len(top.parts)))
        return found

    def roots(parent: PurePosixPath) -> list[Path]:
        """Folders that may take the image folder's place for a folder of the question file: those that have such a one."""
        deep = len(parent.parts)
        if not deep:
            return [folder for named in folders(DEPTH).values() for folder, _ in named]
        ends = [(one, below) for one, below in folders(DEPTH + deep).get(parent.name, []) if one.parts[-deep:] == parent.parts]
        return [folder.parents[deep - 1] for folder, below in ends if deep <= below <= DEPTH + deep]

    wanted: dict[PurePosixPath, set[PurePosixPath]] = {}
    for question in questions:
        if question.image and question.content is None:
            wanted.setdefault(PurePosixPath(question.image).parent, set()).add(PurePosixPath(question.image))

    @cache
    def root_of(parent: PurePosixPath) -> Path:
        """Where the pictures are that the question file has in a folder, or most of them: one may be lost, another lie elsewhere."""
        pictures = sorted(wanted[parent])

        def most(root: Path) -> bool:
            return 2 * sum(there(root, image) is not None for image in pictures) > len(pictures)

        if most(images):
            return images
        found = [root for root in roots(parent) if most(root)]
        if len(found) > 1:
            both = next(image for image in pictures if there(found[0], image) and there(found[1], image))
            raise FitPruneError(f"image {both} is in {found[0] / parent} and in {found[1] / parent}: leave one of them there")
        return found[0] if found else images

    result: list[Question] = []
    missing: dict[PurePosixPath, list[str]] = {}  # by the question file's folder
    found: set[PurePosixPath] = set()
    elsewhere: dict[Path, int] = {}
    respelled = 0
    for question in questions:
        if not question.image or question.content is not None:
            result.append(question)
            continue
        image = PurePosixPath(question.image)
        root = root_of(image.parent)
        if (path := there(root, image)) is None:
            root, path = images, there(images, image)  # a lone one where all were expected
        if path is None:
            missing.setdefault(image.parent, []).append(question.image)
            result.append(question)
            continue
        found.add(image.parent)
        respelled += PurePosixPath(path).name != image.name
        if root != images:
            elsewhere[root] = elsewhere.get(root, 0) + 1
            path = str((root / path).absolute())
        result.append(replace(question, image=path) if path != str(image) else question)
    whole = [names for parent, names in missing.items() if parent not in found and (len({*names}) > 1 or not found)]
    if refused := list(missing.values()) if refuse == "any" else whole if refuse == "folders" else []:
        count = f"{sum(map(len, missing.values()))} of {len(questions)} questions have no picture"
        raise FitPruneError(
            f"no image {images / refused[0][0]}: {count}; check the image folder (--image-folder), docs/evaluation.md lists it"
        )
    notes = [f"{count} images are in {root}, not in {images}" for root, count in elsewhere.items()]
    return result, notes + ([f"{respelled} images have another spelling of their ending than in the question file"] if respelled else [])


def find_pictures(questions: Sequence[Question], images: Path, data: Path, strict: bool, tell: bool) -> list[Question]:
    """`placed` for a command: what it has to say is printed where `tell`, and one picture that is not there is an error where strict."""
    found, notes = placed(questions, images, data, "any" if strict else "folders")
    if tell and notes:
        print(*notes, sep="\n")
    return found


def with_pictures(read: Callable[[Path], list[Question]], images: Path, data: Path) -> Callable[[Path], list[Question]]:
    """How a question file is read, with its pictures where they are (`placed`); those that are nowhere stay as they are."""
    return lambda path: placed(read(path), images, data, refuse="nothing")[0]


def _spelling(name: str) -> str:
    stem, ending = os.path.splitext(name.lower())
    return stem + SAME.get(ending, ending)
