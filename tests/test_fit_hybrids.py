"""Models in which only some layers can delete: hybrids with linear attention, keys that later layers share.

pytest tests/test_fit_hybrids.py
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import vlms
from hypothesis import given, settings
from hypothesis import strategies as st

import fitprune
from fitprune import AttentionStats, CostModel, FitPruneError, Recipe
from fitprune.cost import VICUNA_7B, LayerCost
from fitprune.decoder.attach import find_decoder
from fitprune.decoder.upstream import forbidden_layers
from fitprune.fit import CRITERIA, alive_fractions, alive_reference, fit, fit_all, judged_by
from fitprune.studies.conventions import CONVENTIONS
from fitprune.studies.methods import METHODS, fastv, pyramiddrop, recipes, uniform, vtw

FAMILIES = vlms.available()
FULL = LayerCost.llama(64, 176, 4, 2, 16)
LINEAR = LayerCost(entering=30000, pair=0, leaving=40000, cached=0, state=900, deletes=False)
HYBRID = CostModel.of_layers([FULL if layer % 4 == 3 else LINEAR for layer in range(12)], 64, vocab=100)  # as Qwen3.5: 3, 7, 11


def made_up(cost: CostModel = HYBRID, samples: int = 5, visual: int = 60, seed: int = 0, counts: list[int] | None = None) -> AttentionStats:
    """Log-normal attention where there is any."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(2, samples, 1, visual, generator=generator)
    own = torch.randn(2, samples, cost.layers, visual, generator=generator)
    tokens = torch.full((samples,), visual) if counts is None else torch.tensor(counts)
    real = torch.arange(visual) < tokens[:, None, None]
    seen = torch.tensor([layer.pair > 0 for layer in cost.per_layer])[:, None]
    cross, intra = (shared + own).mul(1.5).exp() * real * seen
    return AttentionStats(cross, intra, tokens, torch.full((samples,), 30), cost=cost)


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_unlike_layers_are_added_up_each_by_its_own_price() -> None:
    alive = [60, 60, 60, 20, 20, 20, 20, 5, 5, 5, 5, 5]
    entering = [60, *alive]
    wanted = [
        one.entering * before + one.pair * before**2 + one.leaving * after
        for one, before, after in zip(HYBRID.each, entering, alive, strict=False)
    ]
    assert HYBRID.visual_macs(alive, 60) == wanted
    assert HYBRID.prefill_flops(alive, 60, 0) == [2 * macs for macs in wanted]
    assert HYBRID.kv_bytes([0] * 3 + [40] + [0] * 8, 60, 7)[2:5] == [2 * 900, 2 * 64 * 67, 2 * 900]
    assert HYBRID.dense_macs(60) == sum(HYBRID.visual_macs([60] * 12, 60))
    with pytest.raises(FitPruneError, match="say which layer"):
        HYBRID.attention_macs(5)


def test_unlike_layers_come_back_from_json() -> None:
    data = json.loads(json.dumps(HYBRID.to_dict()))
    assert CostModel.from_dict(data) == HYBRID
    assert len(data["kinds"]) == 2
    assert data["kind_of"] == [1 if layer % 4 == 3 else 0 for layer in range(12)]
    kind = data["kinds"][0]
    for wrong in (
        {**data, "kinds": [kind]},
        {**data, "kind_of": [0]},
        {**data, "kind_of": [0.5] * 12},
        {**data, "kind_of": None},
        {**data, "heads": 4},
        {**data, "kinds": [{**kind, "wide": 1}, kind]},
        {**data, "kinds": [{**kind, "pair": -1}, kind]},
        {**data, "kinds": [{**kind, "deletes": 1}, kind]},
        {**data, "kinds": [{**kind, "state": True}, kind]},
        {**VICUNA_7B.to_dict(), "each": []},
    ):
        with pytest.raises(FitPruneError, match="cost model"):
            CostModel.from_dict(wrong)


@pytest.mark.parametrize("wrong", [{"heads": 1}, {"layers": 3}, {"hidden": 0}, {"vocab": -1}])
def test_sizes_or_layers_not_both(wrong: dict[str, int]) -> None:
    with pytest.raises(FitPruneError, match="cost model: "):
        CostModel(**{"layers": 2, "hidden": 64, "each": (FULL, LINEAR), **wrong})


