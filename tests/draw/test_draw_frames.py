"""Frames: that what is faded is what was deleted, on the image itself."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from tiny import FIRST

import fitprune
from fitprune import Recipe
from fitprune.draw.frames import FADED_TO, MARK, OUTLINE, alive, fade, frames, outline
from fitprune.draw.places import on_grid, places
from fitprune.embedded import MODELS
from fitprune.errors import FitPruneError
from fitprune.trace import Trace


def test_alive_are_the_survivors_in_the_order_of_the_tokens(trace):
    kept = alive(trace, 16)
    assert kept.shape == (tiny.LAYERS, 16)
    assert kept.sum(1).tolist() == [13, 13, 8, 6]
    for layer in range(tiny.LAYERS):
        assert np.flatnonzero(kept[layer]).tolist() == [int(at) - FIRST for at in trace.visual[layer][0]]


def test_the_first_token_is_found_even_when_it_was_deleted(trace):
    group = trace._group
    assert group is not None
    for first in range(FIRST):
        moved = Trace()
        steps = moved.clear(0, torch.zeros_like(group), torch.roll(group, first - FIRST, 1))
        keep = torch.tensor([[p for p in range(group.shape[1]) if p != first]])
        steps.append((keep, torch.zeros_like(keep)))
        assert alive(moved, 16).tolist() == [[False] + [True] * 15]


def test_several_images_and_one_of_a_later_turn(llava):
    with torch.no_grad(), fitprune.prune(llava, tiny.RECIPE) as trace:
        llava(**tiny.prompt(2, "image", 3, "image", 4))
    both = [alive(trace, 16, picture=number) for number in (0, 1)]
    assert [kept[3].sum() for kept in both] == [6, 6]
    starts = (2, 2 + 16 + 3)
    found = [start + at for start, kept in zip(starts, both, strict=True) for at in np.flatnonzero(kept[3])]
    assert found == trace.visual[3][0].tolist()
    past = Trace()
    past.clear(100, torch.zeros(1, 20), torch.tensor([[0] * 4 + [1] * 16])).append((None, None))
    assert alive(past, 16).all()


@pytest.mark.parametrize("model", MODELS)
def test_frames_of_every_family(model):
    vlm = fitprune.load(model, device="cpu", dtype="float32")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 200, (120, 330, 3), dtype=np.uint8))
    other = Image.new("RGB", (100, 100))
    recipe = Recipe.from_deletions([60, 0, 20, 0, 10, 0, 10, 0, 0], visual_tokens=144)
    questions = [(vlm.prompt("What?"), [other]), (vlm.prompt("What number is written?"), [image])]
    with torch.inference_mode(), fitprune.prune(vlm.model, recipe) as trace:
        vlm.model(**vlm.encode(questions))
    drawn, where = frames(vlm, image, trace, row=1), places(vlm, image)
    kept = alive(trace, where.tokens, row=1)
    assert len(drawn) == len(trace) + 1 == 10
    assert len({frame.size for frame in drawn}) == 1
    times = drawn[0].width // where.canvas.width
    for frame, living in zip(drawn, [np.ones(where.tokens, bool), *kept], strict=True):
        pixels = np.asarray(frame.resize(where.canvas.size, Image.Resampling.BOX)).astype(float)
        for box, stays in zip(where.boxes, living, strict=True):
            if box is not None:  # the middle of a patch: its own pixels, or almost nothing but the grey
                x0, y0, x1, y1 = box
                middle = pixels[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].mean((0, 1))
                assert (abs(middle - FADED_TO[0]).max() < 20) == (not stays)
        for mark, stays in zip(where.marks, living, strict=True):
            if mark is not None:
                at = ((mark[0] + mark[2]) * times // 2, (mark[1] + mark[3]) * times // 2)
                assert (frame.getpixel(at) == ImageColor.getrgb(MARK)) == stays
    with pytest.raises(FitPruneError, match="image that was asked about"):
        frames(vlm, Image.new("RGB", (700, 100)), trace, row=1) if model.endswith("next") else alive(trace, 100, 1)


def test_fade_leaves_survivors_alone_and_greys_the_rest():
    where = on_grid(Image.new("RGB", (80, 40), (10, 60, 200)), 2, 4)
    kept = np.array([True, False, False, True, False, True, True, False])
    pixels = np.asarray(fade(where, kept, at_least=80)).astype(int)
    for row, column in np.ndindex(2, 4):
        middle = pixels[row * 20 + 10, column * 20 + 10]
        assert (middle == (10, 60, 200)).all() if kept[row * 4 + column] else (abs(middle - 222) < 30).all()
    assert tuple(pixels[10, 20]) == ImageColor.getrgb(OUTLINE)
    assert tuple(pixels[20, 10]) == ImageColor.getrgb(OUTLINE)
    assert tuple(pixels[10, 40]) != ImageColor.getrgb(OUTLINE)  # two deleted ones beside each other


def test_outline_runs_around_what_is_kept():
    where = on_grid(Image.new("RGB", (30, 30)), 3, 3)
    kept = np.zeros(9, dtype=bool)
    assert outline(where, kept) == []
    kept[4] = True
    assert outline(where, kept) == [(10, 10, 10, 20), (10, 10, 20, 10), (10, 20, 20, 20), (20, 10, 20, 20)]


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_the_outline_crosses_every_line_as_often_as_what_is_kept_changes(rows, columns, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    where = on_grid(Image.new("RGB", (7 * columns, 5 * rows)), rows, columns)
    grid = kept.reshape(rows, columns)
    changes = (grid[1:] != grid[:-1]).sum() + (grid[:, 1:] != grid[:, :-1]).sum()
    assert len(outline(where, kept)) == len(set(outline(where, kept))) == changes
    assert outline(where, kept) == outline(where, ~kept)


@pytest.mark.parametrize(
    ("options", "says"), [({"row": 1}, "no row 1.*rows 0 to 0"), ({"row": -1}, "no row -1"), ({"picture": 1}, "no image 1")]
)
def test_what_the_trace_does_not_have(trace, options, says):
    with pytest.raises(FitPruneError, match=says):
        alive(trace, 16, **options)


def test_an_empty_trace_says_so():
    with pytest.raises(FitPruneError, match="empty"):
        alive(Trace(), 16)
