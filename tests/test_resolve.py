"""Which recipe a run uses: the named file, then a published one, then one that was kept, then one fitted now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fitprune
from fitprune import calibrate
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM
from fitprune.recipe import Recipe
from fitprune.resolve import Calibration, resolve


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture
def few() -> Calibration:
    return Calibration(embedded().calibration, embedded().calibration_images, samples=4, batch_size=4)


def test_the_named_file_wins_then_published_then_kept_then_fitted(small: VLM, few: Calibration, tmp_path: Path) -> None:
    assert resolve(small, [0.0], few)[0].recipe is None
    keep = tmp_path / "kept.recipe.json"

    def choose(ratio: float, **more: Any) -> tuple[Recipe | None, str]:
        (one,) = resolve(small, [ratio], few, keep_at=lambda _: keep, progress=False, **more)
        return one.recipe, one.source

    fitted, source = choose(0.5)
    assert fitted is not None
    assert "fitted now on 4 samples" in source
    assert 0.5 <= (fitted.achieved or 0) <= 0.501
    again, source = choose(0.5)
    assert again == fitted
    assert "fitted earlier" in source
    other, source = choose(0.3)  # another ratio is not what was kept
    assert other != fitted
    assert "fitted now" in source
    named = tmp_path / "named.json"
    Recipe.from_deletions([9] * small.cost.layers, visual_tokens=144).save(named)
    given, source = choose(0.5, recipe_file=named)
    assert given is not None
    assert given.counts == (9,) * small.cost.layers
    assert str(named) in source


def test_a_published_recipe_is_used_where_it_fits(small: VLM, few: Calibration) -> None:
    class Posing(VLM):
        cost = fitprune.cost.VICUNA_7B  # type: ignore[assignment,misc]

    posing = Posing("liuhaotian/llava-v1.5-7b", small.model, None, "vicuna_v1", small.family, small.images)
    (choice,) = resolve(posing, [0.6], few)
    assert choice.recipe == Recipe.published("llava-v1.5-7b", 0.6)
    assert "published recipe of llava-v1.5-7b" in choice.source


def test_recipes_for_other_models_are_refused(small: VLM, few: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    Recipe.from_deletions([1] * 32, visual_tokens=576).save(file)
    with pytest.raises(FitPruneError, match=f"32 layers but the model has {small.cost.layers}"):
        resolve(small, [0.5], few, recipe_file=file)


def test_one_pass_serves_all_ratios_that_are_missing(small: VLM, few: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    class Counted(calibrate.Observer):
        def __enter__(self) -> calibrate.Observer:
            passes.append(self.name)
            return super().__enter__()

    monkeypatch.setattr(calibrate, "Observer", Counted)

    def keep(ratio: float) -> Path:
        return tmp_path / f"{ratio}.json"

    (kept,) = resolve(small, [0.3], few, keep_at=keep, progress=False)
    assert len(passes) == 1
    choices = resolve(small, [0.6, 0.0, 0.3, 0.45, 0.6], few, keep_at=keep, progress=False)
    assert len(passes) == 2
    assert [choice.name for choice in choices] == ["60%", "0%", "30%", "45%"]
    assert choices[1].recipe is None
    assert choices[2].recipe == kept.recipe
    assert ["now" in choice.source for choice in choices] == [True, False, False, True]
    alone = resolve(small, [0.45], few, progress=False)[0].recipe
    assert choices[3].recipe == alone


def test_where_nothing_may_be_fitted_it_says_what_to_do(small: VLM) -> None:
    with pytest.raises(FitPruneError, match=r"^name one with --recipe$"):
        resolve(small, [0.5], Calibration.nothing("name one with --recipe"))
    assert resolve(small, [0.0], Calibration.nothing("name one with --recipe"))[0].recipe is None
