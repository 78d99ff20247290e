"""Which recipe a run uses, and that fitting takes the calibration questions it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import fitprune
from fitprune.calibrate import Calibration, observe_questions
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM
from fitprune.files import file_name
from fitprune.recipe import Recipe
from fitprune.resolve import choose


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture
def few() -> Calibration:
    return Calibration(embedded().calibration, embedded().calibration_images, samples=4, batch_size=4)


def test_questions_are_spread_over_the_file() -> None:
    questions = Calibration(embedded().calibration, embedded().calibration_images, samples=5).questions()
    assert len({q.image for q in questions}) == 5
    whole = Calibration(embedded().calibration, embedded().calibration_images, samples=10_000).questions()
    assert len(whole) == len(embedded().calibration.read_text().splitlines())


def test_batch_size_does_not_change_statistics(small: VLM, few: Calibration) -> None:
    together = observe_questions(small, few, progress=False)
    alone = observe_questions(small, dataclasses.replace(few, batch_size=1), progress=False)
    assert (together.cross - alone.cross).abs().max() < 1e-5
    assert (together.intra - alone.intra).abs().max() < 1e-5
    assert together.text_tokens.tolist() == alone.text_tokens.tolist()


def test_the_named_file_wins_then_published_then_kept_then_fitted(small: VLM, few: Calibration, tmp_path: Path) -> None:
    assert choose(small, 0.0, few)[0] is None
    keep = tmp_path / "kept.recipe.json"
    fitted, source = choose(small, 0.5, few, keep_at=keep, progress=False)
    assert fitted is not None
    assert "fitted now on 4 samples" in source
    assert 0.5 <= (fitted.achieved or 0) <= 0.501
    again, source = choose(small, 0.5, few, keep_at=keep)
    assert again == fitted
    assert "fitted earlier" in source
    other, source = choose(small, 0.3, few, keep_at=keep, progress=False)  # another ratio is not what was kept
    assert other != fitted
    assert "fitted now" in source
    named = tmp_path / "named.json"
    Recipe.from_deletions([9] * small.cost.layers, visual_tokens=144).save(named)
    given, source = choose(small, 0.5, few, recipe_file=named, keep_at=keep)
    assert given is not None
    assert given.counts == (9,) * small.cost.layers
    assert str(named) in source


def test_a_published_recipe_is_used_where_it_fits(small: VLM, few: Calibration) -> None:
    class Posing(VLM):
        cost = fitprune.cost.VICUNA_7B  # type: ignore[assignment,misc]

    posing = Posing("liuhaotian/llava-v1.5-7b", small.model, None, "vicuna_v1", small.pictures)
    recipe, source = choose(posing, 0.6, few)
    assert recipe == Recipe.published("llava-v1.5-7b", 0.6)
    assert "published recipe of llava-v1.5-7b" in source


def test_recipes_for_other_models_are_refused(small: VLM, few: Calibration, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    Recipe.from_deletions([1] * 32, visual_tokens=576).save(file)
    with pytest.raises(FitPruneError, match=f"32 layers but the model has {small.cost.layers}"):
        choose(small, 0.5, few, recipe_file=file)


def test_nothing_to_fit_on(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question_id": 1, "text": "why?"}) + "\n")
    with pytest.raises(FitPruneError, match="no question with an image"):
        Calibration(file, tmp_path).questions()


def test_file_names_are_readable() -> None:
    assert file_name("llava-hf/llava-1.5-7b-hf", 0.6) == "llava-1.5-7b-hf-r60"
    assert file_name("/a/b/", 0.555, "replayed") == "b-r55.5-replayed"
