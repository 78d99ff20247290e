"""Cluttered pictures: the same bytes everywhere, nowhere plain, and everything that is asked about can be seen."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_embedded_benchmarks import truth

from embedded import clutter, textures
from embedded.benchmarks import BENCHMARKS, calibration
from embedded.canvas import place
from embedded.clutter import CLUTTER, DULL, SCENES, SIDE, picture, scene
from embedded.evaluate import asked
from embedded.evaluate import main as evaluate
from embedded.glyphs import string_mask
from embedded.questions import FAMILIES, one_of_each
from embedded.render import render, shape_mask
from embedded.scene import COLORS, Scene, draw
from fitprune.errors import FitPruneError

PATCH = 14
DIGESTS = {
    ("train", 0): "89b12844e9f2655a",
    ("dense", 3): "e3cc6bbceb222c77",
    ("held-out", 7): "d8c5ea89a4b06bec",
    ("calibration", 20): "17cb884d20a77a6e",
}


def pixels(of: Scene) -> np.ndarray:
    return np.asarray(picture(of)).astype(np.int64)


@pytest.mark.parametrize(("split", "index"), DIGESTS)
def test_a_number_gives_the_same_bytes_everywhere(split: Any, index: int) -> None:
    assert hashlib.sha256(picture(scene(split, index)).tobytes()).hexdigest()[:16] == DIGESTS[split, index]


def test_pictures_differ_by_split_and_number_and_from_plain_ones() -> None:
    drawn = {picture(scene(split, index)).tobytes() for split in ("train", "held-out", "calibration") for index in range(4)}
    assert len(drawn) == 12
    assert scene("train", 5).shapes != draw("train", 5).shapes
    assert picture(scene("train", 5)).size == (SIDE, SIDE)


def test_things_are_as_small_as_in_plain_pictures_and_lie_in_their_cells() -> None:
    for index in range(40):
        for split in ("train", "dense"):
            drawn = scene(split, index)  # type: ignore[arg-type]
            cells = [thing.cell for thing in (*drawn.shapes, *drawn.texts)]
            assert len(set(cells)) == len(cells)
            assert all(0 <= axis < CLUTTER.grid for cell in cells for axis in cell)
            for shape in drawn.shapes:
                assert 9 <= shape.radius <= 14
                for place_, axis in zip(shape.cell, (shape.y, shape.x), strict=True):
                    start = CLUTTER.margin + CLUTTER.cell * place_
                    assert start <= axis - shape.radius
                    assert axis + shape.radius < start + CLUTTER.cell
            assert all(10 <= text.height <= 17 for text in drawn.texts)


def test_dense_pictures_are_full_of_strings() -> None:
    assert {len(scene("dense", index).texts) for index in range(5)} == {CLUTTER.strings}
    assert len(draw("dense", 0).texts) == 7


def nearest(image: np.ndarray, things: np.ndarray) -> float:
    """Mean over patches without a thing: how far, per pixel and channel, the most similar other patch is."""
    grid = image.shape[0] // PATCH
    cut = image.reshape(grid, PATCH, grid, PATCH, 3).swapaxes(1, 2).reshape(grid * grid, -1).astype(np.float64)
    free = ~things.reshape(grid, PATCH, grid, PATCH).any((1, 3)).reshape(-1)
    cut = cut[free]
    away = ((cut[:, None] - cut[None]) ** 2).mean(-1) ** 0.5
    np.fill_diagonal(away, np.inf)
    return float(away.min(1).mean())


def things(of: Scene) -> np.ndarray:
    """Where shapes and strings are."""
    found = np.zeros((of.layout.side, of.layout.side), dtype=bool)
    for shape in of.shapes:
        found[shape.y - shape.radius : shape.y + shape.radius + 1, shape.x - shape.radius : shape.x + shape.radius + 1] = True
    for text in of.texts:
        found[text.y - 1 : text.y + text.height + 1, text.x - 1 : text.x + text.width + 1] = True
    return found


def test_the_background_is_nowhere_plain() -> None:
    """Patches that show nothing differ from each other several times as much as on plain pictures, in every picture."""
    plain = [nearest(np.asarray(render(draw("held-out", index))), things(draw("held-out", index))) for index in range(12)]
    cluttered = [nearest(pixels(scene("held-out", index)), things(scene("held-out", index))) for index in range(12)]
    assert np.mean(cluttered) > 2.5 * np.mean(plain)
    assert min(cluttered) > np.mean(plain)
    for index in range(12):
        cut = pixels(scene("held-out", index)).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
        assert np.median(cut.std((1, 3)).max(-1)) > 10


def test_at_most_a_fifth_of_a_shape_is_hidden() -> None:
    hidden = []
    for index in range(60):
        drawn = scene("held-out", index)
        image = pixels(drawn)
        for shape in drawn.shapes:
            inside = shape_mask(shape.kind, shape.radius) > 250
            rows, columns = (slice(at - shape.radius, at + shape.radius + 1) for at in (shape.y, shape.x))
            apart = np.abs(image[rows, columns][inside] - shape.rgb).max(-1)
            hidden.append(float((apart > 36).mean()))  # light and grain change a shape by less
    assert max(hidden) <= 0.3  # a fifth of all of it: at most so much of its whole pixels
    assert np.mean([share > 0.02 for share in hidden]) > 0.1  # and some are covered in part


def test_strings_stand_out_from_what_is_around_their_strokes() -> None:
    for index in range(60):
        drawn = scene("held-out", index)
        image = pixels(drawn).sum(-1) // 3
        for text in drawn.texts:
            mask = string_mask(text.text, text.height)
            area = image[text.y : text.y + mask.shape[0], text.x : text.x + mask.shape[1]]
            wide = np.pad(mask, 1)
            near = np.max([wide[a : a + mask.shape[0], b : b + mask.shape[1]] for a in range(3) for b in range(3)], axis=0)
            ink, around = area[mask > 230], area[(mask == 0) & (near > 200)]
            assert len(ink), text
            assert len(around), text
            assert abs(float(np.median(ink)) - float(np.median(around))) > 90, (index, text)


def test_what_no_question_is_about_has_no_color_that_one_asks_for() -> None:
    for vivid in COLORS.values():
        for dull in DULL:
            assert np.abs(np.array(vivid) - dull).max() > 18 + 12 + 10
    random = np.random.RandomState(0)
    for _ in range(200):
        ramp = textures.ramp(random).astype(np.int64)
        assert (ramp.max(1) - ramp.min(1)).max() <= 2 * textures.MUTED


@pytest.mark.parametrize("field", textures.FIELDS)
def test_a_field_fills_its_square_and_varies(field: Any) -> None:
    drawn = [field(np.random.RandomState(seed), size) for seed, size in ((0, 224), (1, 57), (2, 8), (3, 224))]
    assert [one.shape for one in drawn] == [(224, 224), (57, 57), (8, 8), (224, 224)]
    assert all(one.dtype == np.uint8 for one in drawn)
    assert drawn[0].std() > 5
    assert not np.array_equal(drawn[0], drawn[3])


def test_every_family_can_be_asked_about_cluttered_scenes() -> None:
    asked = [one.family for index in range(20) for one in one_of_each(scene("held-out", index))]
    assert set(asked) == set(FAMILIES)


def test_answers_are_true_of_what_is_drawn() -> None:
    """By a reading of the question that shares nothing with the code that asked."""
    for index in range(20):
        drawn = scene("held-out", index)
        for question in one_of_each(drawn):
            assert truth(drawn, question.text) == question.answer, question


def test_benchmarks_can_be_about_cluttered_pictures() -> None:
    files = calibration.build(3, clutter.scene)
    pictures = [Image.open(io.BytesIO(content)) for name, content in files.items() if name.endswith(".jpg")]
    assert [picture.size for picture in pictures] == [(SIDE, SIDE)] * 3
    assert files.keys() == calibration.build(3).keys()
    wanted = pixels(scene("calibration", 2))
    assert np.abs(np.asarray(pictures[2]).astype(np.int64) - wanted).mean() < 8


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_draws_what_it_is_given(name: str) -> None:
    drawn: list[tuple[str, int]] = []

    def note(split: Any, index: int) -> Scene:
        drawn.append((split, index))
        return scene(split, index)

    files = BENCHMARKS[name](2, note)
    assert len(drawn) >= 2
    assert files == BENCHMARKS[name](2, scene)
    assert files != BENCHMARKS[name](2)


def test_the_judge_can_be_asked_about_its_pictures() -> None:
    questions = asked("held-out", 2, draw=scene)
    assert {picture.size for picture, _ in questions} == {(SIDE, SIDE)}
    assert [one for _, one in questions[: len(one_of_each(scene("held-out", 0)))]] == one_of_each(scene("held-out", 0))
    assert evaluate(["--scenes", "cluttered", "--canvas", "300", "300", "--ratios", "0"]) == 2


def test_a_scene_knows_which_picture_is_its_own() -> None:
    for draw_, own in ((draw, render), (clutter.scene, picture)):
        drawn = draw_("held-out", 1)
        assert place(drawn).tobytes() == own(drawn).tobytes()
    assert list(SCENES) == ["plain", "cluttered"]
    with pytest.raises(FitPruneError, match="leave out --canvas"):
        place(scene("held-out", 1), (336, 336))