def test_an_old_cost_model_reads_as_ever() -> None:
    old = {"layers": 4, "hidden": 64, "intermediate": 176, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": 7}
    cost = CostModel.from_dict(old)
    assert cost.to_dict() == old
    assert list(cost.to_dict()) == list(old)
    assert cost.deletable == (0, 1, 2, 3)


def test_formulas_of_llama_shaped_layers_are_not_applied_to_others() -> None:
    dense = [60] * 12
    assert CONVENTIONS["FitPrune"].count(HYBRID, dense, 60, 0) == HYBRID.dense_macs(60)
    unseen = 3 * 2 * FULL.pair * 60**2
    counts = [CONVENTIONS[f"calflops, {kind} attention"].count(HYBRID, dense, 60, 0) for kind in ("eager", "sdpa")]
    assert counts[0] - counts[1] == unseen
    for name in ("FastV", "DivPrune"):
        with pytest.raises(FitPruneError, match="formulas are of Llama-shaped layers"):
            CONVENTIONS[name].count(HYBRID, dense, 60, 0)


# ---- fits ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.integers(1, 13), min_size=1, max_size=4), st.sets(st.integers(0, 3), min_size=1),
    st.sampled_from(CRITERIA), st.floats(0, 1) | st.just(1.0),
)  # fmt: skip
def test_the_fast_rule_equals_the_obvious_one(seed: int, counts: list[int], layers: set[int], criterion: str, alpha: float) -> None:
    cost = CostModel(4, 64, 176, 4, 2, 16)
    stats = dataclasses.replace(made_up(cost, len(counts), 13, seed, counts), deletable=tuple(sorted(layers)))
    fast = alive_fractions(judged_by(stats, criterion))(alpha) * stats.visual_tokens[:, None]
    slow = [
        alive_reference(stats.cross[at, :, :n].tolist(), stats.intra[at, :, :n].tolist(), alpha, criterion, layers)
        for at, n in enumerate(stats.visual_tokens.tolist())
    ]
    assert fast.round().int().tolist() == slow


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.01, 0.6), st.integers(1, 90))
def test_the_budget_is_met_where_tokens_can_be_deleted(seed: int, ratio: float, tokens: int) -> None:
    recipe = fit(made_up(seed=seed), None, ratio)
    assert recipe.achieved == HYBRID.visual_reduction(recipe.counts, 60) >= ratio
    for n in (60, tokens):
        gone = recipe.deletions(n)
        assert all(not count for layer, count in enumerate(gone) if layer not in (3, 7, 11))
        assert HYBRID.visual_reduction(gone, n) >= ratio
        alive = recipe.alive(n)
        allowed = [3, 7, 11] if n == 60 else steps(recipe)  # at another count it deletes in the same layers
        for step, end in pairwise([*allowed, 12]):  # one more token from a step to the next would miss the budget
            more = [left + (step <= layer < end) for layer, left in enumerate(alive)]
            if more[step] <= alive[step - 1]:
                assert HYBRID.visual_reduction_of_alive(more, n) < ratio


def test_the_highest_ratio_is_named_and_can_be_had() -> None:
    stats = made_up()
    with pytest.raises(
        FitPruneError, match=r"cannot be reached with 60 visual tokens, as only layers 3, 7, 11 can delete: ask for"
    ) as error:
        fit(stats, None, 0.95)
    highest = float(str(error.value).rpartition(" ")[2])
    most = HYBRID.visual_reduction([0] * 3 + [60] + [0] * 8, 60)
    assert highest == pytest.approx(most, abs=1e-4)
    assert fit(stats, None, highest).achieved >= highest


def test_what_the_statistics_allow_and_what_the_model_allows_both_hold() -> None:
    fewer = fit(dataclasses.replace(made_up(), deletable=(7, 11)), None, 0.1)
    assert set(steps(fewer)) <= {7, 11}
    fewer.check_model(HYBRID)  # the same model, in which more could delete
    plain = CostModel(12, 64, 176, 4, 2, 16)  # knows of no layers; the statistics do
    recipe = fit(dataclasses.replace(made_up(), cost=None, deletable=(3, 7, 11)), plain, 0.5)
    assert {at for at, count in enumerate(recipe.counts) if count} <= {3, 7, 11}
    assert recipe.cost is not None
    assert recipe.cost.deletable == (3, 7, 11)
    with pytest.raises(FitPruneError, match="no layer of this model can delete"):
        fit(dataclasses.replace(made_up(), deletable=(2,)), None, 0.1)


