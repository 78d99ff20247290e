"""The cost model against the authors' formula and figures, and its laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen3Config

from fitprune.cost import VICUNA_7B, CostModel, alive_after
from fitprune.errors import FitPruneError
from fitprune.recipe import Recipe

SMALL = CostModel(layers=4, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16, vocab=100)


@st.composite
def schedules(draw, layers=4):
    n = draw(st.integers(0, 700))
    deletions = []
    for _ in range(layers):
        deletions.append(draw(st.integers(0, n - sum(deletions))))
    return n, deletions


def test_dense_total_is_the_authors():
    assert sum(VICUNA_7B.visual_macs([576] * 32, 576)) == 3817152184320


@given(schedules(32))
def test_visual_macs_are_the_authors_formula(case):
    n, deletions = case
    d, f, t, used = 4096, 11008, n, 0
    for gone in deletions:
        used += 3 * t * d**2 + 2 * t**2 * d
        t -= gone
        used += t * d**2 + 3 * f * d * t
    assert sum(VICUNA_7B.visual_macs(alive_after(deletions, n), n)) == used


@pytest.mark.parametrize(
    ("name", "ratio", "saved"),
    # facts/algorithm.md, percent with one decimal (some of them rounded twice, hence the tolerance)
    [("llava-v1.5-7b", r, s) for r, s in {
        10: 6.4, 20: 15.4, 30: 27.9, 40: 38.9, 50: 49.7, 55: 54.5, 60: 59.7, 70: 69.7, 80: 79.7, 90: 89.7
    }.items()] + [("llava-v1.6-vicuna-7b", 40, 40.3), ("llava-v1.6-vicuna-7b", 60, 60.3)],
)  # fmt: skip
def test_published_recipes_save_what_is_known(name, ratio, saved):
    recipe = Recipe.published(name, ratio)
    assert 100 * VICUNA_7B.visual_reduction(recipe.counts, recipe.visual_tokens) == pytest.approx(saved, abs=0.056)


def test_grouped_queries_and_gated_mlp_by_hand():
    # 3 tokens enter, 2 leave: q and k, v; scores and sum; then o and three MLP matrices
    attention = 3 * 64 * (64 + 32 + 32) + 2 * 3 * 3 * 64
    rest = 2 * 64 * 64 + 3 * 2 * 64 * 176
    assert SMALL.visual_macs([2, 0, 0, 0], 3)[0] == attention + rest
    assert SMALL.visual_macs([2, 0, 0, 0], 3)[2] == 0


def test_a_deleted_token_pays_for_its_layers_attention_and_cache_only():
    assert VICUNA_7B.attention_macs(1) + VICUNA_7B.rest_macs(1) == VICUNA_7B.visual_macs([1] + [0] * 31, 1)[0]
    assert SMALL.kv_bytes([5, 0, 2, 0], 10, 7) == [2 * 32 * 2 * count for count in (17, 12, 12, 10)]
    assert SMALL.kv_bytes([0] * 4, 10, 7, bytes_per_value=4) == [2 * 32 * 4 * 17] * 4


def test_the_two_conventions_differ():
    alive = [50, 20, 10, 10]
    assert SMALL.prefill_flops(alive, 100, 0) == [2 * macs for macs in SMALL.visual_macs(alive, 100)]
    assert SMALL.prefill_reduction(alive, 100, 60) < SMALL.visual_reduction([50, 30, 10, 0], 100)
    dense = 2 * sum(4 * [SMALL.attention_macs(160) + SMALL.rest_macs(160)]) + 2 * 64 * 100
    pruned = sum(SMALL.prefill_flops(alive, 100, 60)) + 2 * 64 * 100
    assert SMALL.speedup(alive, 100, 60) == pytest.approx(dense / pruned)
    assert SMALL.speedup([100] * 4, 100, 60) == 1


@given(schedules(), st.integers(0, 50))
def test_laws(case, text):
    n, deletions = case
    alive = alive_after(deletions, n)
    reduction = SMALL.visual_reduction(deletions, n)
    assert 0 <= reduction < 1
    assert (reduction > 0) == (sum(deletions) > 0)
    assert SMALL.visual_reduction([0] * 4, n) == 0
    assert all(isinstance(macs, int) for macs in SMALL.visual_macs(alive, n))
    assert SMALL.speedup(alive, n, text) >= 1
    assert SMALL.visual_reduction_of_alive([float(a) for a in alive], n) == pytest.approx(reduction)


def test_from_config():
    llama = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=100
    )
    assert CostModel.from_config(llama) == SMALL
    assert CostModel.from_config(LlavaConfig(text_config=llama, vision_config=CLIPVisionConfig())) == SMALL
    wide = Qwen3Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    assert CostModel.from_config(wide).head_dim == 32
    with pytest.raises(FitPruneError, match="new_family"):
        CostModel.from_config(object())


def test_dict_round_trip_and_validation():
    assert CostModel.from_dict(SMALL.to_dict()) == SMALL
    for bad in ({}, {**SMALL.to_dict(), "width": 3}, {**SMALL.to_dict(), "heads": 0}, {**SMALL.to_dict(), "hidden": 6.5}):
        with pytest.raises(FitPruneError, match="cost model"):
            CostModel.from_dict(bad)


@pytest.mark.parametrize("alive", [[5, 5, 5], [5, 6, 6, 6], [11, 1, 1, 1], [5, 3, 1, -1]])
def test_refuses_impossible_curves(alive):
    with pytest.raises(FitPruneError, match=r"layers|alive"):
        SMALL.visual_macs(alive, 10)
