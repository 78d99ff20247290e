"""Recipes: validation, scaling to other counts, the published tables, files that are whole or refused, a picture."""

import json
import os
import pickle
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fitprune.cost import CostModel
from fitprune.errors import FitPruneError
from fitprune.recipe import Recipe, published_names, published_ratios
from fitprune.version import __version__

SMALL = CostModel(layers=4, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)
GIVEN = Recipe.from_deletions([3, 0, 40, 7], visual_tokens=90)
FITTED = Recipe.from_deletions(
    [3, 30, 20, 7],
    visual_tokens=90,
    scaling="budget",
    cost=SMALL,
    reduction_ratio=0.38,
    achieved=SMALL.visual_reduction([3, 30, 20, 7], 90),
    model="tiny",
    alpha=0.12,
    samples=5,
    fingerprint="ab" * 32,
    source="fitted",
)


def error_of(call, *args, **kwargs):
    with pytest.raises(FitPruneError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# Validation


@pytest.mark.parametrize("counts", [[], [-1, 2], [1.5, 2], [True, 1], ["1", "2"], [50, 41], "12", 7, None, [None], [1e400]])
def test_refuses_counts_that_cannot_be(counts):
    error_of(Recipe.from_deletions, counts, visual_tokens=90)


def test_refuses_wrong_fields():
    for wrong in ({"visual_tokens": 0}, {"visual_tokens": 576.5}, {"scaling": "quadratic"}, {"num_layers": 3}):
        error_of(Recipe, **{"counts": (1, 2), "visual_tokens": 9, **wrong})
    for wrong in ({"model": 3}, {"alpha": "x"}, {"samples": 1.5}, {"achieved": float("nan")}, {"cost": {"layers": 2}}):
        error_of(Recipe, **{"counts": (1, 2), "visual_tokens": 9, **wrong})
    assert "needs a cost" in error_of(Recipe, (1, 2), 9, scaling="budget")
    assert "4 layers" in error_of(Recipe, (1, 2), 9, scaling="budget", cost=SMALL, reduction_ratio=0.1)


def test_takes_numpy_integers_and_stays_plain():
    recipe = Recipe.from_deletions(np.array([3, 0, 40, 7]), visual_tokens=np.int64(90))
    assert recipe == GIVEN
    assert all(type(count) is int for count in recipe.counts)


def test_everything_may_go():
    assert Recipe.from_deletions([90, 0], visual_tokens=90).alive(90) == [0, 0]


# Other counts


@given(st.lists(st.integers(0, 90), min_size=1, max_size=32), st.integers(0, 4000))
def test_proportional_is_the_authors_rule(counts, n):
    recipe = Recipe.from_deletions(counts, visual_tokens=max(sum(counts), 1))
    assert recipe.deletions(n) == [int(count * n / recipe.visual_tokens) for count in counts]
    assert recipe.alive(n)[-1] >= 0
    assert recipe.deletions(recipe.visual_tokens) == counts


def test_next_table_at_1440_tokens_is_the_authors():
    # parity/llama: the 40% table of LLaVA-NeXT at half its count
    table = Recipe.published("llava-v1.6-vicuna-7b", 40)
    assert table.deletions(1440)[:6] == [3, 36, 81, 62, 59, 74]


@settings(deadline=None, max_examples=50)
@example(90)
@given(st.integers(1, 900))
def test_budget_holds_at_any_count(n):
    deletions = FITTED.deletions(n)
    dense = sum(SMALL.visual_macs([n] * 4, n))
    token = (SMALL.rest_macs(1) + SMALL.attention_macs(n) - SMALL.attention_macs(n - 1)) / dense
    assert 0.38 <= SMALL.visual_reduction(deletions, n) < 0.38 + token
    assert min(deletions) >= 0


def test_budget_verbatim_at_its_own_count_and_nothing_at_zero():
    assert FITTED.deletions(90) == [3, 30, 20, 7]
    assert FITTED.deletions(0) == GIVEN.deletions(0) == Recipe.step(layer=3, keep=0.5).deletions(0) == [0] * 4
    zero = Recipe.none(4, visual_tokens=90, scaling="budget", cost=SMALL, reduction_ratio=0.0)
    assert zero.deletions(33) == [0] * 4


def test_budget_out_of_reach_is_an_error():
    recipe = Recipe.from_deletions([85, 5, 0, 0], visual_tokens=90, scaling="budget", cost=SMALL, reduction_ratio=0.89)
    assert "cannot be reached" in error_of(recipe.deletions, 3000)


def test_refuses_counts_of_tokens_that_cannot_be():
    for n in (-1, 5.5, "7", True):
        error_of(GIVEN.deletions, n)


@given(st.integers(0, 30), st.integers(0, 100), st.integers(0, 3000))
def test_step_keeps_its_share_rounded_up(layer, percent, n):
    recipe = Recipe.step(layer=layer, keep=percent / 100)
    kept = -(-percent * n // 100)
    assert recipe.deletions(n, 32) == [0] * layer + [n - kept] + [0] * (31 - layer)
    assert recipe.alive(n, 32) == list(accumulate(recipe.deletions(n, 32), lambda left, gone: left - gone, initial=n))[1:]


def test_step_fits_any_model_that_is_deep_enough():
    recipe = Recipe.step(layer=2, keep=0.5)
    for layers in (3, 32):
        recipe.check_layers(layers)
        recipe.check_model(CostModel(layers, 8, 8, 1, 1, 8))
    assert "layer 2" in error_of(recipe.check_layers, 2)
    for wrong in ({"layer": -1, "keep": 0.5}, {"layer": 1.5, "keep": 0.5}, {"layer": 2, "keep": 1.1}, {"layer": 2, "keep": "x"}):
        error_of(Recipe.step, **wrong)


def test_another_model_is_refused():
    assert "4 layers" in error_of(GIVEN.check_layers, 32)
    assert "32" in error_of(GIVEN.deletions, 90, 32)
    FITTED.check_model(CostModel(**{**SMALL.to_dict(), "vocab": 7}))
    assert "hidden 64 is 128" in error_of(FITTED.check_model, CostModel(**{**SMALL.to_dict(), "hidden": 128}))


# Published tables


@pytest.mark.parametrize(
    "name",
    [
        "llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b", "/some/where/llava-v1.5-7b/", r"C:\x\LLaVA-v1.5-7B",
        "/root/.cache/huggingface/hub/models--liuhaotian--llava-v1.5-7b/snapshots/4481d270cc", "/hub/models--llava-hf--llava-1.5-7b-hf",
    ],
)  # fmt: skip
def test_published_by_any_spelling(name):
    recipe = Recipe.published(name, "60%")
    assert recipe.counts[:3] == (14, 33, 89)
    assert (recipe.visual_tokens, recipe.num_layers, recipe.reduction_ratio) == (576, 32, 0.6)
    assert recipe.achieved == pytest.approx(0.597, abs=5e-4)
    assert recipe == Recipe.published(name, 0.6)


def test_published_catalogue():
    assert published_names() == ["llava-hr-7b-sft-1024", "llava-v1.5-7b", "llava-v1.6-vicuna-7b"]
    assert published_ratios("llava-v1.5-7b") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9]
    kept = {name: Recipe.published(name, 60).alive(n)[-1] for name, n in zip(published_names(), (1024, 576, 2880), strict=True)}
    assert kept == {"llava-hr-7b-sft-1024": 251, "llava-v1.5-7b": 127, "llava-v1.6-vicuna-7b": 784}
    for name in published_names():
        for ratio in published_ratios(name):
            assert Recipe.published(name, ratio).num_layers == 32


def test_unpublished_says_what_there_is():
    assert "0.55, 0.6" in error_of(Recipe.published, "llava-v1.5-7b", 65)
    assert "llava-v1.6-vicuna-7b" in error_of(Recipe.published, "llava-v1.5-13b", 0.6)
    error_of(published_ratios, "llama")
    error_of(Recipe.published, "llava-v1.5-7b", 1.5)


# Equality and files


def test_equality_is_that_of_the_schedule():
    renamed = Recipe.from_deletions([3, 0, 40, 7], visual_tokens=90, model="other", alpha=0.5)
    assert renamed == GIVEN
    assert hash(GIVEN) == hash(renamed)
    assert len({GIVEN, renamed, FITTED}) == 2
    assert Recipe.from_deletions([3, 0, 40, 7], visual_tokens=91) != GIVEN
    assert Recipe.from_deletions([3, 30, 20, 7], visual_tokens=90) != FITTED
    assert GIVEN != "recipe"


@pytest.mark.parametrize(
    "recipe", [GIVEN, FITTED, Recipe.step(layer=2, keep=0.3), Recipe.none(7), Recipe.published("llava-hr-7b-sft-1024", 0.4)]
)
def test_file_round_trip(recipe, tmp_path):
    path = tmp_path / "new" / "recipe.json"
    recipe.save(path)
    vlm = Recipe.load(str(path))
    assert vlm == recipe
    assert vars(vlm) == vars(recipe)
    assert vars(pickle.loads(pickle.dumps(recipe))) == vars(recipe)
    assert os.listdir(path.parent) == ["recipe.json"]
    data = json.loads(path.read_text())
    assert data["schema"] == "fitprune.recipe/1"
    assert data["fitprune_version"] == __version__


def test_torn_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "recipe.json"
    assert "recipe.json" in error_of(Recipe.load, path)
    assert str(tmp_path) in error_of(Recipe.load, tmp_path)
    FITTED.save(path)
    whole = path.read_text()
    for length in range(0, len(whole) - 2, 7):
        path.write_text(whole[:length])
        assert "recipe.json" in error_of(Recipe.load, path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "recipe.json" in error_of(Recipe.load, path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "fitprune.recipe/2"}, {"schema": None}, {"counts": [-3, 0, 0, 0]}, {"counts": [91, 0, 0, 0]},
        {"counts": "abc"}, {"counts": {"0": 3}}, {"counts": None}, {"counts": [1.5, 0, 0, 0]}, {"visual_tokens": "90"},
        {"num_layers": 5}, {"cost": {"layers": 4}}, {"cost": 3}, {"cost": None}, {"reduction_ratio": None},
        {"reduction_ratio": 1.2}, {"alpha": "small"}, {"scaling": ["budget"]}, {"flavour": "sweet"}, {"model": 5},
    ],
)  # fmt: skip
def test_wrong_fields_in_a_file_are_refused(change, tmp_path):
    path = tmp_path / "recipe.json"
    FITTED.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert "recipe.json" in error_of(Recipe.load, path)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "{}", '{"schema": "fitprune.recipe/1"}'])
def test_other_json_is_refused(text, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert "recipe.json" in error_of(Recipe.load, path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    GIVEN.save(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space" in error_of(FITTED.save, path)
    assert Recipe.load(path) == GIVEN
    assert os.listdir(tmp_path) == ["recipe.json"]
    (tmp_path / "file").write_text("")
    error_of(GIVEN.save, tmp_path / "file" / "recipe.json")


# The picture


def test_print_has_a_bar_per_layer():
    lines = str(Recipe.published("llava-v1.5-7b", 60)).splitlines()
    assert len(lines) == 2 + 32
    assert "asked 60.0%" in lines[0]
    assert "saves 59.7%" in lines[0]
    assert "576 visual tokens, 127 alive" in lines[1]
    assert lines[2].split()[:3] == ["0", "562", "-14"]
    lengths = [line.count("█") for line in lines[2:]]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(line) <= 80 for line in lines)
    assert "any model" in str(Recipe.step(layer=2, keep=0.5))
    assert str(Recipe.step(layer=2, keep=0.5)).splitlines()[-1].split()[:3] == ["2", "50", "-50"]
