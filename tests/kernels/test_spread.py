"""Unlikeness in blocks against the formula token by token, and the laws of the score that is made of it."""

from functools import partial

import pytest
import torch
from counted import peak_bytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fitprune.kernels.select import lowest
from fitprune.kernels.spread import HELD, reference, unlikeness


def drawn(seed, rows=2, n=24, images=3, heads=2, size=5, offset=1.0, levels=None):
    """Values with a common part, relevance (of few levels, for ties), and which image each token belongs to."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, heads, n, size, generator=generator) + offset * torch.randn(size, generator=generator)
    relevance = torch.rand(rows, n, generator=generator)
    relevance = relevance if levels is None else (relevance * levels).floor() / levels
    group = torch.randint(-1, images + 1, (rows, n), generator=generator).sort(1).values
    return value, relevance, group


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([None, 3]), st.sampled_from([1, 500, 3000, 10**7]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_blocks_are_the_formula(seed, theta, levels, block_bytes, dtype):
    value, relevance, group = drawn(seed, levels=levels, offset=3.0)
    value = value.to(dtype)
    score = relevance**theta * unlikeness(value, relevance, group, [24] * 3, block_bytes=block_bytes)
    torch.testing.assert_close(score * (group > 0), reference(value, relevance, group, theta), rtol=0, atol=2e-5)


def test_hundreds_of_tokens_are_the_formula():
    """Several blocks as they are by default; the formula on whole maps. Nearly equal vectors of bfloat16 around a large mean among them."""
    value, relevance, group = drawn(0, rows=2, n=400, images=2, heads=8, size=64, offset=20.0)
    value[:, :, 200:] = value[:, :, :200] + 0.1 * value[:, :, 200:]
    value, group = value.bfloat16(), group.clamp(min=1)
    found = unlikeness(value, relevance, group, [400, 400])
    vectors = value.transpose(1, 2).flatten(2).double()
    for row, image in ((0, 1), (0, 2), (1, 1), (1, 2)):
        mine = group[row] == image
        own, r = vectors[row, mine], relevance[row, mine]
        centred = own - own.mean(0)
        alike = torch.cosine_similarity(own[:, None], own[None], dim=2).add(1) / 2
        alike = alike * torch.cosine_similarity(centred[:, None], centred[None], dim=2).clamp(min=0)
        closest = alike.masked_fill(r[None] <= r[:, None], 0).amax(1)
        torch.testing.assert_close(found[row, mine].double(), 1 - closest, rtol=1e-4, atol=2e-6)


def test_sizes_are_limits_not_promises():
    """Rows may have fewer tokens of an image than another row has, and images may be missing."""
    value, relevance, group = drawn(1)
    most = [int((group == image).sum(1).max()) for image in (1, 2, 3)]
    torch.testing.assert_close(unlikeness(value, relevance, group, most), unlikeness(value, relevance, group, [24] * 3))
    assert (unlikeness(value, relevance, group, []) == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-4, 1e4))
def test_heads_may_change_places_and_values_their_scale(seed, scale):
    value, relevance, group = drawn(seed)
    plain = unlikeness(value, relevance, group, [24] * 3)
    torch.testing.assert_close(unlikeness(value.flip(1), relevance, group, [24] * 3), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(unlikeness(value * scale, relevance, group, [24] * 3), plain, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_a_batch_is_its_rows_and_images_are_alone(seed):
    value, relevance, group = drawn(seed)
    whole = unlikeness(value, relevance, group, [24] * 3)
    for row in range(2):
        alone = unlikeness(value[row : row + 1], relevance[row : row + 1], group[row : row + 1], [24] * 3)
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-6)
        for image in (1, 2, 3):
            places = (group[row] == image).nonzero().flatten()
            if len(places):
                ones = torch.ones(1, len(places), dtype=torch.long)
                only = unlikeness(value[row : row + 1, :, places], relevance[row : row + 1, places], ones, [len(places)])
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
    score = unlikeness(value, relevance, group, [16])
    kept = ~lowest(score, group, [[16 - keep]])[0]
    shown = {tuple(one) for one in value[0].transpose(0, 1).flatten(1)[kept].tolist()}
    assert len(shown) == min(keep, len(kinds))


def test_the_most_relevant_token_of_an_image_stays():
    for seed in range(20):
        value, relevance, group = drawn(seed)
        score = unlikeness(value, relevance, group, [24] * 3)
        for row in range(2):
            for image in group[row][group[row] > 0].unique():
                first = torch.where(group[row] == image, relevance[row], -1).argmax()
                assert score[row, first] == 1


def test_tokens_that_are_the_mean_are_each_others_likes():
    """Without their mean nothing is left of them: they count as alike, not as unlike."""
    value = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[None, None]
    score = unlikeness(value, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.ones(1, 4, dtype=torch.long), [4])[0]
    assert score[2] == pytest.approx(1, abs=1e-3)
    assert score[3] == pytest.approx(0, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_extremes_stay_numbers(seed):
    value, relevance, group = drawn(seed)
    assume((group > 0).any())
    for odd in (value * 0, value * 1e-20, value * 1e15, value.half().float()):
        score = unlikeness(odd, relevance, group, [24] * 3)
        assert score.isfinite().all()
        assert ((score >= 0) & (score <= 1)).all()


def test_a_batch_takes_as_much_memory_as_a_few_rows():
    """Rows of long images go a few at a time."""
    peaks = []
    for rows in (1, 2, 6):
        value, relevance, group = drawn(0, rows=rows, n=3000, images=1, heads=1, size=64)
        group = torch.ones_like(group)
        peaks.append(peak_bytes(partial(unlikeness, value, relevance, group, [3000])))
    assert peaks[1] < 2.1 * peaks[0]
    assert peaks[2] < 1.1 * peaks[1]


@pytest.mark.parametrize("n", [1500, 4000])
def test_what_is_held_is_bounded_however_long_the_image(n):
    value, relevance, group = drawn(0, rows=1, n=n, images=1, heads=1, size=8)
    group = torch.ones_like(group)
    few = n * 200  # a few numbers per token
    assert peak_bytes(lambda: unlikeness(value, relevance, group, [n])) < HELD + few + 2 * 4 * 128 * n
    assert n < 4000 or 4 * n * n / 2 > HELD + few + 2 * 4 * 128 * n
