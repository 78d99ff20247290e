"""Pictures: that what is drawn is what survived, and that a figure comes out without a display."""

import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fitprune
from fitprune import Recipe, draw
from fitprune.errors import FitPruneError
from fitprune.trace import Trace

FIRST = 3  # text tokens before the image


@pytest.fixture
def trace(llava) -> Trace:
    """A real one: 16 visual tokens (4 × 4) from position 3 on, deletions in layers 0, 2 and 3."""
    with torch.no_grad(), fitprune.prune(llava, tiny.RECIPE) as trace:
        llava(**tiny.prompt(FIRST, "image", 5))
    return trace


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (40, 20), (10, 60, 200))


def test_kept_patches_are_the_survivors_in_reading_order(trace):
    for layer in range(tiny.LAYERS):
        kept = draw.kept_patches(trace, layer)
        assert kept.shape == (4, 4)
        alive = {int(position) - FIRST for position in trace.visual[layer][0]}
        assert {4 * row + column for row, column in np.argwhere(kept).tolist()} == alive
    assert draw.kept_patches(trace, 0).sum() == 13
    assert draw.kept_patches(trace, tiny.LAYERS - 1).sum() == 6


def test_the_first_patch_is_found_even_when_it_was_deleted(trace):
    group = trace._group
    assert group is not None
    for first in range(FIRST):
        moved = Trace()
        steps = moved.clear(0, torch.zeros_like(group), torch.roll(group, first - FIRST, 1))
        keep = torch.tensor([[p for p in range(group.shape[1]) if p != first]])
        steps.append((keep, torch.zeros_like(keep)))
        kept = draw.kept_patches(moved, 0)
        assert not kept[0, 0]
        assert kept.sum() == 15


def test_an_image_of_a_later_turn_and_one_of_several(llava):
    with torch.no_grad(), fitprune.prune(llava, tiny.RECIPE) as trace:
        llava(**tiny.prompt(2, "image", 3, "image", 4))
    first, second = (draw.kept_patches(trace, 3, grid=(4, 4), patches_first=at) for at in (2, 2 + 16 + 3))
    assert first.sum() == second.sum() == 6
    assert sum(map(len, trace.visual[3])) == 12
    with pytest.raises(FitPruneError, match="patches_first"):
        draw.kept_patches(trace, 3)
    past = Trace()
    past.clear(100, torch.zeros(1, 20), torch.tensor([[0] * 4 + [1] * 16])).append((None, None))
    assert draw.kept_patches(past, 0).all()


def test_fade_leaves_survivors_alone_and_lightens_the_rest():
    picture = Image.new("RGB", (8, 4), (10, 60, 200))
    kept = np.array([[True, False], [False, True]])
    pixels = np.asarray(draw.fade(picture, kept)).astype(int)
    for row, column in np.ndindex(4, 8):
        patch = kept[row // 2, column // 4]
        assert (pixels[row, column] == (10, 60, 200)).all() if patch else (pixels[row, column] > 225).all()


def test_outline_runs_around_what_is_kept():
    kept = np.zeros((3, 3), dtype=bool)
    assert draw.outline(kept) == []
    kept[1, 1] = True
    assert len(draw.outline(kept)) == 4
    assert {point for edge in draw.outline(kept) for point in edge} == {(x / 3, y / 3) for x in (1, 2) for y in (1, 2)}


def test_survivors_titles_and_panels(trace, image, tmp_path):
    figure = draw.survivors(image, trace, layers=(0, 3), title="a title")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["the picture\n16 of 16 tokens", "after layer 0\n13 of 16 tokens", "after layer 3\n6 of 16 tokens"]
    assert figure._suptitle.get_text() == "a title"
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape[0] == shown.shape[1]  # padded to a square
    assert tuple(shown[0, 0]) == draw.MEAN_COLOUR
    assert not figure.axes[0].lines
    assert len(figure.axes[2].lines) == len(draw.outline(draw.kept_patches(trace, 3)))
    figure.savefig(tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").width > 500


def test_a_grid_that_is_not_square_leaves_the_picture_as_it_is(trace, image):
    figure = draw.survivors(image, trace, layers=[3], grid=(2, 8))
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert shown.shape[1] == 2 * shown.shape[0]
    assert figure.axes[1].get_title().endswith("6 of 16 tokens")


def test_layers_are_those_that_delete(trace, image):
    assert draw.deleting_layers(trace) == [0, 2, 3]
    assert draw.deleting_layers(trace, count=2) == [0, 3]
    assert draw.deleting_layers(trace, count=1) == [0]
    assert len(draw.survivors(image, trace).axes) == 4
    still = Trace()
    still.clear(0, torch.zeros(1, 4), torch.ones(1, 4)).extend([(None, None)] * 3)
    assert draw.deleting_layers(still) == [2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [4]}, "no layer 4.*0 to 3"),
        ({"layers": [-1]}, "no layer -1"),
        ({"row": 1}, "no row 1"),
        ({"grid": (5, 5)}, "16 visual tokens do not make a grid of 5 × 5"),
        ({"grid": (2, 2)}, "2 × 2"),
    ],
)
def test_what_cannot_be_drawn_says_so(trace, image, options, says):
    with pytest.raises(FitPruneError, match=says):
        draw.survivors(image, trace, **options)


def test_an_empty_trace_says_so(image):
    for layers in (None, [0]):
        with pytest.raises(FitPruneError, match="empty"):
            draw.survivors(image, Trace(), layers=layers)


def curves(figure):
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines if line.get_label() != "dense"}


def test_recipes_of_one_reference_are_drawn_in_tokens():
    published = [Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 60)]
    figure = draw.recipes([*published, Recipe.step(layer=2, keep=0.5)])
    drawn = curves(figure)
    assert drawn["published llava-v1.5-7b 60%, saves 59.7%"] == published[1].alive(576)
    assert drawn["step: keep 50% after layer 2"] == [576, 576] + [288] * 30
    assert "of 576" in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_xlabel() == "decoder layer"
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 4  # the dashed dense line too


def test_recipes_of_different_references_are_drawn_as_shares():
    small = Recipe.from_deletions([4, 0, 4], visual_tokens=16)
    figure = draw.recipes([small, Recipe.published("llava-v1.5-7b", 60)], ["ours", "theirs"])
    assert curves(figure)["ours"] == [75, 75, 50]
    assert figure.axes[0].get_ylabel().endswith("%")
    assert figure.axes[0].get_ylim()[1] > 100


def test_recipes_needs_something_to_draw():
    with pytest.raises(FitPruneError, match="no recipe"):
        draw.recipes([])
    with pytest.raises(FitPruneError, match="1 recipes with 2 labels"):
        draw.recipes([tiny.RECIPE], ["a", "b"])


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch, trace, image):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for picture in (lambda: draw.recipes([tiny.RECIPE]), lambda: draw.survivors(image, trace)):
        with pytest.raises(FitPruneError, match=r"pip install 'fitprune\[draw\]'") as caught:
            picture()
        assert "\n" not in str(caught.value)


def test_drawing_leaves_pyplot_and_its_backend_alone(trace, image):
    was_there = "matplotlib.pyplot" in sys.modules
    draw.survivors(image, trace)
    assert ("matplotlib.pyplot" in sys.modules) == was_there
