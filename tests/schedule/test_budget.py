"""Rounding meets the budget exactly; deepening keeps the shape and meets it at any count."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.cost import VICUNA_7B, CostModel
from fitprune.errors import FitPruneError
from fitprune.schedule.budget import round_to_budget, scale_to_budget, smallest

SMALL = CostModel(layers=6, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)


def fractions(layers):
    return st.lists(st.floats(0, 1), min_size=layers, max_size=layers).map(lambda values: sorted(values, reverse=True))


def worth(cost, n):
    """The most that one token in one layer is worth, as a share of the dense cost."""
    dense = sum(cost.visual_macs([n] * cost.layers, n))
    return (cost.rest_macs(1) + cost.attention_macs(n) - cost.attention_macs(n - 1)) / dense


def check(alive, n, cost, ratio):
    assert all(isinstance(count, int) for count in alive)
    assert n >= alive[0]
    assert alive[-1] >= 0
    assert all(before >= after for before, after in pairwise(alive))
    saved = cost.visual_reduction_of_alive(alive, n)
    assert ratio <= saved
    assert saved < ratio + max(worth(cost, n), 1e-12)
    return saved


def test_smallest_is_exact():
    assert smallest(lambda x: x * x >= 2, 0, 2) ** 2 >= 2
    assert smallest(lambda x: x >= 0.3, 0, 1) == 0.3
    assert smallest(lambda x: x > 5, 0, 1) == 1


@settings(deadline=None)
@given(fractions(32), st.integers(300, 3000), st.floats(0.01, 0.9))
def test_vicuna_meets_any_budget_within_a_tenth_of_a_point(shape, n, ratio):
    assert worth(VICUNA_7B, n) < 0.001
    shape = [min(fraction, 0.99) for fraction in shape]
    saved = check(round_to_budget(scale_to_budget(shape, n, VICUNA_7B, ratio), n, VICUNA_7B, ratio), n, VICUNA_7B, ratio)
    assert saved <= ratio + 0.001


@settings(deadline=None)
@given(fractions(6), st.integers(1, 90), st.floats(0, 0.8))
def test_rounds_any_curve_even_one_that_misses_the_budget(shape, n, ratio):
    check(round_to_budget([n * f for f in shape], n, SMALL, ratio), n, SMALL, ratio)


@given(fractions(6), st.integers(1, 90), st.floats(0, 0.7), st.floats(0, 0.7))
def test_a_larger_budget_never_keeps_less(shape, n, one, other):
    low, high = sorted((one, other))
    alive = [round_to_budget([n * f for f in shape], n, SMALL, ratio) for ratio in (low, high)]
    macs = [sum(SMALL.visual_macs(curve, n)) for curve in alive]
    assert macs[0] >= macs[1]


def test_integers_that_meet_the_budget_exactly_stay():
    alive = [80, 60, 60, 31, 31, 2]
    ratio = SMALL.visual_reduction_of_alive(alive, 90)
    assert round_to_budget(alive, 90, SMALL, ratio) == alive


def test_gives_back_where_the_curve_is_furthest():
    alive = [80.1, 60.2, 50.9, 31.3, 20.2, 2.1]
    nearest = [80, 60, 51, 31, 20, 2]
    assert round_to_budget(alive, 90, SMALL, SMALL.visual_reduction_of_alive(nearest, 90)) == nearest


@settings(deadline=None)
@given(fractions(6), st.integers(1, 500), st.floats(0.01, 0.5))
def test_deepen_meets_the_budget_and_keeps_the_shape(shape, n, ratio):
    shape = [min(fraction, 0.9) for fraction in shape]
    curve = scale_to_budget([1.0, *shape[:-1]], n, SMALL, ratio)
    assert curve[0] == n
    assert all(before >= after for before, after in pairwise(curve))
    assert SMALL.visual_reduction_of_alive(curve, n) == pytest.approx(ratio, abs=1e-9)


def test_deepen_is_the_identity_where_the_budget_is_met_already():
    shape = [0.9, 0.8, 0.5, 0.5, 0.3, 0.2]
    ratio = SMALL.visual_reduction_of_alive([f * 200 for f in shape], 200)
    assert scale_to_budget(shape, 200, SMALL, ratio) == pytest.approx([f * 200 for f in shape])


def test_nothing_to_do():
    assert scale_to_budget([0.5] * 6, 0, SMALL, 0.5) == [0] * 6
    assert round_to_budget([0] * 6, 0, SMALL, 0.5) == [0] * 6
    assert round_to_budget(scale_to_budget([0.5] * 6, 9, SMALL, 0), 9, SMALL, 0) == [9] * 6


def test_out_of_reach_names_the_largest_ratio():
    with pytest.raises(FitPruneError, match=r"0\.99 cannot .* at most 0\.\d+") as error:
        round_to_budget([0] * 6, 90, SMALL, 0.99)
    reachable = float(str(error.value).split()[-1])
    assert sum(round_to_budget([0] * 6, 90, SMALL, reachable)) < 6
    with pytest.raises(FitPruneError, match=r"at most 0\.1096"):  # the last MLP is all that may go
        scale_to_budget([1, 1, 1, 1, 1, 0.5], 90, SMALL, 0.5)
