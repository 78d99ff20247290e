"""`spread`: what it is made of against whole maps, and through `prune` against attention and values that transformers itself returns.

The products of values are in tests/kernels/test_spread.py.
"""

from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from counted import peak_bytes
from hypothesis import given, settings
from test_generate import pad
from test_prune import ROWS
from test_scores import cases, seen
from tiny import LAYERS, RECIPE, batch, embedded, prompt

import fitprune
from fitprune import Recipe
from fitprune.errors import FitPruneError
from fitprune.kernels.attended import FEW, Attended
from fitprune.kernels.reference import additive
from fitprune.kernels.select import lowest
from fitprune.kernels.spread import reference
from fitprune.scores import SCORES, find_score, last, spread, spread_last


@settings(max_examples=150, deadline=None)
@given(cases())
def test_others_are_an_average_over_those_that_see_a_token(attended):
    attended = replace(attended, logsumexp=None)  # which cases fill with what is no number
    key = attended.key.repeat_interleave(attended.query.shape[1] // attended.key.shape[1], dim=1)
    logits = (attended.query.float() @ key.transpose(-1, -2).float()) * attended.scaling
    hidden = additive(attended.mask, *logits.shape[2:], attended.query)
    strongest = (logits + hidden).softmax(-1).amax(1)[:, :, -attended.query.shape[2] :]  # [B, n, n]
    visible = (hidden[:, 0] > torch.finfo(torch.float32).min / 2).expand(len(strongest), -1, -1)[:, :, -attended.query.shape[2] :]
    group = attended.token_group
    for row, members in enumerate(group.tolist()):
        for at, image in enumerate(members):
            if image <= 0:
                continue
            alike = [q for q, other in enumerate(members) if other == image and q != at and visible[row, q, at]]
            paid = sum(float(strongest[row, q, at]) for q in alike)
            assert float(attended.others[row, at]) == pytest.approx((paid + FEW) / max(1, len(alike)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["spread", "spread-last"])
@pytest.mark.parametrize("theta", [0.0, 0.5])
def test_the_score_is_its_formula(name, theta):
    attended = seen([[-1, 1, 1, 1, -1, 2, 2, -1, -1], [-1, -1, 1, 1, 1, 1, -1, 0, 0]], past=2)
    relevance = last(attended) * (attended.others if name == "spread" else 1)
    wanted = reference(attended.value[:, :, 2:], relevance, attended.token_group, theta)
    score = find_score(f"{name} theta={theta}")(attended)
    visual = attended.token_group > 0
    torch.testing.assert_close(score[visual], wanted[visual], rtol=0, atol=1e-5)
    assert ("others" in vars(attended)) == (name == "spread")  # the cheaper one makes no causal map
    assert score.shape == attended.token_group.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("score", ["spread", "spread-last"])
def test_memory_beside_a_row_of_attention(score, dtype):
    """2928 tokens of LLaVA-NeXT in a 7B decoder: at most 35 MB more than `last`, where one map of all pairs in float32 has 34."""
    n, heads, size = 2928, 32, 128
    query, key, value = (torch.randn(1, heads, 8 + n, size, dtype=dtype) for _ in range(3))
    group = torch.full((1, 8 + n), -1)
    group[:, 4 : 4 + n] = 1
    logsumexp = torch.full((1, heads, 8 + n), 20.0)  # as the attention call hands it over

    def peak(name):
        seen = Attended(query, key, value, 0.1, None, group, 1, (4, 4 + n), layer=1, logsumexp=logsumexp, sizes=(n,))
        return peak_bytes(lambda: SCORES[name](seen))

    assert peak(score) < peak("last") + 35_000_000


def test_counting_who_sees_a_token_takes_no_map():
    n = 2000
    group = torch.ones(1, n, dtype=torch.long)
    mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    nothing = torch.zeros(1, 1, n, 1)
    for hidden in (None, mask):
        seen = Attended(nothing, nothing, nothing, 1.0, hidden, group, 1, (0, n), layer=0)
        assert seen._viewers[0].tolist() == [*range(n - 1, -1, -1)]
        assert peak_bytes(lambda seen=seen: seen._viewers) < n * n


def test_settings_are_read_and_refused_by_name():
    assert find_score("spread") is spread
    assert find_score("spread-last theta=1").keywords == {"theta": 1.0}
    for wrong, said in (
        ("spread theta=-1", "theta must be a number from 0"),
        ("spread theta=nan", "theta must be a number from 0"),
        ("spread theta=", "theta must be a number"),
        ("spread alpha=1", "takes theta="),
        ("last theta=1", "no settings"),
        ("spread theta=1 theta=0", "says nothing"),
        ("spreads", "unknown score"),
        ("", "unknown score"),
    ):
        with pytest.raises(FitPruneError, match=said):
            find_score(wrong)


def stepped(model, embeds, span, layer, keep, theta):
    """Which tokens a step leaves, from eager attention and the values that the model's own projection makes."""
    values, before = [], model.config._attn_implementation
    hook = model.model.layers[layer].self_attn.v_proj.register_forward_hook(lambda m, a, out: values.append(out))
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attention = model(inputs_embeds=embeds, output_attentions=True).attentions[layer][0]  # [H, S, S]
    finally:
        model.set_attn_implementation(before)
        hook.remove()
    first, end = span
    strongest = attention.amax(0)[first:end, first:end].double()  # [n, n]
    n = end - first
    received = strongest.tril(-1).sum(0) + FEW
    relevance = attention.mean(0)[-1, first:end].double() * received / torch.arange(n - 1, -1, -1).clamp(min=1)
    (value,) = values
    score = reference(value[:, None, first:end], relevance[None].float(), torch.ones(1, n, dtype=torch.long), theta)
    kept = ~lowest(score, torch.ones(1, n, dtype=torch.long), [[n - keep]])[0]
    return (kept.nonzero().flatten() + first).tolist()


@pytest.fixture
def llama():
    return tiny.llama()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("theta", [0.25, 0.0])
def test_a_step_keeps_what_the_models_own_attention_and_values_say(llama, implementation, theta):
    llama.set_attn_implementation(implementation)
    for seed in range(4):
        embeds, mask = embedded(26, (3, 19), seed=seed)
        recipe = Recipe.step(layer=1, keep=0.5)
        with torch.no_grad(), fitprune.prune(llama, recipe, visual_mask=mask, score=f"spread theta={theta}") as trace:
            llama(inputs_embeds=embeds)
        assert trace.visual[-1][0].tolist() == stepped(llama, embeds, (3, 19), 1, 8, theta)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("score", ["spread", "spread-last"])
def test_a_batch_is_pruned_as_its_rows(llava, side, score):
    rows = [*ROWS, prompt(2, "image", seed=6)]
    inputs = batch(rows, side)
    with torch.no_grad(), fitprune.prune(llava, RECIPE, score=score) as trace:
        llava(**inputs)
    together = [[layer[row] - pad(inputs, row) for row in range(len(rows))] for layer in trace.visual]
    for number, row in enumerate(rows):
        with torch.no_grad(), fitprune.prune(llava, RECIPE, score=score) as alone:
            llava(**batch([row]))
        assert [layer[number].tolist() for layer in together] == [layer[0].tolist() for layer in alone.visual] or not alone.visual
    assert len(trace) == LAYERS


@pytest.fixture
def llava():
    return tiny.llava()


def test_every_named_score_ranks_in_half_precision():
    attended = seen([[-1, 1, 1, 1, -1, 2, 2, -1, -1]])
    half = replace(attended, **{name: getattr(attended, name).bfloat16() for name in ("query", "key", "value")})
    for score in (*SCORES.values(), partial(spread_last, theta=1)):
        found = score(half).float()
        assert found.shape == half.token_group.shape
        assert found.isfinite().all()
