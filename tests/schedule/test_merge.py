"""Merging steps: fewer of them in the same budget, none left that costs more than it saves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune import AttentionStats, CostModel, FitPruneError, Recipe, fit
from fitprune.cli import main
from fitprune.cost import VICUNA_7B, alive_after
from fitprune.recipe import published_names, published_ratios
from fitprune.schedule.merge import merge, savings

LAYERS, TOKENS = 10, 90
SMALL = CostModel(layers=LAYERS, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)
STEP_COSTS = st.one_of(st.integers(0, 60), st.floats(0, 2000))


def steps(deletions: list[int]) -> list[int]:
    return [layer for layer, gone in enumerate(deletions) if gone]


def schedules() -> st.SearchStrategy[list[int]]:
    """Deletions of TOKENS in LAYERS: gaps between sorted cuts, so that all of them may go, and many layers delete few."""
    cuts = st.lists(st.integers(0, TOKENS), min_size=LAYERS, max_size=LAYERS).map(sorted)
    few = st.lists(st.integers(0, TOKENS // LAYERS), min_size=LAYERS, max_size=LAYERS)
    return st.one_of(cuts.map(lambda c: [b - a for a, b in pairwise([0, *c])]), few)


def reduction(deletions: list[int]) -> float:
    return SMALL.visual_reduction(deletions, TOKENS)


# The maths


@given(schedules())
def test_what_a_step_saves_is_what_waiting_for_the_next_would_cost(deletions: list[int]) -> None:
    for step, saved in savings(deletions).items():
        later = [other for other in steps(deletions) if other > step]
        waiting = list(deletions)
        waiting[step] = 0
        if later:
            waiting[later[0]] += deletions[step]
        assert saved == sum(alive_after(waiting, TOKENS)) - sum(alive_after(deletions, TOKENS))
    assert list(savings(deletions)) == steps(deletions)


@settings(deadline=None)
@given(schedules(), STEP_COSTS)
def test_merged_schedules_obey_the_laws(deletions: list[int], step_cost: float) -> None:
    merged = merge(deletions, TOKENS, step_cost, SMALL)
    assert all(isinstance(gone, int) and gone >= 0 for gone in merged)  # so the curve never rises
    assert len(merged) == LAYERS
    assert sum(merged) <= TOKENS
    assert set(steps(merged)) <= set(steps(deletions))
    assert reduction(merged) >= reduction(deletions)
    assert merge(merged, TOKENS, step_cost, SMALL) == merged
    for step, saved in savings(merged).items():
        others = [other for other in steps(merged) if other != step]
        most = [TOKENS if layer == others[0] else 0 for layer in range(LAYERS)] if others else [0] * LAYERS
        assert saved >= step_cost or reduction(most) < reduction(deletions)
    if merged == deletions:
        return
    for step, after in pairwise([*steps(merged), LAYERS]):
        alive = alive_after(merged, TOKENS)
        alive[step:after] = [count + 1 for count in alive[step:after]]
        assert SMALL.visual_reduction_of_alive(alive, TOKENS) < reduction(deletions)


@settings(deadline=None)
@given(schedules(), STEP_COSTS, STEP_COSTS)
def test_a_dearer_step_leaves_fewer_of_them(deletions: list[int], one: float, other: float) -> None:
    cheap, dear = (merge(deletions, TOKENS, step_cost, SMALL) for step_cost in sorted((one, other)))
    assert set(steps(dear)) <= set(steps(cheap))


def test_a_folded_step_is_shared_by_its_neighbours_in_inverse_distance() -> None:
    assert merge([10, 0, 4, 0, 10, 0, 0, 0, 0, 0], TOKENS, 9, SMALL) == [12, 0, 0, 0, 12, 0, 0, 0, 0, 0]
    assert merge([30, 4, 0, 0, 10, 0, 0, 0, 0, 0], TOKENS, 13, SMALL) == [33, 0, 0, 0, 11, 0, 0, 0, 0, 0]


def test_the_first_step_joins_the_next() -> None:
    deletions = [1, 0, 60, 0, 0, 0, 0, 0, 0, 0]
    assert reduction([0, 0, 61, 0, 0, 0, 0, 0, 0, 0]) < reduction(deletions)  # it waited: one token has to make up for it
    assert merge(deletions, TOKENS, 3, SMALL) == [0, 0, 62, 0, 0, 0, 0, 0, 0, 0]


def test_a_step_is_kept_where_the_budget_needs_it() -> None:
    deletions = [50, 0, 0, 0, 0, 0, 0, 0, 40, 0]  # the first step saves 400 token-layers, the second can save 90 × 2
    assert merge(deletions, TOKENS, 1e6, SMALL)[0] >= 50
    assert steps(merge([0, 0, 0, 5, 0, 0, 0, 0, 0, 0], TOKENS, 1e6, SMALL)) == [3]  # and the last one always is
    assert merge([0] * LAYERS, TOKENS, 1e6, SMALL) == [0] * LAYERS


@pytest.mark.parametrize("name", published_names())
def test_published_recipes_keep_budget_and_shape(name: str) -> None:
    for ratio in published_ratios(name)[1:]:
        recipe = Recipe.published(name, ratio)
        n = recipe.visual_tokens
        for step_cost in (12, 100):
            merged = recipe.merge_steps(step_cost)
            folded = sum(map(bool, recipe.counts)) - sum(map(bool, merged.counts))
            assert folded > 0
            assert recipe.achieved <= merged.achieved < recipe.achieved + 4e-4
            moved = sum(abs(a - b) for a, b in zip(recipe.alive(n), merged.alive(n), strict=True))
            assert moved < 2 * step_cost * folded  # a folded step moved no more than its saving, up and down


# The recipe

GIVEN = Recipe.from_deletions([0, 2, 1, 0, 30, 1, 1, 0, 20, 1], visual_tokens=TOKENS, model="m", samples=7)


def statistics() -> AttentionStats:
    """Attention that grows sharper from layer to layer, so that many layers delete."""
    received = torch.rand(2, 6, LAYERS, TOKENS, generator=torch.Generator().manual_seed(0))
    received = received.pow(1 + torch.arange(LAYERS)[:, None])
    counts = torch.full((6,), TOKENS)
    return AttentionStats(*received, counts, counts, model="tiny", fingerprint="ab", cost=SMALL)


FITTED = fit(statistics(), None, 0.4)


def test_nothing_to_fold_is_the_same_recipe() -> None:
    for recipe in (GIVEN, Recipe.step(layer=2, keep=0.5), Recipe(counts=(0.1, 0.2), visual_tokens=1, scaling="fraction")):
        assert recipe.merge_steps(0) is recipe
    assert GIVEN.merge_steps(1, SMALL) is GIVEN
    assert Recipe.step(layer=2, keep=0.5).merge_steps(1e9) is not None
    assert Recipe.none(LAYERS).merge_steps(5, SMALL) == Recipe.none(LAYERS)


def test_provenance_travels_along(tmp_path: Path) -> None:
    before = FITTED
    merged = before.merge_steps(30)
    assert sum(map(bool, merged.counts)) < sum(map(bool, before.counts))
    for name in ("model", "reduction_ratio", "alpha", "samples", "fingerprint", "cost", "scaling", "num_layers"):
        assert getattr(merged, name) == getattr(before, name)
    again = merged.merge_steps(1e6)
    assert again != merged
    assert merged.source == again.source == "fitted, merged"
    assert merged.achieved == reduction(list(merged.counts)) >= before.achieved >= 0.4
    merged.save(tmp_path / "r.json")
    assert vars(Recipe.load(tmp_path / "r.json")) == vars(merged)
    assert Recipe.published("llava-v1.5-7b", 60).merge_steps(12).source == "published, merged"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 900), st.sampled_from([5, 30, 120]))
def test_merged_budgets_hold_at_any_count_and_at_no_other_layers(n: int, step_cost: int) -> None:
    merged = FITTED.merge_steps(step_cost)
    deletions = merged.deletions(n)
    assert SMALL.visual_reduction(deletions, n) >= merged.reduction_ratio
    least = FITTED.achieved if n == TOKENS else merged.reduction_ratio  # at its own count it saves as much as before it was merged
    assert least is not None
    assert set(steps(deletions)) <= set(steps(list(merged.counts)))
    for step, after in pairwise([*steps(deletions), LAYERS]):
        alive = alive_after(deletions, n)
        alive[step:after] = [count + 1 for count in alive[step:after]]
        assert SMALL.visual_reduction_of_alive(alive, n) < least


def test_proportional_recipes_stay_proportional() -> None:
    merged = GIVEN.merge_steps(25, SMALL)
    assert merged.deletions(45) == [count // 2 for count in merged.counts]
    shallow = Recipe(counts=(2, 1, 30, 20), visual_tokens=TOKENS)  # of no particular model
    assert len(shallow.merge_steps(25, SMALL).counts) == 4
    assert reduction(shallow.merge_steps(25, SMALL).deletions(TOKENS, LAYERS)) >= reduction(shallow.deletions(TOKENS, LAYERS))


def test_a_model_of_any_depth_needs_a_cost() -> None:
    with pytest.raises(FitPruneError, match="10 layers needs a cost model"):
        GIVEN.merge_steps(5)
    assert Recipe.published("llava-v1.5-7b", 60).merge_steps(12) == Recipe.published("llava-v1.5-7b", 60).merge_steps(12, VICUNA_7B)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (GIVEN, (-1, SMALL), "negative"),
        (GIVEN, (float("inf"), SMALL), "endless"),
        (GIVEN, ("12", SMALL), "must be a number"),
        (GIVEN, (5, VICUNA_7B), "10 layers"),
        (GIVEN, (5, "llama"), "cost model"),
        (FITTED, (5, CostModel(**{**SMALL.to_dict(), "hidden": 128})), "hidden 64 is 128"),
        (Recipe(counts=(0.1, 0.2), visual_tokens=1, scaling="fraction"), (5, SMALL), "from_deletions"),
    ],
)
def test_what_cannot_be_merged_is_one_line(recipe: Recipe, arguments: tuple, message: str) -> None:
    with pytest.raises(FitPruneError, match=message) as error:
        recipe.merge_steps(*arguments)
    assert "\n" not in str(error.value)


# The command


def test_the_command_merges_what_it_fits_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statistics().save(tmp_path / "s")
    flags = ["fit", "--from-stats", str(tmp_path / "s"), "--output", str(tmp_path), "--reduction-ratio", "0.4"]
    assert main(flags) == main([*flags, "--merge-steps", "30"]) == 0
    plain = Recipe.load(tmp_path / "tiny-r40.recipe.json")
    assert Recipe.load(tmp_path / "tiny-r40-merged.recipe.json") == plain.merge_steps(30)
    assert main(["show", str(tmp_path / "tiny-r40.recipe.json"), "--merge-steps", "30"]) == 0
    assert capsys.readouterr().out.endswith(f"{plain.merge_steps(30)}\n")
    assert main(["show", "llava-v1.5-7b", "60", "--merge-steps", "12"]) == 0
    assert "published, merged recipe" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["show", "llava-v1.5-7b", "60", "--merge-steps", "-1"])
