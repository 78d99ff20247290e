"""Choosing among schedules: what is asked of the judge, what is taken, and that it is the best by a judge whose truth is known."""

import random
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune import CostModel, Recipe
from fitprune.choose import FEWEST, LAST, _beyond, _Halving, choose, choose_all, forecast, most_prefills
from fitprune.cost import VICUNA_7B
from fitprune.errors import FitPruneError
from fitprune.schedule.candidates import _shapes, candidates
from fitprune.schedule.validation import SPREAD
from fitprune.tables import duration

COST = CostModel(layers=9, hidden=64, intermediate=128, heads=4, kv_heads=4, head_dim=16)
TOKENS = 90


def fitted(ratio: float = 0.6, cost: CostModel = COST) -> Recipe:
    """Stands for the paper's: an even schedule that meets the ratio."""
    deletions = candidates(cost, TOKENS, ratio)["falling from layer 0 by the power 1"]
    return Recipe.from_deletions(
        deletions, visual_tokens=TOKENS, scaling="budget", reduction_ratio=ratio, achieved=cost.visual_reduction(deletions, TOKENS),
        cost=cost, source="fitted",
    )  # fmt: skip


class Known:
    """A judge by a formula, with noise that questions share among recipes in part."""

    def __init__(self, truth, questions=64, noise=0.0, shared=0.0):
        self.truth, self.questions, self.noise, self.shared = truth, questions, noise, shared
        self.asked: dict[str, set[int]] = {}

    def __len__(self):
        return self.questions

    def __call__(self, recipe, first, last):
        name = repr((recipe.counts, recipe.score))
        assert not self.asked.setdefault(name, set()) & set(range(first, last)), "asked twice"
        self.asked[name] |= set(range(first, last))
        own = (random.Random(f"{name} {at}").gauss(0, self.noise) for at in range(first, last))
        all_alike = (random.Random(at).gauss(0, self.shared) for at in range(first, last))
        return [self.truth(recipe) + one + other for one, other in zip(own, all_alike, strict=True)]


def late(recipe: Recipe) -> float:
    """Drift of a model that minds early deletions."""
    return sum(count * (9 - layer) ** 2 for layer, count in enumerate(recipe.counts)) / 1000


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([0.3, 0.5, 0.7, 0.8]), st.sampled_from([COST, VICUNA_7B, COST.deleting_in([0, 3, 7])]))
def test_candidates_meet_the_ratio_and_differ(ratio, cost):
    found = candidates(cost, 576, ratio)
    assert len({tuple(one) for one in found.values()}) == len(found)
    for deletions in found.values():
        assert ratio <= cost.visual_reduction(deletions, 576) < ratio + 0.02
        assert all(layer in cost.deletable for layer, gone in enumerate(deletions) if gone)
    steps = {name: sum(map(bool, one)) for name, one in found.items()}
    assert all(count <= int(name[0]) for name, count in steps.items() if name[0].isdigit())


def test_a_ratio_out_of_reach_is_refused():
    with pytest.raises(FitPruneError, match="cannot be reached"):
        candidates(COST.deleting_in([8]), 90, 0.5)


@pytest.mark.parametrize("ratio", [0.4, 0.7])
def test_the_best_is_found_where_nothing_is_uncertain(ratio):
    judge = Known(lambda recipe: late(recipe) + ("theta=0.5" not in (recipe.score or "")) * 1e-3)
    chosen = choose(fitted(ratio), judge, progress=False)
    tried = [fitted(ratio), *(Recipe.from_deletions(one, visual_tokens=TOKENS) for one in candidates(COST, TOKENS, ratio).values())]
    assert late(chosen.recipe) == min(map(late, tried))
    assert chosen.recipe.score == "spread theta=0.5"
    assert chosen.recipe.achieved >= ratio
    assert chosen.recipe.drift == pytest.approx(late(chosen.recipe))
    assert chosen.recipe.drift_error == 0
    assert chosen.recipe.samples == len(judge)
    assert chosen.recipe.source.startswith("chosen by drift (")
    assert chosen.recipe.deletions(45)  # knows its budget at other counts


