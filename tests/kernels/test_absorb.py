"""What survivors take over, against the same token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.kernels.absorb import absorb, reference
from fitprune.kernels.select import ALIVE, DELETED, compact


def drawn(seed, rows=2, m=20, images=2, heads=2, size=3):
    """Values of a few kinds with noise, sizes, images, and tokens that go, as many in each row."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(5, heads, size, generator=generator)[torch.randint(0, 5, (rows, m), generator=generator)]
    value = (kinds + 0.1 * torch.randn(rows, m, heads, size, generator=generator)).transpose(1, 2)
    group = torch.randint(-1, images + 1, (rows, m), generator=generator).sort(1).values
    group[:, -m // 2 :] = images  # enough tokens of one image to delete
    rank = torch.where(group > 0, torch.rand(rows, m, generator=generator), -1.0)
    most = min(8, int((group > 0).sum(1).min()) - 1)
    marked = torch.zeros(rows, m, dtype=torch.bool).scatter_(1, rank.topk(most).indices, True)
    sizes = torch.randint(1, 4, (rows, m), generator=generator).float()
    survivors = compact(torch.where(marked, DELETED, ALIVE), m - most)
    return value, sizes, group, marked, most, survivors


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([1, 200, 10**7]))
def test_absorbed_is_token_by_token(seed, least, block_bytes):
    value, sizes, group, marked, most, survivors = drawn(seed)
    states = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(seed))
    found = absorb(value, sizes, group, marked, most, survivors, least, block_bytes)
    weights, wanted = reference(value, sizes, group, marked, least)
    mean = found.mean(states)
    for row in range(2):
        for at, survivor in enumerate(survivors[row].tolist()):
            state = sum(weight * states[row, token] for token, weight in weights[row][survivor].items())
            torch.testing.assert_close(mean[row, at], state, rtol=0, atol=1e-5)
            assert float(found.size[row, at]) == pytest.approx(float(wanted[row, survivor]))
            if list(weights[row][survivor]) == [survivor]:
                assert torch.equal(mean[row, at], states[row, survivor])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_nothing_is_lost_where_everything_is_alike(seed):
    value, sizes, group, marked, most, survivors = drawn(seed)
    alike = torch.ones_like(value)
    found = absorb(alike, sizes, torch.where(group > 0, 1, group), marked, most, survivors, 0.5)
    torch.testing.assert_close(found.size.sum(1), sizes.sum(1))


def test_pad_slots_take_nothing_and_what_is_not_taken_may_be_no_number():
    value, sizes, group, marked, most, _ = drawn(3)
    marked[1, marked[1].nonzero()[-3:]] = False  # the second row deletes fewer, so the first carries pad slots
    survivors = compact(torch.where(marked, DELETED, ALIVE), 20 - most + 3)
    states = torch.ones(2, 20, 4)
    found = absorb(value, sizes, group, marked, most, survivors, 0.999999)
    taken = found.parts.sum(1) > 0
    states[~taken.new_zeros(2, 20).scatter(1, found.gone, taken) & marked] = torch.nan
    slots = marked.gather(1, survivors)
    assert slots.any()
    assert not found.parts[slots].any()
    assert not found.mean(states)[~slots].isnan().any()


def test_whole_numbers_are_taken_from_the_survivors():
    value, sizes, group, marked, most, survivors = drawn(5)
    kinds = torch.arange(40).view(2, 20)
    assert torch.equal(absorb(value, sizes, group, marked, most, survivors, 0.1).mean(kinds), kinds.gather(1, survivors))
