"""Figures: that a panel shows what survived and a curve what the recipe says, without a display and without pyplot."""

import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fitprune
from fitprune import Recipe, draw
from fitprune.draw.frames import alive
from fitprune.draw.panels import deleting_layers
from fitprune.draw.places import places
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


def test_survivors_titles_and_panels(trace, image, tmp_path):
    figure = draw.survivors(image, trace, layers=(0, 3), title="a title")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["the picture\n16 of 16 tokens", "after layer 0\n13 of 16 tokens", "after layer 3\n6 of 16 tokens"]
    assert figure._suptitle.get_text() == "a title"
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape[0] == shown.shape[1]  # padded to a square
    assert tuple(shown[0, 0]) == (122, 116, 104)  # with CLIP's mean colour
    figure.savefig(tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").width > 500


def test_a_grid_that_is_not_square_leaves_the_picture_as_it_is(trace, image):
    figure = draw.survivors(image, trace, layers=[3], grid=(2, 8))
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert shown.shape[1] == 2 * shown.shape[0]
    assert figure.axes[1].get_title().endswith("6 of 16 tokens")


def test_a_checkpoint_says_where_its_tokens_lie():
    llava, image = fitprune.load("embedded-next", device="cpu", dtype="float32"), Image.new("RGB", (300, 100), "red")
    with torch.inference_mode(), fitprune.prune(llava.model, Recipe.step(layer=3, keep=0.25)) as trace:
        llava.model(**llava.encode([(llava.prompt("What?"), [image])]))
    figure, where = draw.survivors(image, trace, loaded=llava), places(llava, image)
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert shown.shape[1] / shown.shape[0] == where.canvas.width / where.canvas.height
    assert figure.axes[1].get_title() == f"after layer 3\n{where.tokens // 4} of {where.tokens} tokens"
    with pytest.raises(FitPruneError, match=f"{where.tokens} visual tokens do not make a grid.*loaded="):
        draw.survivors(image, trace)


def test_layers_are_those_that_delete_and_many_make_rows(trace, image):
    kept = alive(trace, 16)
    assert deleting_layers(kept) == [0, 2, 3]
    assert deleting_layers(kept, count=2) == [0, 3]
    assert deleting_layers(kept, count=1) == [0]
    assert deleting_layers(np.ones((3, 4), dtype=bool)) == [2]
    assert len(draw.survivors(image, trace).axes) == 4
    many = draw.survivors(image, trace, layers=[0, 1, 2, 3] * 8)
    titled = [panel for panel in many.axes if panel.get_title()]
    assert len(titled) == 33
    assert len(many.axes) - 33 < 6
    assert not any(panel.axison for panel in many.axes[33:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [4]}, "no layer 4.*0 to 3"),
        ({"layers": [-1]}, "no layer -1"),
        ({"row": 1}, "no row 1"),
        ({"picture": 1}, "no picture 1"),
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
