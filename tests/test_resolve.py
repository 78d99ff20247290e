"""Which recipe a run uses: the named file, then a published one, then one that was kept, then one fitted now; by which way and score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fitprune
from fitprune import calibrate
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM
from fitprune.recipe import RECOMMENDED, Recipe
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
        (one,) = resolve(small, [ratio], few, keep_at=lambda *_: keep, progress=False, **more)
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
    assert choice.recipe
    assert choice.recipe.score is None
    assert choice.source.endswith("published recipe of llava-v1.5-7b for 60%, which saves 59.7%")
    (ranked,) = resolve(posing, [0.6], few, score=RECOMMENDED)
    assert ranked.recipe == choice.recipe
    assert ranked.recipe
    assert ranked.recipe.score == "spread"
    assert ranked.source == f"{choice.source}, ranked by spread"


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

    def keep(ratio: float, way: str) -> Path:
        return tmp_path / f"{ratio}-{way}.json"

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


def test_a_score_goes_to_recipes_that_name_none_and_not_into_what_is_kept(small: VLM, few: Calibration, tmp_path: Path) -> None:
    def keep(ratio: float, way: str) -> Path:
        return tmp_path / f"{ratio}.json"

    (made,) = resolve(small, [0.5], few, keep_at=keep, score=RECOMMENDED, progress=False)
    assert made.recipe
    assert made.recipe.score == "spread"
    assert made.source.endswith(", ranked by spread")
    assert Recipe.load(keep(0.5, "mass")).score is None  # so that the paper's runs, which share it, rank as the paper does
    (again,) = resolve(small, [0.5], few, keep_at=keep, score=RECOMMENDED, progress=False)
    assert again.recipe
    assert ("earlier" in again.source, again.recipe.score) == (True, "spread")
    (plain,) = resolve(small, [0.5], few, keep_at=keep, progress=False)
    assert plain.recipe
    assert (plain.recipe.score, "ranked" in plain.source) == (None, False)
    replace(plain.recipe, absorb=0.8).save(keep(0.5, "mass"))  # not what a fit without would make
    (anew,) = resolve(small, [0.5], few, keep_at=keep, progress=False)
    assert anew.recipe
    assert ("now" in anew.source, anew.recipe.absorb) == (True, None)
    for own in (None, "last"):  # a file that was named keeps its own, which is the paper's if it names none
        replace(plain.recipe, score=own).save(tmp_path / "named.json")
        (named,) = resolve(small, [0.5], few, recipe_file=tmp_path / "named.json", score=RECOMMENDED)
        assert named.recipe
        assert named.recipe.score == own
    (nothing,) = resolve(small, [0.0], few, score=RECOMMENDED)
    assert (nothing.recipe, "ranked" in nothing.source) == (None, False)


class Late:
    """A judge that minds early deletions, and counts what it is asked."""

    made = 0

    def __init__(self) -> None:
        Late.made += 1

    def __len__(self) -> int:
        return 8

    def __call__(self, recipe: Recipe, first: int, last: int) -> list[float]:
        return [sum(count / (1 + layer) for layer, count in enumerate(recipe.counts)) + at % 2 for at in range(first, last)]


def test_by_mass_and_by_drift_are_kept_apart(small: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eight = Calibration(embedded().calibration, embedded().calibration_images, samples=8)
    Late.made = 0

    def keep(ratio: float, way: str) -> Path:
        return tmp_path / f"{ratio}-{way}.json"

    def choose(*ratios: float, **more: Any) -> list[Any]:
        settings = {"by": ["mass", "drift"], "judge": Late, "keep_at": keep, "progress": False}
        return resolve(small, ratios, eight, **{**settings, **more})

    mass, drift, dense, other, more = choose(0.7, 0.0, 0.8)
    assert [one.name for one in (mass, drift, dense, other, more)] == ["70%", "70% by drift", "0%", "80%", "80% by drift"]
    assert [one.by for one in (mass, drift, dense)] == ["mass", "drift", "mass"]
    assert mass.recipe == resolve(small, [0.7], eight, progress=False)[0].recipe
    assert mass.recipe.score is mass.recipe.drift is None
    assert drift.recipe.score.startswith("spread")
    assert drift.source.endswith(f"saved as {keep(0.7, 'drift')}, ranked by {drift.recipe.score}")
    assert "recipe chosen by drift now on 8 samples" in drift.source
    said = capsys.readouterr().out
    assert said.index("by drift: at most") < said.index("chosen by drift (")
    assert "for 70%, " in said
    assert Late.made == 1
    kept = choose(0.7, 0.8, refit=False)
    assert [one.recipe for one in kept] == [mass.recipe, drift.recipe, other.recipe, more.recipe]
    assert all("earlier" in one.source for one in kept)
    assert Late.made == 1  # nothing was searched again
    assert capsys.readouterr().out == ""
    # under one another's names they are not taken for one another
    swapped: Callable[[float, str], Path] = lambda ratio, way: keep(ratio, {"mass": "drift", "drift": "mass"}[way])  # noqa: E731
    fresh = choose(0.7, keep_at=swapped)
    assert all("now" in one.source for one in fresh)
    assert [one.recipe for one in fresh] == [mass.recipe, drift.recipe]
    assert choose(0.7, by=["drift"])[0].by == "drift"


def test_choosing_needs_a_judge_and_enough_questions(small: VLM, few: Calibration) -> None:
    with pytest.raises(FitPruneError, match="judge= is needed"):
        resolve(small, [0.5], few, by=["drift"])
    with pytest.raises(FitPruneError, match="4 questions cannot tell schedules apart"):
        resolve(small, [0.5], few, by=["drift"], judge=Late)