def test_merged_steps_stay_where_they_may_be() -> None:
    counts = [0, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0, 6]
    merged = Recipe.from_deletions(counts, visual_tokens=60, cost=HYBRID).merge_steps(20)
    assert steps(merged) == [3, 7]
    assert merged.achieved is not None
    assert merged.achieved >= HYBRID.visual_reduction(counts, 60)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_statistics_and_recipes_come_back(tmp_path: Path) -> None:
    stats = made_up()
    stats.save(tmp_path / "stats")
    read = AttentionStats.load(tmp_path / "stats")
    assert (read.cost, read.deletable) == (HYBRID, (3, 7, 11))
    recipe = fit(read, None, 0.5)
    recipe.save(tmp_path / "recipe")
    assert vars(Recipe.load(tmp_path / "recipe")) == vars(recipe)
    whole = AttentionStats.concatenate([read, read])
    assert whole.deletable == whole.subset(3).deletable == (3, 7, 11)
    with pytest.raises(FitPruneError, match="several models"):
        AttentionStats.concatenate([read, dataclasses.replace(read, deletable=(3, 7))])


def test_statistics_of_a_plain_model_say_nothing_new() -> None:
    stats = made_up(CostModel(4, 64, 176, 4, 2, 16))
    assert stats.deletable == (0, 1, 2, 3)
    content = stats.to_bytes()
    assert b"deletable" not in content
    assert AttentionStats.from_bytes(content).deletable == (0, 1, 2, 3)


@pytest.mark.parametrize("wrong", [(1, 1), (2, 1), (0, 4), (-1,)])
def test_layers_that_there_are_not(wrong: tuple[int, ...]) -> None:
    with pytest.raises(FitPruneError, match="deletable must be layers of 4"):
        dataclasses.replace(made_up(CostModel(4, 64, 176, 4, 2, 16)), deletable=wrong)


def test_a_recipe_does_not_delete_where_its_cost_model_cannot() -> None:
    with pytest.raises(FitPruneError, match="deletes in layer 2, but its cost model can only in 3, 7, 11"):
        Recipe.from_deletions([0, 0, 5] + [0] * 9, visual_tokens=60, cost=HYBRID)
    with pytest.raises(FitPruneError, match="deletes in layer 1 but the model can only in layers 3, 7, 11: fit one"):
        Recipe.step(layer=1, keep=0.5).check_model(HYBRID)
    Recipe.step(layer=3, keep=0.5).check_model(HYBRID)
    published = Recipe.published("llava-v1.5-7b", 0.6)
    published.check_model(VICUNA_7B)
    with pytest.raises(FitPruneError, match="but the model can only in layers 3, 7"):
        published.check_model(VICUNA_7B.deleting_in(range(3, 32, 4)))


def test_a_recipe_of_another_hybrid_is_told_by_its_layers() -> None:
    recipe = fit(made_up(), None, 0.5)
    recipe.check_model(dataclasses.replace(HYBRID, vocab=7))
    cached = [dataclasses.replace(one, cached=one.cached * 2) for one in HYBRID.each]  # as another version of transformers keeps it
    recipe.check_model(CostModel.of_layers(cached, 64))
    wider = [dataclasses.replace(one, leaving=one.leaving + 1) for one in HYBRID.each]
    with pytest.raises(FitPruneError, match=r"other sizes \(layer 0 costs 30000 \+ 40000 a token, 0 a pair and is 30000 \+ 40001"):
        recipe.check_model(CostModel.of_layers(wider, 64))
    with pytest.raises(FitPruneError, match="hidden 64 is 32"):
        recipe.check_model(CostModel.of_layers(HYBRID.each, 32))


# ---- other methods ---------------------------------------------------------------------------------------------------


def steps(recipe: Recipe) -> list[int]:
    return [layer for layer, count in enumerate(recipe.counts) if count]


def test_methods_delete_where_they_can() -> None:
    assert steps(fastv(HYBRID, 60, 0.3)) == [3]
    assert steps(uniform(HYBRID, 60, 0.4)) == [3, 7, 11]
    assert steps(vtw(HYBRID, 60, 0.3)) == [7]
    deep = CostModel.of_layers(HYBRID.each[:4] * 8, 64)  # 32 layers: stages end in 7, 15 and 23, which are full
    assert steps(pyramiddrop(deep, 60, 0.4)) == [7, 15, 23]
    for solved in (fastv(HYBRID, 60, 0.3), uniform(HYBRID, 60, 0.4), vtw(HYBRID, 60, 0.3), pyramiddrop(deep, 60, 0.4)):
        assert solved.achieved is not None
        assert solved.achieved >= (solved.reduction_ratio or 1)
    with pytest.raises(FitPruneError, match="a model of 12 layers, of which 3 can delete, is too shallow"):
        pyramiddrop(HYBRID, 60, 0.3)  # its first stage ends before the first of them
    with pytest.raises(FitPruneError, match="as only layers 3, 7, 11 can delete"):
        vtw(HYBRID, 60, 0.9)