@pytest.mark.parametrize(("layers", "ratio"), [(9, 0.6), (32, 0.1), (32, 0.6), (80, 0.6)])
def test_halving_asks_little_and_the_last_are_asked_everything(layers, ratio):
    judge = Known(late, questions=128)
    recipe = fitted(ratio, replace(VICUNA_7B, layers=layers))
    chosen = choose(recipe, judge, progress=False)
    assert chosen.prefills == sum(map(len, judge.asked.values())) == most_prefills(recipe, 128) <= 2500
    assert sorted(map(len, judge.asked.values()))[-LAST:] == [128] * LAST
    assert sum(len(one) == 128 for one in judge.asked.values()) == LAST


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 160), st.data())
def test_no_depth_takes_more_than_2500_prefills(layers, data):
    """At whatever ratio: each shape is one candidate at most, and the paper's schedule comes to them."""
    cost = replace(COST, layers=layers)
    if data.draw(st.booleans()):
        cost = cost.deleting_in(sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1))))
    shapes = list(_shapes(cost))
    assert len({name for name, _, _ in shapes}) == len(shapes)
    assert _Halving(len(shapes) + 1, len(SPREAD), 128).prefills <= 2500


def test_what_it_takes_is_said_before_and_what_came_of_it_after():
    recipes = {0.0: Recipe.none(9), 0.4: fitted(0.4), 0.7: fitted(0.7)}
    counts = [most_prefills(recipes[ratio], 64) for ratio in (0.4, 0.7)]
    said = forecast(recipes, 64, seconds=30)
    assert f"at most {counts[0]} pruned prefills for 40%, {counts[1]} for 70%, about {30 * sum(counts) / 3600:.1f} hours" in said
    assert "--samples" in said
    assert "--by mass" in said
    assert "about" not in forecast(recipes, 64)
    assert "nothing to choose" in forecast({0.0: Recipe.none(9)}, 64)
    with pytest.raises(FitPruneError, match="--by mass"):
        forecast(recipes, FEWEST - 1)
    found = choose_all(recipes, Known(lambda recipe: 1.0, noise=0.3), progress=False)
    assert [chosen.prefills for chosen in found.values()] == [0, *counts]
    assert found[0.0].recipe is recipes[0.0]
    assert str(found[0.4]).startswith(f"{found[0.4].recipe.source} after {counts[0]} pruned prefills; within two")
    assert str(found[0.4]).endswith("; ".join(found[0.4].equals))


def test_times_to_wait_for():
    assert [duration(seconds) for seconds in (4, 300, 19080, 350000)] == ["4 seconds", "5 minutes", "5.3 hours", "4 days"]


def test_of_equals_the_fewest_steps_are_taken_and_the_others_named():
    chosen = choose(fitted(), Known(lambda recipe: 1.0, noise=0.3), progress=False)
    assert sum(map(bool, chosen.recipe.counts)) <= 3
    assert len(chosen.equals) >= 1
    assert all(", spread theta=" in name for name in chosen.equals)


def test_what_questions_share_does_not_hide_a_difference():
    """Questions differ by far more than recipes; compared one by one they are told apart."""
    chosen = choose(fitted(), Known(late, noise=0.01, shared=5.0, questions=128), progress=False)
    sure = choose(fitted(), Known(late), progress=False)
    assert late(chosen.recipe) <= 1.1 * late(sure.recipe)
    assert _beyond([1.1, 5.1, -2.9], [1.0, 5.0, -3.0]) > 100


def test_the_same_questions_choose_the_same():
    one, two = (choose(fitted(), Known(late, noise=0.2), progress=False) for _ in range(2))
    assert one.recipe == two.recipe
    assert (one.recipe.drift, one.recipe.drift_error, one.equals) == (two.recipe.drift, two.recipe.drift_error, two.equals)


def test_one_score_is_tried_alone():
    judge = Known(late)
    chosen = choose(fitted(), judge, ["last"], progress=False)
    assert chosen.recipe.score == "last"
    assert all("'last'" in name for name in judge.asked)


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(FitPruneError, match=f"give at least {FEWEST}"):
        choose(fitted(), Known(late, questions=FEWEST - 1), progress=False)
    for recipe in (Recipe.published("llava-v1.5-7b", 0.6), Recipe.none(9)):
        with pytest.raises(FitPruneError, match="for a cost model"):
            choose(recipe, Known(late), progress=False)


def test_a_recipe_keeps_what_was_found(tmp_path):
    recipe = choose(fitted(), Known(late, noise=0.1), SPREAD[:2], progress=False).recipe
    recipe.save(tmp_path / "r.json")
    assert vars(Recipe.load(tmp_path / "r.json")) == vars(recipe)
    assert f"ranked by {recipe.score}, drift {recipe.drift:.3g} ± " in str(recipe)
    assert recipe.ranked_by() == recipe.score
    assert recipe.ranked_by("last") == "last"
    assert fitted().ranked_by() == "fitprune"
    assert '"score"' not in fitted().to_bytes().decode()  # files of schedules that name none are as before
    assert fmean([recipe.drift, recipe.drift]) == recipe.drift
