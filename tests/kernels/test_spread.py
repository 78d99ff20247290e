"""Unlikeness in blocks against the formula token by token, and the laws of the score that is made of it."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fitprune.kernels.select import lowest
from fitprune.kernels.spread import reference, unlikeness


def drawn(seed, rows=2, n=24, images=3, heads=2, size=5, offset=1.0, levels=None):
    """Values with a common part, relevance (of few levels, for ties), and which image each token belongs to."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, heads, n, size, generator=generator) + offset * torch.randn(size, generator=generator)
    relevance = torch.rand(rows, n, generator=generator)
    relevance = relevance if levels is None else (relevance * levels).floor() / levels
    group = torch.randint(-1, images + 1, (rows, n), generator=generator).sort(1).values
    return value, relevance, group


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([None, 3]), st.sampled_from([1, 500, 10**7]))
def test_blocks_are_the_formula(seed, theta, levels, block_bytes):
    value, relevance, group = drawn(seed, levels=levels, offset=3.0)
    score = relevance**theta * unlikeness(value, relevance, group, 3, block_bytes)
    torch.testing.assert_close(score * (group > 0), reference(value, relevance, group, theta), rtol=0, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-4, 1e4))
def test_heads_may_change_places_and_values_their_scale(seed, scale):
    value, relevance, group = drawn(seed)
    plain = unlikeness(value, relevance, group, 3)
    torch.testing.assert_close(unlikeness(value.flip(1), relevance, group, 3), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(unlikeness(value * scale, relevance, group, 3), plain, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_batch_is_its_rows_and_images_are_alone(seed):
    value, relevance, group = drawn(seed)
    whole = unlikeness(value, relevance, group, 3)
    for row in range(2):
        alone = unlikeness(value[row : row + 1], relevance[row : row + 1], group[row : row + 1], 3)
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-6)
        for image in (1, 2, 3):
            places = (group[row] == image).nonzero().flatten()
            if len(places):
                ones = torch.ones(1, len(places), dtype=torch.long)
                only = unlikeness(value[row : row + 1, :, places], relevance[row : row + 1, places], ones, 1)
                torch.testing.assert_close(only[0], whole[row, places], rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_two_equal_tokens_are_never_both_kept_before_an_unlike_one(seed, keep):
    """With θ = 0, where unlikeness alone counts."""
    value, relevance, group = drawn(seed, rows=1, n=16, images=1)
    group = torch.ones_like(group)
    generator = torch.Generator().manual_seed(seed)
    value = value[:, :, torch.randint(0, 6, (16,), generator=generator)]  # six kinds of token
    kinds = {tuple(one) for one in value[0].transpose(0, 1).flatten(1).tolist()}
    score = unlikeness(value, relevance, group, 1)
    kept = ~lowest(score, group, [[16 - keep]])[0]
    shown = {tuple(one) for one in value[0].transpose(0, 1).flatten(1)[kept].tolist()}
    assert len(shown) == min(keep, len(kinds))


def test_the_most_relevant_token_of_an_image_stays():
    for seed in range(20):
        value, relevance, group = drawn(seed)
        score = unlikeness(value, relevance, group, 3)
        for row in range(2):
            for image in group[row][group[row] > 0].unique():
                first = torch.where(group[row] == image, relevance[row], -1).argmax()
                assert score[row, first] == 1


def test_tokens_that_are_the_mean_are_each_others_likes():
    """Without their mean nothing is left of them: they count as alike, not as unlike."""
    value = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[None, None]
    score = unlikeness(value, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.ones(1, 4, dtype=torch.long), 1)[0]
    assert score[2] == pytest.approx(1, abs=1e-3)
    assert score[3] == pytest.approx(0, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_extremes_stay_numbers(seed):
    value, relevance, group = drawn(seed)
    assume((group > 0).any())
    for odd in (value * 0, value * 1e-20, value * 1e15, value.half().float()):
        score = unlikeness(odd, relevance, group, 3)
        assert score.isfinite().all()
        assert ((score >= 0) & (score <= 1)).all()
