"""Targets against the picture itself: what a patch is said to show is what changed there when it was drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest

from embedded.glyphs import CHARACTERS
from embedded.network import PATCH
from embedded.render import render
from embedded.scene import COLORS, KINDS, SIDE, Scene, Split, draw
from embedded.targets import HEADS, IGNORE, LENGTH, targets

GRID = SIDE // PATCH
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NAMES = list(HEADS)
scene_of = cache(draw)
SCENES: list[tuple[Split, int]] = [(split, index) for split in get_args(Split) for index in range(7)]


@cache
def found(split: Split, index: int, grid: int = GRID) -> dict[str, np.ndarray]:
    """The targets by name, each [grid, grid]."""
    return dict(zip(NAMES, targets(scene_of(split, index), grid).reshape(len(HEADS), grid, grid), strict=True))


def share(pixels: np.ndarray) -> np.ndarray:
    """Which share of each patch is true, bool [SIDE, SIDE] → [GRID, GRID]."""
    return pixels.reshape(GRID, PATCH, GRID, PATCH).mean(axis=(1, 3))


def painted(scene: Scene) -> np.ndarray:
    """The pixels that the things in a scene change, bool [SIDE, SIDE]."""
    empty = render(replace(scene, shapes=(), texts=()))
    return (np.asarray(render(scene)) != np.asarray(empty)).any(axis=2)


@pytest.mark.parametrize(("split", "index"), SCENES)
def test_shapes_are_labelled_where_they_are_painted(split: Split, index: int) -> None:
    scene, found_here = scene_of(split, index), found(split, index)
    picture = np.asarray(render(scene))
    for shape in scene.shapes:
        touched = share(painted(replace(scene, shapes=(shape,), texts=())))  # with the soft edge
        solid = share((picture == shape.rgb).all(axis=2) & painted(replace(scene, shapes=(shape,), texts=())))
        assert (solid >= 0.13).any()
        for name, label in (("kind", 1 + KINDS.index(shape.kind)), ("color", 1 + list(COLORS).index(shape.color))):
            labels = found_here[name]
            assert (labels[solid >= 0.13] == label).all()
            assert np.isin(labels[solid > 0], (label, IGNORE)).all()
            assert np.isin(labels[(touched > 0) & (touched < 0.12)], (0, IGNORE)).all()
    untouched = share(painted(replace(scene, texts=()))) == 0
    assert (found_here["kind"][untouched] == 0).all()
    assert (found_here["color"][untouched] == 0).all()


def test_the_patch_in_the_middle_of_a_shape_is_nearly_always_labelled() -> None:
    """Only a small star or diamond may lie so between four patches that the middle one shows too little."""
    asked = [
        found(split, index)["kind"][shape.y // PATCH, shape.x // PATCH] != IGNORE
        for split, index in SCENES
        for shape in scene_of(split, index).shapes
    ]
    assert sum(asked) > 0.97 * len(asked)


@pytest.mark.parametrize(("split", "index"), SCENES)
def test_strings_are_labelled_where_they_are_painted(split: Split, index: int) -> None:
    scene, found_here = scene_of(split, index), found(split, index)
    near = np.zeros((GRID, GRID), dtype=np.int64)
    for text in scene.texts:
        ink = share(painted(replace(scene, shapes=(), texts=(replace(text, plate=""),))))
        near += ink > 0
        labels = [1 + CHARACTERS.index(character) for character in text.text]
        labels += [0] * (LENGTH - len(labels))
        shown = found_here["character 1"] == labels[0]
        for at, label in enumerate(labels):
            character = found_here[f"character {at + 1}"]
            assert (character[ink >= 0.15] == label).all()
            assert np.isin(character[ink > 0], (label, IGNORE)).all()
            shown &= character == label
        assert shown[ink > 0].sum() >= 2, text  # every string is asked for in two patches or more
    for at in range(LENGTH):  # what counts is the box around the ink: at most the next patch is labelled
        assert (found_here[f"character {at + 1}"][grown(near > 0) == 0] == 0).all()


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask and the patches beside it."""
    wide = np.pad(mask, 1)
    return np.any([wide[1 + y : 1 + y + GRID, 1 + x : 1 + x + GRID] for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)


@pytest.mark.parametrize(("split", "index"), SCENES)
def test_only_shapes_are_asked_what_is_around_them(split: Split, index: int) -> None:
    scene, found_here = scene_of(split, index), found(split, index)
    cell = SIDE // 4
    by_place = {(shape.x // cell, shape.y // cell): shape for shape in scene.shapes}
    for name, (dx, dy) in PLACES.items():
        expected = np.full((GRID, GRID), IGNORE)
        for row in range(GRID):
            for column in range(GRID):
                if found_here["kind"][row, column] <= 0:
                    continue
                x, y = column * PATCH // cell, row * PATCH // cell
                other = by_place.get((x + dx, y + dy))
                expected[row, column] = 1 + KINDS.index(other.kind) if other else 0
        assert np.array_equal(found_here[name], expected)


def test_classes_fit_their_heads() -> None:
    assert ["kind", "color", "character 1", "character 2", "character 3", *PLACES] == NAMES
    seen: dict[str, set[int]] = {name: set() for name in NAMES}
    for split, index in SCENES:
        table = targets(scene_of(split, index), GRID)
        assert table.dtype == np.int64
        assert table.shape == (len(HEADS), GRID**2)
        for name, row in zip(NAMES, table, strict=True):
            seen[name] |= set(row.tolist())
    for name, classes in HEADS.items():
        assert seen[name] <= {IGNORE, *range(classes)}
    assert seen["kind"] == {IGNORE, *range(HEADS["kind"])}
    assert seen["color"] == {IGNORE, *range(HEADS["color"])}
    assert len(seen["character 1"]) > 30


def test_a_finer_grid_says_the_same() -> None:
    """Where all four quarters of a patch agree, the patch agrees with them."""
    for split, index in SCENES[:20]:
        fine, coarse = found(split, index, 2 * GRID)["color"], found(split, index)["color"]
        quarters = fine.reshape(GRID, 2, GRID, 2).transpose(0, 2, 1, 3).reshape(GRID, GRID, 4)
        agreed = (quarters == quarters[..., :1]).all(axis=-1) & (quarters[..., 0] != IGNORE)
        assert agreed.sum() > 100
        assert np.array_equal(coarse[agreed], quarters[..., 0][agreed])
