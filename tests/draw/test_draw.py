"""Figures: that a panel shows what survived and a curve what the recipe says, without a display and without pyplot."""

import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import fitprune
from fitprune import Recipe, draw
from fitprune.draw import style
from fitprune.draw.frames import alive
from fitprune.draw.panels import deleting_layers
from fitprune.draw.places import places
from fitprune.errors import FitPruneError
from fitprune.trace import Trace


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


def test_a_grid_that_is_not_square_leaves_the_image_as_it_is(trace, image):
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
        ({"picture": 1}, "no image 1"),
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


def curves(figure, panel=1):
    """What a panel has drawn: 0 the tokens deleted in each layer, 1 those alive after it."""
    lines = figure.axes[panel].lines
    return {line.get_label(): list(line.get_ydata()) for line in lines if line.get_label() != "dense"}


def test_recipes_of_one_reference_are_drawn_in_tokens():
    published = [Recipe.published("llava-v1.5-7b", ratio) for ratio in (20, 60)]
    figure = draw.recipes([*published, Recipe.step(layer=2, keep=0.5)])
    name = "published llava-v1.5-7b 60%, saves 59.7%"
    assert curves(figure)[name] == published[1].alive(576)
    assert curves(figure, 0)[name] == published[1].deletions(576)
    assert curves(figure)["step: keep 50% after layer 2"] == [576, 576] + [288] * 30
    assert curves(figure, 0)["step: keep 50% after layer 2"] == [0, 0, 288] + [0] * 29
    assert ["of 576" in panel.get_ylabel() for panel in figure.axes] == [True, True]
    assert figure.axes[1].get_xlabel() == "decoder layer, counted from 0"
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[1].lines}
    assert len(looks) == 4  # the dashed dense line too


def test_recipes_of_different_references_are_drawn_as_shares():
    small = Recipe.from_deletions([4, 0, 4], visual_tokens=16)
    figure = draw.recipes([small, Recipe.published("llava-v1.5-7b", 60)], ["ours", "theirs"])
    assert curves(figure)["ours"] == [75, 75, 50]
    assert curves(figure, 0)["ours"] == [25, 0, 25]
    assert figure.axes[1].get_ylabel().endswith("%")
    assert figure.axes[1].get_ylim()[1] > 100


def test_recipes_for_an_image_of_another_size():
    figure = draw.recipes([Recipe.from_deletions([4, 0, 4], visual_tokens=16)], ["ours"], visual_tokens=32)
    assert curves(figure)["ours"] == [24, 24, 16]


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


def test_foreign_letters_and_formulas_are_drawn_without_a_word(trace, image, tmp_path, recwarn):
    title = style.plain("图片里有什么 $x^2 {\n  and more " + "x" * 200)
    assert "\n" not in title
    assert title.endswith("…")
    style.save(draw.survivors(image, trace, layers=[0], title=title), tmp_path / "out.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_titles_are_broken_to_the_figures_width(trace, image):
    assert style.wrapped(None, 5, 11) == style.wrapped("", 5, 11) == []
    lines = style.wrapped("many words " * 20 + "\nanswers", 5, 11)
    assert lines[-1] == "answers"
    assert all(len(line) < 60 for line in lines)
    assert " ".join(lines[:-1]) == ("many words " * 20).strip()
    assert max(map(len, style.wrapped("图片里有什么" * 9, 5, 11))) < 35
    figure = draw.survivors(image, trace, layers=[0], title="many words " * 20)
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_drawing_leaves_pyplot_and_its_backend_alone(trace, image):
    was_there = "matplotlib.pyplot" in sys.modules
    draw.survivors(image, trace)
    assert ("matplotlib.pyplot" in sys.modules) == was_there
