"""Which tokens go: laws of the sorts, against the obvious."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune.kernels.select import ALIVE, DELETED, PADDING, compact, lowest, take


@st.composite
def scored(draw):
    rows, n, images = draw(st.integers(1, 4)), draw(st.integers(1, 25)), draw(st.integers(0, 3))
    score = [[draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5])) for _ in range(n)] for _ in range(rows)]  # many ties
    group = [[draw(st.integers(-1, images)) for _ in range(n)] for _ in range(rows)]
    counts = []
    for row in group:
        here = draw(st.integers(0, images))
        counts.append([draw(st.integers(0, row.count(image))) for image in range(1, here + 1)])
    return score, group, counts


@settings(deadline=None)
@given(scored())
def test_lowest_is_sorting_by_score_then_position(case):
    score, group, counts = case
    marked = lowest(torch.tensor(score), torch.tensor(group), counts)
    for row, wanted in enumerate(counts):
        chosen = set()
        for image, count in enumerate(wanted, 1):
            members = [k for k, owner in enumerate(group[row]) if owner == image]
            chosen |= set(sorted(members, key=lambda k: (score[row][k], k))[:count])
        assert set(marked[row].nonzero().flatten().tolist()) == chosen


def test_lowest_never_touches_text_whatever_a_score_returns():
    """A score of one's own may give infinities or NaN; those tokens go last, but text never goes."""
    for strange in (float("inf"), float("nan"), float("-inf")):
        score = torch.tensor([[0.0, strange, 1.0, strange, 0.0]])
        group = torch.tensor([[-1, 1, 1, 1, -1]])
        marked = lowest(score, group, [[2]])
        assert marked.sum() == 2
        assert not marked[group == -1].any()
        if strange != float("-inf"):
            assert marked[0, 2]


@settings(deadline=None)
@given(st.data())
def test_compact_keeps_all_alive_then_padding_then_deleted(data):
    rows, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    kinds = st.sampled_from([ALIVE, PADDING, DELETED])
    status = [[data.draw(kinds) for _ in range(n)] for _ in range(rows)]
    length = data.draw(st.integers(max(row.count(ALIVE) for row in status), n))
    kept = compact(torch.tensor(status), length).tolist()
    for row, columns in zip(status, kept, strict=True):
        assert columns == sorted(set(columns))
        assert len(columns) == length
        order = [k for k in range(n) if row[k] == ALIVE]
        for kind in (PADDING, DELETED):
            order += [k for k in reversed(range(n)) if row[k] == kind]
        assert set(columns) == set(order[:length])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 6))
def test_take_picks_columns_per_row(rows, other, m):
    generator = torch.Generator().manual_seed(rows * 100 + other * 10 + m)
    index = torch.randint(0, 5, (rows, m), generator=generator)
    tensor = torch.randn(rows, other, 5, 2, generator=generator)
    out = take(tensor, index, 2)
    assert out.shape == (rows, other, m, 2)
    for row in range(rows):
        assert torch.equal(out[row], tensor[row][:, index[row]])
    turned = tensor.transpose(1, 2)  # [rows, 5, other, 2], not in one piece
    for source in (turned, turned.contiguous()):
        assert torch.equal(take(source, index, 1), out.transpose(1, 2))
    shared = take(tensor[:1], index, 2)  # one row for all
    for row in range(rows):
        assert torch.equal(shared[row], tensor[0][:, index[row]])
