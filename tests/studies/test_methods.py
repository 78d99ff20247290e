"""Comparison methods: their papers' definitions, and the same compute saved by all."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.cost import VICUNA_7B, CostModel
from fitprune.errors import FitPruneError
from fitprune.fit import fit
from fitprune.recipe import Recipe
from fitprune.scores import SCORES
from fitprune.stats import AttentionStats
from fitprune.studies.before import WAYS, Before
from fitprune.studies.methods import CONTROLS, INSIDE, METHODS, Schedule, fastv, find, pyramiddrop, recipes, spaced, uniform, vtw

SMALL = CostModel(layers=9, hidden=192, intermediate=512, heads=4, kv_heads=4, head_dim=48)
TOKENS = 144


@pytest.fixture(scope="module")
def stats() -> AttentionStats:
    cross, intra = torch.rand(2, 3, SMALL.layers, TOKENS, generator=torch.Generator().manual_seed(0)).pow(4)
    return AttentionStats(cross, intra, torch.full((3,), TOKENS), torch.full((3,), 20), model="some", cost=SMALL)


def one_more(recipe: Recipe, cost: CostModel, tokens: int) -> list[float]:
    """What would be saved if one token less went in a layer that deletes (and one more in the next that does)."""
    counts = recipe.deletions(tokens, cost.layers)
    steps = [layer for layer, gone in enumerate(counts) if gone]
    found = []
    for step, after in pairwise([*steps, None]):
        other = list(counts)
        other[step] -= 1
        if after is not None:
            other[after] += 1
        found.append(cost.visual_reduction(other, tokens))
    return found


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.6, 0.8])
def test_all_meet_the_ratio_within_a_token(stats: AttentionStats, ratio: float) -> None:
    made = recipes(stats, METHODS, [ratio])
    assert list(made) == [(name, ratio) for name in METHODS]
    for (name, _), got in made.items():
        assert not isinstance(got, FitPruneError), got
        if isinstance(got, Before):
            enter = got.keep(TOKENS, SMALL)
            whole, some, more = (SMALL.dense_macs(tokens) for tokens in (TOKENS, enter, enter + 1))
            assert 1 - some / whole >= ratio > 1 - more / whole
            assert got == Before(name, ratio)
            continue
        recipe, score = got
        assert score in SCORES
        saved = SMALL.visual_reduction(recipe.deletions(TOKENS, SMALL.layers), TOKENS)
        assert ratio <= saved == pytest.approx(recipe.achieved), name
        if name != "vtw":  # which has only its layer to choose
            assert any(less < ratio for less in one_more(recipe, SMALL, TOKENS)), name
            assert saved - ratio < 1 / TOKENS


def test_our_schedule_with_every_score(stats: AttentionStats) -> None:
    made = recipes(stats, ["fitprune", "cross", "self", "last", "random"], ["60", 0.3])
    for (name, ratio), got in made.items():
        assert got == (fit(stats, None, ratio), name)


def test_fastv_is_one_step_after_its_second_layer() -> None:
    recipe = fastv(VICUNA_7B, 576, 0.4)
    gone = recipe.deletions(576)
    assert [layer for layer, count in enumerate(gone) if count] == [1]  # K = 2
    assert gone == Recipe.step(layer=1, keep=(576 - gone[1]) / 576).deletions(576, 32)
    half = VICUNA_7B.visual_reduction(Recipe.step(layer=1, keep=0.5).deletions(576, 32), 576)
    assert fastv(VICUNA_7B, 576, half).deletions(576)[1] == 288  # the paper's R = 50%
    assert METHODS["fastv"].score == "last"


def test_pyramiddrop_keeps_the_papers_tokens_at_its_factor() -> None:
    papers = [576] * 7 + [288] * 8 + [144] * 8 + [72] * 9  # layers 8, 16, 24 of 32, λ = 0.5
    saved = VICUNA_7B.visual_reduction_of_alive(papers, 576)
    assert pyramiddrop(VICUNA_7B, 576, saved).alive(576) == papers
    assert METHODS["pyramiddrop"].score == "last"


@given(ratio=st.floats(0.05, 0.6), tokens=st.integers(100, 2000))
@settings(max_examples=30, deadline=None)
def test_pyramiddrop_has_one_factor(ratio: float, tokens: int) -> None:
    alive = [tokens, *pyramiddrop(VICUNA_7B, tokens, ratio).alive(tokens)]
    kept = [alive[0], alive[8], alive[16], alive[24]]
    factor = (kept[3] / kept[0]) ** (1 / 3)
    assert all(kept[i] == pytest.approx(tokens * factor**i, abs=3) for i in range(4))
    assert len(set(alive)) <= 4


@given(ratio=st.floats(0.05, 0.9), tokens=st.integers(100, 2000))
@settings(max_examples=30, deadline=None)
def test_uniform_takes_the_same_share_everywhere(ratio: float, tokens: int) -> None:
    alive = [tokens, *uniform(VICUNA_7B, tokens, ratio).alive(tokens)]
    share = (alive[16] / alive[0]) ** (1 / 16)
    assert all(count == pytest.approx(tokens * share**layer, abs=4 + 0.04 * count) for layer, count in enumerate(alive))


@given(ratio=st.floats(0.02, 0.95))
@settings(max_examples=30, deadline=None)
def test_vtw_keeps_nothing_from_the_last_layer_that_serves(ratio: float) -> None:
    gone = vtw(VICUNA_7B, 576, ratio).deletions(576, 32)
    (layer,) = [layer for layer, count in enumerate(gone) if count]
    assert gone[layer] == 576
    assert VICUNA_7B.visual_reduction(gone, 576) >= ratio
    later = [0] * (layer + 1) + [576] + [0] * (30 - layer)
    assert layer == 31 or VICUNA_7B.visual_reduction(later, 576) < ratio


def test_the_ratio_holds_for_pictures_of_another_size() -> None:
    for schedule in (fastv, pyramiddrop, uniform):
        recipe = schedule(VICUNA_7B, 576, 0.5)
        for tokens in (300, 1440, 2880):
            gone = recipe.deletions(tokens)
            assert [bool(count) for count in gone].count(True) <= [bool(count) for count in recipe.counts].count(True)
            assert 0.5 <= VICUNA_7B.visual_reduction(gone, tokens) < 0.5 + 2 / tokens


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "vtw"])
def test_what_cannot_be_met_says_what_can(stats: AttentionStats, name: str) -> None:
    error = recipes(stats, [name], [0.97])[name, 0.97]
    assert isinstance(error, FitPruneError)
    assert str(error).startswith(f"{name}: a reduction ratio of 0.97 cannot be reached")
    most = float(str(error).rsplit(" ", 1)[1])
    (met,) = recipes(stats, [name], [most]).values()
    assert not isinstance(met, FitPruneError)
    (more,) = recipes(stats, [name], [most + 0.001]).values()
    assert isinstance(more, FitPruneError)


def test_one_ratio_out_of_reach_leaves_the_others(stats: AttentionStats) -> None:
    made = recipes(stats, ["fitprune", "cross"], [0.5, 0.999])
    assert made["cross", 0.5] == (fit(stats, None, 0.5), "cross")
    for name in ("fitprune", "cross"):
        assert str(made[name, 0.999]).startswith(f"{name}: a reduction ratio of 0.999 cannot be reached")


@pytest.mark.parametrize(("schedule", "layers"), [(fastv, 1), (pyramiddrop, 3)])
def test_too_few_layers(schedule: Schedule, layers: int) -> None:
    with pytest.raises(FitPruneError, match=f"of {layers} layers is too shallow"):
        schedule(replace(SMALL, layers=layers), TOKENS, 0.3)
    enough = schedule(replace(SMALL, layers=layers + 1), TOKENS, 0.1)
    assert sum(enough.deletions(TOKENS)) > 0


@pytest.mark.parametrize("name", ["fitprune", "last"])
def test_a_fit_on_fewer_samples_or_by_another_criterion_is_a_method(name: str) -> None:
    cross, intra = torch.rand(2, 10, 1, TOKENS, generator=torch.Generator().manual_seed(1))
    power = torch.linspace(0.1, 2, SMALL.layers)[:, None]  # fewer and fewer tokens are looked at
    cross, intra = cross.pow(4 * power), intra.pow(power)
    many = AttentionStats(cross, intra, torch.full((10,), TOKENS), torch.full((10,), 20), cost=SMALL)
    names = [name, f"{name} samples=4", f"{name} criterion=cross", f"{name} criterion=self samples=1"]
    made = recipes(many, names, [0.5])
    assert made[names[0], 0.5] == (fit(many, None, 0.5), METHODS[name].score)
    assert made[names[1], 0.5] == (fit(many.rows([0, 2, 5, 7]), None, 0.5), METHODS[name].score)  # evenly spaced
    assert made[names[2], 0.5] == (fit(many, None, 0.5, "cross"), METHODS[name].score)
    assert made[names[3], 0.5] == (fit(many.subset(1), None, 0.5, "self"), METHODS[name].score)
    assert len({one for one in made.values() if isinstance(one, tuple)}) == len(names)
    with pytest.raises(FitPruneError, match="there are 10 samples, not 11"):
        recipes(many, ["fitprune samples=11"], [0.5])


def test_samples_are_spaced_as_calibration_questions_are(stats: AttentionStats) -> None:
    many = AttentionStats(
        torch.arange(128.0)[:, None, None].expand(128, 1, 2), torch.ones(128, 1, 2), torch.full((128,), 2), torch.full((128,), 20)
    )
    everything = [index * 300 // 128 for index in range(128)]  # 128 of 300 questions
    for count in (1, 4, 16, 64):
        rows = spaced(many, count).cross[:, 0, 0].int().tolist()
        assert [everything[row] for row in rows] == [index * 300 // count for index in range(count)]
    assert spaced(many, None) is many


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fitprune samples=0", "samples=0 says nothing"),
        ("fitprune samples=x", "give samples=NUMBER or criterion="),
        ("fitprune criterion=either", "both, cross, self, product"),
        ("fitprune twice", "twice says nothing"),
        ("spread absorb=1.5", "absorb=1.5 says nothing"),
        ("divprune absorb=0.8", "leave out absorb=0.8"),
        ("fastv samples=4", "the schedule of fastv is not fitted: leave out samples=4"),
        ("", "unknown method ''"),
        ("fastv score=lost", "unknown score 'lost'"),
        ("uniform theta=1", "fitprune has no settings"),
        ("spread theta=-1", "theta must be a number"),
        ("divprune score=spread", "divprune has neither a schedule nor a score: leave out score=spread"),
        ("fastv score=divprune", "unknown score 'divprune'"),
    ],
)
def test_what_cannot_be_said_of_a_schedule(name: str, said: str) -> None:
    with pytest.raises(FitPruneError, match=said):
        find(name)


def test_any_schedule_with_any_score(stats: AttentionStats) -> None:
    """Our ranking on the schedules of others: the control that says which of the two does the work."""
    names = ["fastv score=spread", "uniform score=spread theta=0.5", "pyramiddrop score=spread-last", "spread theta=1"]
    scores = ["spread", "spread theta=0.5", "spread-last", "spread theta=1"]
    made = recipes(stats, [*names, *INSIDE], [0.5])
    for name, score in zip(names, scores, strict=True):
        assert made[name, 0.5] == (made[name.split()[0], 0.5][0], score)  # type: ignore[index]


def test_survivors_of_any_method_may_absorb(stats: AttentionStats) -> None:
    for name in ("spread", "fastv score=spread"):
        (plain, _), (more, score) = (recipes(stats, [one], [0.5])[one, 0.5] for one in (name, f"{name} absorb=0.8"))  # type: ignore[misc]
        assert (plain.counts, score) == (more.counts, "spread")
        assert (plain.absorb, more.absorb) == (None, 0.8)


def test_too_much_before_the_decoder_says_what_it_can(stats: AttentionStats) -> None:
    for (name, _), error in recipes(stats, WAYS, [0.999]).items():
        assert isinstance(error, FitPruneError)
        assert str(error).startswith(f"{name}: a reduction ratio of 0.999 cannot be reached with {TOKENS} visual tokens: ask for at most")


def test_names_and_ratios(stats: AttentionStats) -> None:
    assert set(CONTROLS) <= set(METHODS)
    assert set(METHODS) == {*INSIDE, *WAYS}
    with pytest.raises(FitPruneError, match="unknown method 'fast'"):
        find("fast")
    with pytest.raises(FitPruneError, match="above 0"):
        recipes(stats, ["vtw"], [0])