def test_a_sweep_of_all_methods_names_those_that_do_not_fit() -> None:
    made = recipes(made_up(), METHODS, [0.3])
    refused = {name for (name, _), one in made.items() if isinstance(one, FitPruneError)}
    assert refused == {"pyramiddrop"}
    for one in made.values():
        if isinstance(one, tuple):
            assert set(steps(one[0])) <= {3, 7, 11}


# ---- models ----------------------------------------------------------------------------------------------------------


def asked(name: str) -> tuple[Any, Any]:
    if name not in FAMILIES:
        pytest.skip(f"no {name} in this transformers")
    return FAMILIES[name].model(), FAMILIES[name].inputs([[3, "image", 2, "image", 4], [2, "image", 3]], padding="left")


@pytest.mark.parametrize("name", map(vlms.param, FAMILIES))
def test_cost_and_decoder_agree_on_the_layers_that_delete(name: str) -> None:
    if name == "Ernie4_5_VLMoe":
        pytest.skip("its costs are refused by name (tests/decoder/test_vlm_rules.py)")
    decoder = find_decoder(FAMILIES[name].model())
    cost = CostModel.of(decoder)
    assert set(range(cost.layers)) - set(cost.deletable) == set(forbidden_layers(decoder))


@pytest.mark.parametrize(("name", "layers"), [("Qwen3_5", {1, 3}), ("Gemma4", {0, 1, 2, 3})])
def test_a_hybrid_is_observed_fitted_and_pruned(name: str, layers: set[int], tmp_path: Path) -> None:
    model, inputs = asked(name)
    stats = fitprune.observe(model, [inputs.call], progress=False)
    assert set(stats.deletable) == layers
    for layer in range(4):
        assert bool(stats.intra[:, layer].any()) == bool(stats.cross[:, layer].any()) == (layer in layers)
    stats.save(tmp_path / "stats")
    for ratio, recipe in fit_all(AttentionStats.load(tmp_path / "stats"), None, [0.2, 0.5]).items():
        assert set(steps(recipe)) <= layers
        assert recipe.achieved is not None
        assert recipe.achieved >= ratio
        with torch.no_grad(), fitprune.prune(model, recipe) as trace:
            model(**inputs.call)
        for row, visuals in enumerate(inputs.visuals):
            left = sum(recipe.alive(len(one.tokens))[-1] for one in visuals)
            assert len(trace.visual[-1][row]) == left < sum(len(one.tokens) for one in visuals)


def test_statistics_do_not_depend_on_the_batch() -> None:
    model, inputs = asked("Qwen3_5")
    together = fitprune.observe(model, [inputs.call], progress=False)
    alone = fitprune.observe(model, [FAMILIES["Qwen3_5"].inputs([[2, "image", 3]]).call], progress=False)
    count = int(alone.visual_tokens[0])
    torch.testing.assert_close(together.cross[2, :, :count], alone.cross[0, :, :count], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.intra[2, :, :count], alone.intra[0, :, :count], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "kinds"), [("Qwen3Next", "linear_attention"), ("Lfm2", "conv"), ("Qwen3_5Text", "linear_attention")])
def test_a_bare_hybrid_decoder(name: str, kinds: str) -> None:
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"no {name} in this transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=99, hidden_size=64, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        layer_types=[kinds, "full_attention"] * 2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **({} if name == "Lfm2" else {"head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    mask = torch.zeros(2, 30, dtype=torch.bool)
    mask[:, 4:24] = True
    embeds = torch.randn(2, 30, 64)
    stats = fitprune.observe(model, [{"inputs_embeds": embeds, "visual_mask": mask}], progress=False)
    assert stats.deletable == (1, 3)
    assert not stats.intra[:, [0, 2]].any()
    recipe = fit(stats, None, 0.4)
    assert set(steps(recipe)) <= {1, 3}
    with torch.no_grad(), fitprune.prune(model, recipe, visual_mask=mask) as trace:
        hidden = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert [len(row) for row in trace.visual[-1]] == [recipe.alive(20)[-1]] * 2
    assert hidden.shape[1] == 10 + recipe.alive(20)[-1]


def test_shared_keys_leave_the_layers_before_them() -> None:
    model, inputs = asked("Gemma4SharedKeys")
    stats = fitprune.observe(model, [inputs.call], progress=False)
    assert stats.deletable == (0, 1)  # the last two of six layers read the keys of the third and fourth
    assert bool(stats.intra.any(-1).all())  # all layers have attention to look at
    assert set(steps(fit(stats, None, 0.5))) <= {0, 1}
    with pytest.raises(
        FitPruneError, match=r"0\.99 cannot be reached with 12 visual tokens, as only layers 0, 1 can delete: ask for at most 0\.\d+"
    ):
        fit(stats, None, 0.99)
