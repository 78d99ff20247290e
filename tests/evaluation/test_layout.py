"""Benchmark folders as people unpack them: pictures found in one other place, spelled otherwise, or refused before a run."""

from __future__ import annotations

from os import scandir as listed
from pathlib import Path

import pytest

from fitprune.errors import FitPruneError
from fitprune.evaluation import layout
from fitprune.evaluation.layout import Missing, folders_below, placed
from fitprune.questions import Question


def asked(*images: str | None) -> list[Question]:
    return [Question(at, image, "What?") for at, image in enumerate(images)]


def make(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def found(data: Path, *images: str | None, folder: str = "val2014", refuse: Missing = "any") -> tuple[list[str | None], list[str]]:
    """Pictures of the questions, and notes."""
    questions, notes = placed(asked(*images), data / folder, data, refuse)
    return [question.image for question in questions], notes


def test_where_they_are_expected_nothing_changes(tmp_path: Path) -> None:
    make(tmp_path / "val2014/a.jpg", tmp_path / "val2014/val2014/a.jpg")
    questions = [*asked("a.jpg", None), Question(2, "held", "What?", content=b"x")]
    assert placed(questions, tmp_path / "val2014", tmp_path) == (questions, [])


@pytest.mark.parametrize("place", ["val2014/val2014", "coco/val2014", "images", "a/b/c/val2014"])
def test_one_other_place_below_the_folder_is_taken_and_said(tmp_path: Path, place: str) -> None:
    litter = ["__MACOSX/val2014/a.jpg", "val2014/._a.jpg", ".cache/a.jpg", "answers/a.jpg"]
    make(*(tmp_path / place / name for name in ("a.jpg", "b.jpg")), *(tmp_path / name for name in litter))
    images, notes = found(tmp_path, "a.jpg", "b.jpg", "a.jpg")
    assert images == [str(tmp_path / place / name) for name in ("a.jpg", "b.jpg", "a.jpg")]
    assert all((tmp_path / "val2014" / str(image)).exists() for image in images)
    assert notes == [f"3 images are in {tmp_path / place}, not in {tmp_path / 'val2014'}"]


def test_folders_of_a_question_file_may_lie_in_different_places(tmp_path: Path) -> None:
    make(tmp_path / "SEED-Bench-image/SEED-Bench-image/1", tmp_path / "SEED-Bench-video-image/2.png")
    images, notes = found(tmp_path, "SEED-Bench-image/1", "SEED-Bench-video-image/2.png", folder=".")
    assert images == [str(tmp_path / "SEED-Bench-image/SEED-Bench-image/1"), "SEED-Bench-video-image/2.png"]
    assert len(notes) == 1


@pytest.mark.parametrize("there", ["a.JPG", "a.jpeg", "A.jpg", "a.JPEG"])
def test_another_spelling_of_the_ending(tmp_path: Path, there: str) -> None:
    make(tmp_path / "val2014" / there)
    images, notes = found(tmp_path, "a.jpg")
    assert images == [there]
    assert notes == ["1 images have another spelling of their ending than in the question file"]
    make(tmp_path / "val2014/a.jpg")
    assert found(tmp_path, "a.jpg") == (["a.jpg"], [])


def test_what_is_missing_or_there_twice_is_named(tmp_path: Path) -> None:
    make(tmp_path / "val2014/a.jpg", tmp_path / "val2014/b.JPG", tmp_path / "val2014/b.jpeg", tmp_path / "val2014/c.png")
    with pytest.raises(FitPruneError, match=r"no image .*val2014/b\.jpg: 2 of 3 questions have no picture; .*docs/evaluation\.md"):
        found(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert found(tmp_path, "a.jpg", "b.jpg", refuse="nothing") == (["a.jpg", "b.jpg"], [])
    make(tmp_path / "x/d.jpg", tmp_path / "y/d.jpg")
    with pytest.raises(FitPruneError, match=r"image d\.jpg is in .*/x and in .*/y: leave one"):
        found(tmp_path, "d.jpg")
    with pytest.raises(FitPruneError, match="no image"):
        found(tmp_path / "nowhere", "a.jpg")


def test_lone_pictures_may_be_lost_but_not_whole_folders(tmp_path: Path) -> None:
    make(tmp_path / "a/1.jpg", tmp_path / "b/1.jpg")
    lone = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg"]
    assert found(tmp_path, *lone, folder=".", refuse="folders") == (lone, [])
    for images in ([*lone, "c/2.jpg"], ["c/1.jpg"]):
        with pytest.raises(FitPruneError, match=r"no image .*c/1\.jpg"):
            found(tmp_path, *images, folder=".", refuse="folders")
    with pytest.raises(FitPruneError, match=r"no image .*a/2\.jpg"):
        found(tmp_path, *lone, folder=".")


def test_a_lost_picture_and_one_elsewhere_do_not_hide_the_others(tmp_path: Path) -> None:
    make(*(tmp_path / f"val2014/val2014/{name}.jpg" for name in "bcd"))
    there = [str(tmp_path / f"val2014/val2014/{name}.jpg") for name in "bcd"]
    for refuse in ("folders", "nothing"):
        assert found(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", refuse=refuse)[0] == ["a.jpg", *there]
    make(tmp_path / "val2014/a.jpg")
    assert found(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")[0] == ["a.jpg", *there]
    make(*(tmp_path / f"thumbnails/{name}.jpg" for name in "abcde"), *(tmp_path / f"train/{name}.jpg" for name in "abcd"))
    assert found(tmp_path, "a.jpg", "e.jpg", "a.jpg", refuse="folders")[1] == [
        f"3 images are in {tmp_path}/thumbnails, not in {tmp_path}/val2014"
    ]
    make(*(tmp_path / f"val2014/{name}.jpg" for name in "bcd"))
    assert found(tmp_path, *(f"{name}.jpg" for name in "abcde"), refuse="folders") == ([f"{name}.jpg" for name in "abcde"], [])


def test_a_folder_for_every_picture_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(*(tmp_path / f"test/{number}/image.png" for number in range(60)), *(tmp_path / f"train/{n}/image.png" for n in range(60, 200)))
    scans = []

    def scan(path: Path) -> object:
        scans.append(path)
        return listed(path)

    monkeypatch.setattr(layout.os, "scandir", scan)
    images, notes = found(tmp_path, *(f"{number}/image.png" for number in range(60)), folder="images/test")
    assert images[7] == str(tmp_path / "test/7/image.png")
    assert len(notes) == 1
    assert len(scans) < 1000  # not folders × questions


def test_folders_come_nearest_first_and_only_so_deep(tmp_path: Path) -> None:
    make(tmp_path / "b/x", tmp_path / "a/c/x", tmp_path / "eval_tool/x", tmp_path / ".git/x")
    assert [str(one.relative_to(tmp_path)) for one in folders_below(tmp_path)] == [".", "a", "b", "a/c"]
    assert list(folders_below(tmp_path, 0)) == [tmp_path]
