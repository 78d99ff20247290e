"""Pictures: fixed bytes, shapes with the area that geometry gives them, strings that stand out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedded.glyphs import string_mask
from embedded.render import INSIDE, background, main, render, shape_mask
from embedded.scene import KINDS, SIDE, Scene, draw, stream

RADII = range(9, 15)  # those that scenes use
AREAS = {  # in radii squared, from school geometry
    "circle": np.pi,
    "square": 4 * (7 / 8) ** 2,
    "triangle": 1.8 * (1.8 * 11 / 9) / 2,  # height times base, halved
    "diamond": 2 * 0.75,
    "star": 1.70,  # a pentagram of 1.236 radii, its tips cut off at one radius
    "cross": 2 * (2 * 2 / 3) - (2 / 3) ** 2,
}


def array(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene))


@pytest.mark.parametrize(
    ("split", "index", "digest"),
    [
        ("held-out", 0, "9cffc2f5680c2f1db59dc1f98ae5ff9968e1b1d822570201acdfbbe887ebc521"),
        ("held-out", 1, "212eab6b9e4e3704ee4021bc336f6b982635f174caddae2f8639d73c66aa1b2e"),
        ("train", 123456, "aed66b8bfbfe72c0f321c4465e65d8892634fef36e64b484b446e9559378f663"),
        ("dense", 0, "5dccd54e2d1366f13559dc5c027c499bbe612a77beef4b15361026bf8e570829"),
        ("textvqa", 7, "5fde1112c310088143e8722b4c44c1b32ee79c26f260723ddc195d317c46b83b"),
    ],
)
def test_a_picture_is_the_same_bytes_on_every_machine(split: str, index: int, digest: str) -> None:
    picture = render(draw(split, index))  # type: ignore[arg-type]
    assert (picture.mode, picture.size) == ("RGB", (SIDE, SIDE))
    assert hashlib.sha256(picture.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_have_the_area_and_symmetry_of_their_kind(kind: str) -> None:
    for radius in RADII:
        mask = shape_mask(kind, radius)
        assert mask.shape == (2 * radius + 1, 2 * radius + 1)
        assert np.array_equal(mask, mask[:, ::-1])
        assert mask[radius, radius] == 255
        assert mask.sum() / 255 / radius**2 == pytest.approx(AREAS[kind], rel=0.06)
        assert max(np.flatnonzero(mask.any(axis=1))[[0, -1]]) >= 1.5 * radius  # as large as its radius says
    assert np.array_equal(shape_mask(kind, 12), shape_mask(kind, 12)[::-1]) == (kind not in ("triangle", "star"))


def test_shapes_are_told_apart_at_any_size() -> None:
    assert set(INSIDE) == set(KINDS)
    for radius in RADII:
        for one, other in combinations(KINDS, 2):
            differ = abs(shape_mask(one, radius).astype(int) - shape_mask(other, radius)).sum() / 255
            assert differ > 0.15 * np.pi * radius**2, (one, other, radius)


def test_points_of_a_shape_are_where_they_belong() -> None:
    """The triangle and the star point up; a diamond is taller than wide; a cross has empty corners."""
    for radius in RADII:
        widths = {kind: (shape_mask(kind, radius) > 127).sum(axis=1) for kind in KINDS}
        heights = {kind: (shape_mask(kind, radius) > 127).sum(axis=0) for kind in KINDS}
        assert widths["triangle"][3] < widths["triangle"][radius] < widths["triangle"][2 * radius - 3]
        assert widths["star"][2] < 6
        assert (heights["diamond"] > 0).sum() < (widths["diamond"] > 0).sum()
        corner = shape_mask("cross", radius)[: radius // 2, : radius // 2]
        assert not corner.any()


@given(index=st.integers(0, 2**32 - 1), split=st.sampled_from(("train", "dense", "pope")))
@settings(max_examples=25, deadline=None)
def test_a_picture_is_background_with_the_scene_on_it(index: int, split: str) -> None:
    scene = draw(split, index)  # type: ignore[arg-type]
    picture, empty = array(scene), background(stream(scene.split, index, purpose=1))
    assert np.array_equal(array(replace(scene, shapes=(), texts=())), empty)
    free = np.ones((SIDE, SIDE), bool)
    for shape in scene.shapes:
        assert tuple(picture[shape.y, shape.x]) == shape.rgb
        free[shape.y - shape.radius : shape.y + shape.radius + 1, shape.x - shape.radius : shape.x + shape.radius + 1] = False  # fmt: skip
    for text in scene.texts:
        free[text.y - 1 : text.y + text.height + 1, text.x - 1 : text.x + text.width + 1] = False
    assert np.array_equal(picture[free], empty[free])


def test_strings_stand_out_from_what_is_behind_them() -> None:
    plates = set()
    for index in range(80):
        scene = draw("train", index)
        picture = array(scene).astype(int).mean(axis=2)
        for text in scene.texts:
            mask = string_mask(text.text, text.height)
            area = picture[text.y : text.y + text.height, text.x : text.x + text.width]
            plates.add(text.plate)
            assert abs(area[mask > 200].mean() - area[mask == 0].mean()) > 60, (index, text)
    assert plates == {"", "dark", "light"}


def test_a_plate_frames_its_string_by_a_pixel() -> None:
    text = next(t for i in range(99) for t in draw("train", i).texts if t.plate == "light")
    scene = next(s for s in (draw("train", i) for i in range(99)) if text in s.texts)
    picture = array(scene)
    frame = picture[text.y - 1 : text.y + text.height + 1, text.x - 1 : text.x + text.width + 1]
    edge = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    assert (edge == 240).all()
    assert frame.min() == 15  # black ink


def test_backgrounds_differ_and_have_colour_and_grain() -> None:
    drawn = [background(stream("train", index, purpose=1)) for index in range(40)]
    assert all(picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8 for picture in drawn)
    means = np.array([picture.mean() for picture in drawn])
    assert means.min() < 80
    assert means.max() > 165
    assert min(picture.std(axis=(0, 1)).min() for picture in drawn) > 5


def test_command_line_writes_the_picture(tmp_path: Path) -> None:
    main("held-out", "3", str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), array(draw("held-out", 3)))
    with pytest.raises(SystemExit, match="unknown split 'heldout': use one of train, dense"):
        main("heldout", "3", str(tmp_path / "b.png"))
