"""`fitprune draw`: what it writes, that the README's picture is its, and that bad input is one line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fitprune
from fitprune import Recipe, cli
from fitprune.cli import draw
from fitprune.embedded import MODELS, embedded
from fitprune.errors import FitPruneError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "r.json"
    Recipe.from_deletions([60, 0, 20, 0, 10, 0, 10, 0, 0], visual_tokens=144).save(path)
    return str(path)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Not square, so that LLaVA-NeXT cuts it into tiles."""
    path = tmp_path_factory.mktemp("image") / "p.png"
    Image.open(embedded().images / "5eed000000000006.jpg").resize((330, 150)).save(path)
    return str(path)


def drawn(*arguments: str) -> int:
    return cli.main(["draw", *arguments])


@pytest.mark.rest
@pytest.mark.parametrize("model", MODELS)
def test_everything_of_every_family(model, recipe, image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw.style, "DPI", 60)  # quicker
    question = "What number is <b>written</b>?"
    code = drawn(
        "--model-path", model, "--image", image, "--question", question, "--recipe", recipe, "--output",
        str(tmp_path / "new" / "folder"), "--max-new-tokens", "4", "--layers", "8",
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert question in said
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == sorted(draw.FILES.values())
    for name in ("survivors.png", "heat.png", "recipe.png"):
        with Image.open(folder / name) as figure:
            assert figure.convert("RGB").getpixel((1, 1)) == (255, 255, 255)  # its own background
            assert "Software" not in figure.info
    with Image.open(folder / "survivors.gif") as film:
        assert film.n_frames == 10
    page = (folder / "survivors.html").read_text()
    assert "&lt;b&gt;written&lt;/b&gt;" in page
    assert ("newline token" in page) == (model == "embedded-next")
    tokens = fitprune.load(model, device="cpu").tokens_for(Image.open(image))
    assert f"visual tokens alive: {tokens} " in said
    assert page.count("data-gone=") == tokens


def test_the_readme_picture_is_drawn_by_the_command_it_names(tmp_path):
    """What docs/drawing.md gives for it; only the recipe is not fitted again, which would take most of the time."""
    text = (ROOT / "docs" / "drawing.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("fitprune draw") and "docs/pruning.png" in line)
    words = line.split("#")[0].split()
    words[words.index("docs/pruning.png")] = str(tmp_path / "pruning.png")
    Recipe.from_deletions([77, 4, 3, 4, 1, 0, 0, 1, 0], visual_tokens=144).save(tmp_path / "r.json")
    assert cli.main([*words[1:], "--recipe", str(tmp_path / "r.json")]) == 0
    made, kept = (
        np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (tmp_path / "pruning.png", ROOT / "docs" / "pruning.png")
    )
    assert made.shape == kept.shape
    assert abs(made - kept).mean() < 1  # none with the same libraries


def test_one_format_goes_into_a_file_and_twice_is_the_same(recipe, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("a.html", "b.png", "c.png")]
    monkeypatch.setattr(draw.style, "DPI", 40)  # quicker
    for path in files:
        assert drawn("--recipe", recipe, "--layers", "0", "8", "--output", str(path), "--title", "$x^{") == 0
    assert files[0].read_text().startswith("<!DOCTYPE html>")
    assert files[1].read_bytes() == files[2].read_bytes()
    assert drawn("--recipe", recipe, "--formats", "recipe", "--output", str(tmp_path / "f.png"), "--title", "$x^{") == 0
    assert Image.open(tmp_path / "f.png").size != Image.open(files[1]).size


def test_recipes_over_one_another(recipe, tmp_path, capsys):
    path = tmp_path / "recipes.png"
    assert drawn("--recipes", "llava-v1.5-7b:20,0.4,60", recipe, "--output", str(path), "--title", "a $title") == 0
    assert "4 recipes" in capsys.readouterr().out
    assert Image.open(path).width > 500
    assert drawn("--recipes", recipe, "--output", str(path)) == 0
    assert capsys.readouterr().out == f"1 recipe: {path}\n"
    (name, first), (_, second) = draw.named_recipes("llava-v1.5-7b:20,0.4")
    assert (first.reduction_ratio, second.reduction_ratio) == (0.2, 0.4)
    assert name.startswith("published llava-v1.5-7b 20%")
    assert [name for name, _ in draw.named_recipes(recipe)] == ["r"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "nowhere.png", "--question", "?"], "no image nowhere.png"),
        (["--image", "TEXT", "--question", "?"], "not an image that can be read"),
        (["--image", "FOLDER", "--question", "?"], "no image"),
        (["--image", "IMAGE"], "give one with --question"),
        (["--question", " "], "give --question a text"),
        (["--reduction-ratio", "0"], "deletes nothing"),
        (["--recipe", "TEXT"], "t.txt"),
        (["--recipe", "RECIPE", "--layers", "9"], "no layer 9: embedded has layers 0 to 8"),
        (["--model-path", "FOLDER", "--recipe", "RECIPE"], "config.json"),
        (["--model-path", "FOLDER", "--calibration-file", "TEXT"], "config.json"),
        (["--model-path", "FOLDER"], "no published recipe fits folder at 0.6: name one with --recipe"),
        (["--model-path", "x/llava-v1.5-7b", "--reduction-ratio", "0.61"], "fits x/llava-v1.5-7b at 0.61: name one with --recipe"),
        (["--output", "TEXT/sub"], "cannot be written to"),
        (["--output", "a.png", "--formats", "png", "heat"], "one file for png and heat"),
        (["--output", "a.png", "--formats", "gif"], "no name for gif: end it in .gif"),
        (["--output", "a.jpg", "--formats", "png"], "no .jpg is written: end it in .gif, .html, .png, or in / for a folder"),
        (["--output", "a.jpg"], "no .jpg is written"),
        (["--recipes", "llava-v1.5-7b:0.6", "--output", "r.xyz"], "no .xyz is written"),
        (["--recipes", "llava-v1.5-7b:0.65"], "0.65"),
        (["--recipes", "llava-v1.5-7b:much"], "much"),
        (["--recipes", "nobody:0.6"], "nobody"),
        (["--recipes", "nothing"], "nothing"),
        (["--recipes", "llava-v1.5-7b:0.6", "--image", "IMAGE"], "leave out --image"),
        (["--recipes", "llava-v1.5-7b:0.6", "--formats", "gif"], "leave out --formats"),
    ],
)
def test_bad_input_is_one_line(arguments, says, recipe, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("no picture")
    (tmp_path / "folder").mkdir()
    places = {"TEXT": "t.txt", "FOLDER": "folder", "IMAGE": image, "RECIPE": recipe, "TEXT/sub": "t.txt/sub"}
    assert drawn(*(places.get(word, word) for word in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "t.txt"]  # nothing was made


def test_a_layer_that_there_is_not_is_found_before_a_recipe_is_fitted_and_the_model_asked(tmp_path, monkeypatch, capsys):
    for name in ("resolve.resolve", "draw.asked.ask", "draw.asked.watch"):  # imported by `run` when it starts
        monkeypatch.setattr(f"fitprune.{name}", lambda *args, name=name, **options: pytest.fail(name))
    assert drawn("--layers", "0", "99", "--output", str(tmp_path)) == 2
    assert "no layer 99: embedded has layers 0 to 8" in capsys.readouterr().err


def test_a_real_checkpoint_is_never_fitted_on_drawn_shapes(image, tmp_path, monkeypatch, capsys):
    """A copy of the embedded model stands for it: known by its folder, it is a model like any other."""
    checkpoint = tmp_path / "llava-v1.5-7b"
    shutil.copytree(embedded().model, checkpoint)
    monkeypatch.setattr("fitprune.draw.asked.ask", lambda *args: pytest.fail("asked"))
    asked = ("--model-path", str(checkpoint), "--image", image, "--question", "What?", "--output", str(tmp_path / "o"))
    assert drawn(*asked) == 2  # a recipe of that name is published, but it is of a deeper model
    assert "name one with --recipe" in capsys.readouterr().err
    assert drawn(*asked, "--calibration-file", str(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_without_matplotlib_the_page_is_made_and_the_rest_says_what_to_install(recipe, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert drawn("--recipe", recipe, "--output", str(tmp_path)) == 2
    assert "pip install 'fitprune[draw]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert drawn("--recipe", recipe, "--formats", "html", "--output", str(tmp_path)) == 0
    assert (tmp_path / "survivors.html").stat().st_size > 10_000


def test_targets_by_ending_and_by_name(tmp_path):
    assert draw.find_targets("x/a.png", None) == {"png": Path("x/a.png")}
    assert draw.find_targets("x/a.png", ["heat"]) == {"heat": Path("x/a.png")}
    assert draw.find_targets("x/a.HTML", None) == {"html": Path("x/a.HTML")}
    assert list(draw.find_targets("x", None)) == list(draw.FILES)
    folder = tmp_path / "named.png"
    folder.mkdir()
    for text in ("new.jpg/", "llava-v1.5-7b", "runs/0.6"):  # folders by their look
        assert draw.find_targets(text, ["gif"]) == {"gif": Path(text) / "survivors.gif"}
    assert draw.find_targets(str(folder), ["gif"]) == {"gif": folder / "survivors.gif"}
    (tmp_path / "survivors.png").mkdir()
    with pytest.raises(FitPruneError, match="cannot be written"):
        draw.find_targets(str(tmp_path), ["png"])
