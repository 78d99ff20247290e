"""The benchmark's figures: shapes, recipes and sums, not speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitprune.bench import SHAPES, Shape, measure, recipe_for
from fitprune.cli import main
from fitprune.cost import CostModel
from fitprune.recipe import Recipe


def test_the_ideal_of_the_default_shape_is_the_known_one() -> None:
    shape = SHAPES["small"]
    recipe = recipe_for(shape, 0.6, shape.visual, None)
    assert recipe == Recipe.published("llava-v1.5-7b", 0.6)
    ideal = shape.cost.speedup(recipe.alive(shape.visual), shape.visual, shape.before + shape.after)
    assert ideal == pytest.approx(2.11, abs=0.005)


@pytest.mark.parametrize("ratio", [0.33, 0.6, 0.75])
def test_without_a_published_recipe_one_step_meets_the_budget(ratio: float) -> None:
    shape = Shape(CostModel(40, 64, 128, 4, 4, 16), 3, 100, 5, "llava-v1.5-7b")
    recipe = recipe_for(shape, ratio, 100, None)
    assert ratio <= shape.cost.visual_reduction(recipe.deletions(100), 100) <= ratio + 0.001


def test_measuring_a_small_shape_fills_every_figure() -> None:
    shape = Shape(CostModel(3, 32, 64, 4, 2, 8), 4, 30, 6, "none")
    figures = measure(shape, 0.5, repeats=2, device="cpu")
    assert figures["seconds"].keys() == {"dense", "pruned", "bare", "scoring"}
    assert all(value > 0 for value in figures["seconds"].values())
    assert figures["share_of_ideal"] == pytest.approx(figures["speedup"] / figures["ideal_speedup"])
    assert 0.5 <= figures["visual_reduction"] < 0.52


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--layers", "2", "--visual-tokens", "20", "--text-tokens", "4", "--repeats", "1", "--device", "cpu"]
    assert main(["bench", *flags, "--json", str(tmp_path / "b.json")]) == 0
    assert "of an ideal" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["tokens"] == [35, 20, 4]
