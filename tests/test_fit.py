"""Fitting: the fast rule equals the obvious one, the budget is met within a token, and nothing depends on luck."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.cost import VICUNA_7B, CostModel
from fitprune.errors import FitPruneError
from fitprune.fit import CRITERIA, alive_fractions, alive_reference, fit, fit_all, judged_by
from fitprune.recipe import Recipe
from fitprune.schedule.budget import scale_to_budget
from fitprune.stats import AttentionStats

RATIOS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9]


def cost_of(layers):
    return CostModel(layers=layers, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)


def made_up(samples=6, layers=8, visual=40, seed=0, counts=None, sharpness=1.5, **provenance):
    """Log-normal attention with a part that a sample's layers share, as real salience has."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(2, samples, 1, visual, generator=generator)
    own = torch.randn(2, samples, layers, visual, generator=generator)
    counts = torch.full((samples,), visual) if counts is None else torch.tensor(counts)
    cross, intra = (shared + own).mul(sharpness).exp() * (torch.arange(visual) < counts[:, None, None])
    return AttentionStats(cross, intra, counts, torch.full((samples,), 30), cost=cost_of(layers), **provenance)


def sharper_with_depth(samples=4, layers=6, visual=60, seed=0):
    """Attention that fewer and fewer tokens share, from the text faster than from the image: recipes of many steps."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.rand(2, samples, 1, visual, generator=generator)
    power = torch.linspace(0.1, 2, layers)[:, None]
    counts = torch.full((samples,), visual)
    return AttentionStats(shared[0].pow(4 * power), shared[1].pow(power), counts, counts, cost=cost_of(layers))


def token_worth(cost, n):
    dense = sum(cost.visual_macs([n] * cost.layers, n))
    return (cost.rest_macs(1) + cost.attention_macs(n) - cost.attention_macs(n - 1)) / dense


def counts_by_reference(stats, alpha, criterion="both"):
    return [
        alive_reference(stats.cross[i, :, :n].tolist(), stats.intra[i, :, :n].tolist(), alpha, criterion)
        for i, n in enumerate(stats.visual_tokens.tolist())
    ]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 13), min_size=1, max_size=5), st.floats(0, 1) | st.just(1.0))
def test_fast_rule_equals_the_obvious_one(seed, counts, alpha):
    stats = made_up(len(counts), 4, 13, seed, counts)
    fast = alive_fractions(stats)(alpha) * stats.visual_tokens[:, None]
    assert fast.round().int().tolist() == counts_by_reference(stats, alpha)


@settings(deadline=None)
@given(
    st.sampled_from(CRITERIA), st.integers(0, 10**6), st.lists(st.integers(1, 13), min_size=1, max_size=4), st.floats(0, 1) | st.just(1.0)
)
def test_every_criterion_equals_the_obvious_one(criterion, seed, counts, alpha):
    stats = made_up(len(counts), 4, 13, seed, counts)
    fast = alive_fractions(judged_by(stats, criterion))(alpha) * stats.visual_tokens[:, None]
    assert fast.round().int().tolist() == counts_by_reference(stats, alpha, criterion)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_both_keep_in_a_layer_what_either_keeps(seed, alpha):
    """In one layer the two lists are sets, and what both hold is in each. Over layers only the budget is ordered: a
    criterion that has lost more before may have to keep more now."""
    stats = made_up(5, 1, 30, seed)
    alive = {one: (30 * alive_fractions(judged_by(stats, one))(alpha)[:, 0]).round() for one in CRITERIA}
    for one in ("cross", "self"):
        assert (alive["both"] >= alive[one]).all()
    assert (alive["both"] <= alive["cross"] + alive["self"]).all()  # what is kept is kept by one of the lists


def test_a_criterion_of_one_list_does_not_look_at_the_other():
    stats, other = sharper_with_depth(seed=0), sharper_with_depth(seed=1)
    mixed = dataclasses.replace(stats, intra=other.intra)
    assert fit(stats, None, 0.5, "cross") == fit(mixed, None, 0.5, "cross") != fit(stats, None, 0.5, "self")
    assert fit(mixed, None, 0.5, "self") == fit(other, None, 0.5, "self")
    assert fit(stats, None, 0.5, "both") != fit(mixed, None, 0.5, "both")
    same = dataclasses.replace(stats, intra=stats.cross)  # two lists that always agree are one
    assert fit(same, None, 0.5).counts == fit(stats, None, 0.5, "cross").counts
    squared = dataclasses.replace(stats, cross=stats.cross.square(), intra=stats.cross.square())
    assert fit(squared, None, 0.5).counts == fit(same, None, 0.5, "product").counts


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_meets_the_budget_and_is_recorded(criterion, tmp_path):
    recipe = fit(made_up(5, 12, 60), None, 0.6, criterion)
    assert 0.6 <= recipe.achieved < 0.6 + token_worth(cost_of(12), 60)
    assert recipe.source == ("fitted" if criterion == "both" else f"fitted by {criterion}")
    recipe.save(tmp_path / "recipe")
    assert vars(Recipe.load(tmp_path / "recipe")) == vars(recipe)


def test_a_fitted_recipe_may_have_its_survivors_absorb():
    stats = made_up()
    plain, absorbing = fit(stats), fit(stats, absorb=0.8)
    assert (plain.absorb, absorbing.absorb) == (None, 0.8)
    assert plain.counts == absorbing.counts
    assert "survivors absorb what is 0.8 alike" in str(absorbing)


def test_an_unknown_criterion_is_named():
    with pytest.raises(FitPruneError, match="unknown criterion 'either': use one of both, cross, self, product"):
        fit(made_up(), None, 0.5, "either")


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=6, max_size=6), st.sampled_from([0, 0.25, 0.5, 0.75, 1.0]))
def test_ties_and_silent_layers(masses, alpha):
    # small integers: exact sums, many ties, rows without any mass
    both = torch.tensor(masses, dtype=torch.float32).view(2, 1, 3, 6)
    stats = AttentionStats(both[0], both[1], torch.tensor([6]), torch.tensor([1]))
    fast = alive_fractions(stats)(alpha) * 6
    assert fast.round().int().tolist() == counts_by_reference(stats, alpha)
    assert fast.min() >= 1


def test_the_rule_by_hand():
    cross = [[1, 2, 3, 4], [1, 2, 3, 4]]
    intra = [[1, 4, 3, 2], [4, 1, 3, 2]]
    # 30% of 10 may go. Layer 0: cross allows {0, 1}, intra {0, 3}: 0 goes. Layer 1, over 1, 2, 3 (cross mass 9,
    # intra 6): cross allows {1}; intra is below 7 already, so none
    assert alive_reference(cross, intra, 0.3) == [3, 3]
    # 50%: cross {0, 1}, intra {0, 3}; then cross (9 left, 5 needed) {1}, intra (6 left) {1}: 1 goes
    assert alive_reference(cross, intra, 0.5) == [3, 2]
    # one list alone: cross {0, 1}, then {2} of 2, 3; self {0, 3}, then 1, 2 hold 4 of the 5 needed; the products 1, 8,
    # 9, 8 of 26 and 4, 2, 9, 8 of 23: {0, 1} (17 of the 13 needed, ties by position), then none of 2, 3 (17 of 11.5; 8 left)
    assert alive_reference(cross, intra, 0.5, "cross") == [2, 2]
    assert alive_reference(cross, intra, 0.5, "self") == [2, 2]
    assert alive_reference(cross, intra, 0.5, "product") == [2, 2]
    assert alive_reference(cross, intra, 0) == [4, 4]
    assert alive_reference(cross, intra, 1) == [2, 1]


def test_blocks_of_samples_do_not_matter(monkeypatch):
    stats = made_up(7, 5, 30, counts=[30, 29, 30, 4, 30, 17, 1])
    whole = alive_fractions(stats)(0.3)
    monkeypatch.setattr(sys.modules["fitprune.fit"], "BLOCK", 60)
    assert torch.equal(alive_fractions(stats)(0.3), whole)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter_and_stay_as_they_were(threads):
    stats = made_up(7, 5, 30, counts=[30, 29, 30, 4, 30, 17, 1])
    alone, before = alive_fractions(stats)(0.3), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(alive_fractions(stats)(0.3), alone)
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


def test_within_inference_mode_as_outside():
    stats = made_up()
    with torch.inference_mode():
        within = alive_fractions(made_up())(0.3)
    assert torch.equal(within, alive_fractions(stats)(0.3))


def test_more_tokens_than_a_narrow_rank_counts():
    n = 2**15 + 8
    even = torch.ones(1, 1, n)
    stats = AttentionStats(even, even, torch.tensor([n]), torch.tensor([1]))
    assert (alive_fractions(stats)(0.125) * n).tolist() == [[n - n // 8]]
    assert (alive_fractions(stats)(1) * n).tolist() == [[1]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 0.85), st.integers(1, 5), st.sampled_from([0.2, 1.5, 4]))
def test_meets_the_budget_within_one_token(seed, ratio, samples, sharpness):
    stats = made_up(samples, 12, 60, seed, sharpness=sharpness)
    recipe = fit(stats, reduction_ratio=ratio)
    achieved = stats.cost.visual_reduction(recipe.counts, 60)
    assert recipe.achieved == achieved
    assert ratio <= achieved < ratio + max(token_worth(stats.cost, 60), 1e-12)


def test_within_a_tenth_of_a_point_at_the_real_size():
    stats = made_up(3, 32, 576)
    assert token_worth(VICUNA_7B, 576) < 0.001
    for ratio, recipe in fit_all(stats, VICUNA_7B, RATIOS).items():
        assert ratio <= recipe.achieved <= ratio + 0.001
        assert ratio <= VICUNA_7B.visual_reduction(recipe.deletions(1440), 1440) <= ratio + 0.001


def test_alpha_is_the_gentlest():
    stats = made_up(20, 8, 80)
    recipe = fit(stats, None, 0.6)

    def saved(alpha):
        return stats.cost.visual_reduction_of_alive((alive_fractions(stats)(alpha).mean(0) * 80).tolist(), 80)

    assert 0.6 <= saved(recipe.alpha) < 0.603
    assert saved(recipe.alpha * 0.98) < 0.6


def test_schedule_follows_the_average_survivors():
    stats = made_up(40, 8, 120)
    recipe = fit(stats, None, 0.5)
    average = alive_fractions(stats)(recipe.alpha).mean(0) * 120
    assert (torch.tensor(recipe.alive(120)) - average).abs().max() < 1.5


def test_one_pass_gives_what_single_fits_give_and_more_costs_more():
    stats = made_up(8, 12, 60)
    recipes = fit_all(stats, None, [*RATIOS, "95%"])
    assert list(recipes) == [*RATIOS, 0.95]
    for ratio, recipe in recipes.items():
        alone = fit(stats, stats.cost, ratio)
        assert recipe == alone
        assert vars(recipe) == vars(alone)
    achieved = [recipe.achieved for recipe in recipes.values()]
    assert achieved == sorted(achieved)
    alphas = [recipe.alpha for recipe in recipes.values()]
    assert alphas == sorted(alphas)


def test_deletes_in_the_layer_where_attention_ends():
    stats = made_up(3, 8, 40)
    for received in (stats.cross, stats.intra):
        received[:, :, :10], received[:, :4, 10:], received[:, 4:, 10:] = 1, 0.9, 1e-6
    counts = fit(stats, None, 0.3).counts
    assert counts[4] == sum(counts) > 20


def test_provenance():
    stats = made_up(5, 8, 40, model="tiny", fingerprint="ab" * 32)
    recipe = fit(stats, None, "60")
    assert (recipe.model, recipe.fingerprint, recipe.samples, recipe.cost) == ("tiny", "ab" * 32, 5, stats.cost)
    assert (recipe.reduction_ratio, recipe.visual_tokens, recipe.num_layers) == (0.6, 40, 8)
    assert (recipe.scaling, recipe.source) == ("budget", "fitted")
    assert 0 < recipe.alpha < 1


def test_ratio_zero_deletes_nothing():
    recipe = fit(made_up(), None, 0)
    assert recipe.counts == (0,) * 8
    assert (recipe.achieved, recipe.alpha) == (0, 0)
    assert recipe.deletions(99) == [0] * 8


def test_samples_of_different_sizes_count_by_their_share():
    ragged = made_up(6, 8, 60, counts=[60, 30, 60, 15, 44, 60])
    recipe = fit(ragged, None, 0.5)
    assert recipe.visual_tokens == 60
    assert 0.5 <= recipe.achieved < 0.5 + token_worth(ragged.cost, 60)


def test_tokens_that_nobody_attends_to_do_not_overshoot():
    stats = made_up(4, 8, 60)
    stats.cross[:, :, 20:] = 0
    stats.intra[:, :, 20:] = 0  # alpha = 0 already deletes two thirds
    recipe = fit(stats, None, 0.05)
    assert 0.05 <= recipe.achieved < 0.05 + token_worth(stats.cost, 60)


def test_beyond_alpha_one_the_same_shape_goes_deeper():
    stats = made_up(4, 16, 6)
    most = alive_fractions(stats)(1).mean(0)
    assert stats.cost.visual_reduction_of_alive((most * 6).tolist(), 6) < 0.93
    recipe = fit(stats, None, 0.93)
    assert recipe.alpha == 1
    assert 0.93 <= recipe.achieved < 1
    assert scale_to_budget(most.tolist(), 6, stats.cost, 0.93)[0] < 6 * most[0]


def test_out_of_reach_and_unfit():
    stats = made_up()
    with pytest.raises(FitPruneError, match=r"0\.99 cannot be reached with 40 visual tokens: ask for at most 0\.\d+"):
        fit(stats, None, 0.99)
    with pytest.raises(FitPruneError, match="out of range"):
        fit(stats, None, 1.5)
    with pytest.raises(FitPruneError, match="8 layers but the cost model 32"):
        fit(stats, VICUNA_7B, 0.5)
    for wrong in (None, 0.6):
        stats.cost = None
        with pytest.raises(FitPruneError, match="needs a cost model"):
            fit(stats, wrong, 0.6)


def test_same_statistics_same_recipe(tmp_path):
    stats = made_up(6, 8, 40)
    recipe = fit(stats, None, 0.6)
    stats.save(tmp_path / "stats")
    recipe.save(tmp_path / "recipe")
    assert vars(fit(AttentionStats.load(tmp_path / "stats"), None, 0.6)) == vars(recipe)
    assert vars(Recipe.load(tmp_path / "recipe")) == vars(recipe)


def test_eleven_ratios_share_their_curves(monkeypatch):
    stats, module, asked = made_up(5, 32, 144), sys.modules["fitprune.fit"], []

    def counted(stats):
        curve = alive_fractions(stats)
        return lambda alpha: asked.append(alpha) or curve(alpha)

    monkeypatch.setattr(module, "alive_fractions", counted)
    fit_all(stats, VICUNA_7B, RATIOS)
    together = len(asked)
    assert together == len(set(asked))  # none twice
    for ratio in RATIOS:
        fit(stats, VICUNA_7B, ratio)
    assert together < 0.8 * (len(asked) - together)
