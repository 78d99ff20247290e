"""Scenes: drawn from a number alone, with room for everything, and neighbours that are neighbours to the eye."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded.glyphs import string_mask
from embedded.render import shape_mask
from embedded.scene import CELL, COLORS, GRID, KINDS, PLAIN, SIDE, Scene, Split, draw, stream

SPLITS: tuple[Split, ...] = get_args(Split)
JITTER = 18  # how far a shape's colour may be from its name's
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside

scenes = st.builds(draw, st.sampled_from(SPLITS), st.integers(0, 2**32 - 1))


def boxes(scene: Scene) -> list[Box]:
    """What each shape and string may paint, a string's plate included."""
    shapes = [(s.x - s.radius, s.y - s.radius, s.x + s.radius + 1, s.y + s.radius + 1) for s in scene.shapes]
    masks = [(text, string_mask(text.text, text.height)) for text in scene.texts]
    return shapes + [(t.x - 1, t.y - 1, t.x + m.shape[1] + 1, t.y + m.shape[0] + 1) for t, m in masks]


def test_scenes_are_the_same_on_every_machine() -> None:
    expected = {  # a new split leaves the others as they are
        SPLITS[:8]: "b9344bd677df8efd115c92e185fd3a9dc88d960e25f9dcb6f7309b8d8b1467bd",
        SPLITS[8:11]: "5373ff2d9e7143f7dfc93be679ac280239a32edb753ad114a77bcd63545537d2",
        SPLITS[11:]: "78a2a9ee1941103dab30a3e8c6209ffc6b97c43cd3ccb681d613616851b29f07",
    }
    for splits, digest in expected.items():
        plain = [asdict(draw(split, index)) for split in splits for index in range(20)]
        assert {str(scene.pop("layout")) for scene in plain} == {str(asdict(PLAIN))}
        text = json.dumps(plain)  # fails on anything but Python's own types
        assert hashlib.sha256(text.encode()).hexdigest() == digest


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_scene_depends_on_its_number_alone(split: Split, index: int, other: int) -> None:
    first = draw(split, index)
    draw(split, other)
    assert draw(split, index) == first
    assert (first.split, first.index) == (split, index)


def test_another_process_draws_the_same_scene() -> None:
    """Hash seeds differ between processes: a scene that hung on the order of a set would differ."""
    code = "from embedded.scene import draw; print([draw('gqa', i) for i in range(9)])"
    environment = {"PYTHONHASHSEED": "5", "PATH": ""}
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True)
    assert out.stdout.decode().strip() == str([draw("gqa", index) for index in range(9)])


def test_splits_share_no_stream_and_no_scene() -> None:
    first = {tuple(stream(split, 3, purpose).randint(1 << 30, size=4)) for split in SPLITS for purpose in range(5)}
    assert len(first) == 5 * len(SPLITS)
    content = [(s.shapes, s.texts) for split in SPLITS for s in (draw(split, index) for index in range(60))]
    assert len(set(content)) == len(content)


@given(scene=scenes)
@settings(max_examples=80, deadline=None)
def test_everything_lies_in_its_cell_and_nothing_overlaps(scene: Scene) -> None:
    things = [*scene.shapes, *scene.texts]
    for thing, (left, top, right, bottom) in zip(things, boxes(scene), strict=True):
        row, column = thing.cell
        assert CELL * column <= left < right <= CELL * (column + 1)
        assert CELL * row <= top < bottom <= CELL * (row + 1)
        assert 0 <= row < GRID
        assert 0 <= column < GRID
    for one, other in combinations(boxes(scene), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


@given(scene=scenes)
@settings(max_examples=80, deadline=None)
def test_neighbours_are_neighbours_by_their_pixels(scene: Scene) -> None:
    """Found from pixel centres; and all of the shape on the left is left of all of the other."""

    def inked(shape: object, axis: int) -> tuple[int, int]:
        lines = np.flatnonzero((shape_mask(shape.kind, shape.radius) > 0).any(axis=1 - axis))  # type: ignore[attr-defined]
        start = (shape.y, shape.x)[axis] - shape.radius  # type: ignore[attr-defined]
        return int(start + lines[0]), int(start + lines[-1])

    by_place = {(shape.x * GRID // SIDE, shape.y * GRID // SIDE): shape for shape in scene.shapes}
    steps = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # x, y; y points down
    for (x, y), shape in by_place.items():
        for direction, (dx, dy) in steps.items():
            other = scene.beside(shape, direction)
            assert other == by_place.get((x + dx, y + dy))
            if other is None:
                continue
            axis = 1 if dx else 0
            first, second = (other, shape) if dx + dy < 0 else (shape, other)
            assert inked(first, axis)[1] < inked(second, axis)[0]
            sideways = abs(other.y - shape.y) if dx else abs(other.x - shape.x)
            assert sideways < CELL  # same row or column
    assert len(by_place) == len(scene.shapes)


@given(scene=scenes)
@settings(max_examples=80, deadline=None)
def test_what_a_scene_may_hold(scene: Scene) -> None:
    for shape in scene.shapes:
        assert shape.kind in KINDS
        assert max(abs(a - b) for a, b in zip(shape.rgb, COLORS[shape.color], strict=True)) <= JITTER
        assert all(0 <= value <= 255 for value in shape.rgb)
    for text in scene.texts:
        assert text.is_number == text.text.isdigit()
        assert 10 <= int(text.text) <= 999 if text.is_number else text.text.isalpha() and len(text.text) == 3
        assert text.width == string_mask(text.text, text.height).shape[1]
    numbers = [text.text for text in scene.texts if text.is_number]
    words = [text.text for text in scene.texts if not text.is_number]
    assert scene.number == (numbers[0] if numbers else None)
    assert scene.word == (words[0] if words else None)
    if scene.split == "dense":
        assert len(scene.texts) == 7
        assert 1 <= len(scene.shapes) <= 5
    else:
        assert 1 <= len(scene.texts) <= 2
        assert len(numbers) < 2
        assert len(words) < 2
        assert 1 <= len(scene.shapes) <= 6


def test_strings_are_never_too_small_to_read() -> None:
    heights = [text.height for index in range(400) for text in draw("train", index).texts]
    assert min(heights) >= 11
    assert max(heights) == 17


def test_everything_there_is_occurs_about_as_often() -> None:
    scenes = [draw("held-out", index) for index in range(600)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    for names, found in ((KINDS, [s.kind for s in shapes]), (tuple(COLORS), [s.color for s in shapes])):
        counts = [found.count(name) for name in names]
        assert min(counts) > 0.8 * len(shapes) / len(names)
        assert max(counts) < 1.2 * len(shapes) / len(names)
    cells = [shape.cell for shape in shapes]
    assert min(cells.count((row, column)) for row in range(GRID) for column in range(GRID)) > 0.65 * len(cells) / GRID**2
    lengths = [len(scene.shapes) for scene in scenes]
    assert min(lengths.count(number) for number in range(1, 7)) > 60


def test_jitter_never_makes_one_colour_another() -> None:
    for one, other in combinations(COLORS.values(), 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 2 * JITTER
