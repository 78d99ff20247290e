"""Ablations: one choice at a time as methods, and how far apart their recipes are."""

from __future__ import annotations

import argparse

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitprune.cost import CostModel
from fitprune.errors import FitPruneError
from fitprune.fit import fit
from fitprune.recipe import Recipe
from fitprune.stats import AttentionStats
from fitprune.studies.ablate import DRAWS, axis, differences, methods, most_samples, panels, recipes_compared, schedule_distance
from fitprune.studies.methods import CONTROLS, METHODS, find, recipes

LAYERS, TOKENS, SAMPLES = 6, 60, 8
COST = CostModel(layers=LAYERS, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)
AXES = [("samples", ["1", "4", "8"]), ("criterion", ["both", "self"]), ("score", ["fitprune", "last"])]


@pytest.fixture(scope="module")
def stats() -> AttentionStats:
    """Attention that fewer and fewer tokens share, of samples that differ."""
    random = torch.Generator().manual_seed(0)
    shared = torch.rand(2, SAMPLES, 1, TOKENS, generator=random)
    power = torch.linspace(0.1, 2, LAYERS)[:, None] * (1 + torch.rand(SAMPLES, 1, 1, generator=random))
    counts = torch.full((SAMPLES,), TOKENS)
    return AttentionStats(shared[0].pow(4 * power), shared[1].pow(power), counts, counts, cost=COST)


def test_an_axis_is_a_choice_and_its_values() -> None:
    assert axis("samples=1,016, 4,") == ("samples", ["1", "16", "4"])
    assert axis("criterion=both,product") == ("criterion", ["both", "product"])
    assert axis("score=self") == ("score", ["self"])
    for wrong in ("samples", "samples=", "samples=0", "samples=-1", "samples=x", "criterion=either", "score=fastv", "a=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="samples"):
            axis(wrong)


def test_values_are_methods_and_the_bases_own_are_the_base() -> None:
    assert panels(AXES, SAMPLES) == {
        "samples": {"1": "fitprune samples=1", "4": "fitprune samples=4", "8": "fitprune"},
        "criterion": {"both": "fitprune", "self": "fitprune criterion=self"},
        "score": {"fitprune": "fitprune", "last": "last"},
    }
    names = methods(AXES, SAMPLES)
    assert names == ["fitprune", "fitprune samples=1", "fitprune samples=4", "fitprune criterion=self", "last"]
    for name in names:
        assert find(name).schedule is None  # equal cost, the same statistics
    assert panels([("samples", ["2"]), ("samples", ["1"])], 4)["samples"].keys() == {"2", "1", "4"}  # the base's own
    assert methods([], SAMPLES) == ["fitprune"]
    assert most_samples(AXES, 3) == 8
    assert most_samples(AXES, 30) == 30
    assert most_samples([], 30) == 30


counts = st.lists(st.integers(0, 8), min_size=3, max_size=3)


@given(counts, counts, counts)
def test_the_distance_of_recipes_is_a_distance(first: list[int], second: list[int], third: list[int]) -> None:
    one, two, three = (Recipe.from_deletions(each, visual_tokens=24) for each in (first, second, third))
    assert 0 <= schedule_distance(one, two, 24) == schedule_distance(two, one, 24) <= 1
    assert (schedule_distance(one, two, 24) == 0) == (one == two)
    assert schedule_distance(one, three, 24) <= schedule_distance(one, two, 24) + schedule_distance(two, three, 24) + 1e-12


def test_the_distance_by_hand() -> None:
    first, later = (Recipe.from_deletions(each, visual_tokens=10) for each in ([4, 2, 0], [1, 3, 4]))
    assert schedule_distance(first, later, 10) == 0.5 * (3 + 1 + 4 + 2) / 10  # 3 of the first four go later, and 2 more go at all
    all_at_once, never = (Recipe.from_deletions(each, visual_tokens=10) for each in ([10], [0]))
    assert schedule_distance(all_at_once, never, 10) == 1


@pytest.mark.rest
def test_recipes_are_compared_with_the_base(stats: AttentionStats) -> None:
    made = recipes(stats, [*methods(AXES, SAMPLES), *CONTROLS], [0.4, 0.6])
    found = differences(stats, AXES, made)
    own = ["fitprune", "fitprune samples=1", "fitprune samples=4", "fitprune criterion=self"]  # scores have no recipe
    assert [(one.ratio, one.method) for one in found] == [(ratio, name) for ratio in (0.4, 0.6) for name in own]
    for one in found:
        got, base = made[one.method, one.ratio], made["fitprune", one.ratio]
        assert isinstance(got, tuple)
        assert isinstance(base, tuple)
        assert one.alive == got[0].alive(TOKENS)
        assert one.moved == schedule_distance(got[0], base[0], TOKENS)
        assert one.moved == 0 if one.method == "fitprune" else one.moved > 0 or "samples=4" in one.method
        assert len(one.draws) == (DRAWS if "samples" in one.method else 0)
    mean = {one.method: sum(one.draws) / DRAWS for one in found if one.draws}
    assert mean["fitprune samples=4"] < mean["fitprune samples=1"]  # more samples, more alike
    assert len(set(found[1].draws)) > 2
    assert differences(stats, AXES, made) == found  # the same draws every time
    lines = recipes_compared(found)
    assert sum(line.startswith("| fitprune") for line in lines) == len(found)
    assert f"{found[1].moved:.1%}" in "\n".join(lines)
    assert recipes_compared([]) == []


def test_draws_are_of_so_many_samples_none_twice(stats: AttentionStats) -> None:
    """Seven of eight samples can be drawn in eight ways: every draw is one of them, each without another sample."""
    axes = [("samples", [str(SAMPLES - 1)])]
    made = recipes(stats, [*methods(axes, SAMPLES), *CONTROLS], [0.6])
    base = made["fitprune", 0.6]
    assert isinstance(base, tuple)
    without = [stats.rows([row for row in range(SAMPLES) if row != left]) for left in range(SAMPLES)]
    ways = {schedule_distance(fit(one, reduction_ratio=0.6), base[0], TOKENS) for one in without}
    drawn = differences(stats, axes, made)[1].draws
    assert len(drawn) == DRAWS
    assert set(drawn) <= ways
    assert len(set(drawn)) > 1


def test_a_ratio_out_of_reach_is_left_out(stats: AttentionStats) -> None:
    made = recipes(stats, [*methods(AXES, SAMPLES), *CONTROLS], [0.5, 0.999])
    assert isinstance(made["fitprune", 0.999], FitPruneError)
    assert {one.ratio for one in differences(stats, AXES, made)} == {0.5}


def test_a_choice_is_one_line() -> None:
    """Every score is a method of that name, so that a new one can be ablated as it is."""
    for name in panels([("score", ["cross", "self", "last", "random"])], 1)["score"].values():
        assert name in METHODS
