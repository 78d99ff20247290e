"""A frame's masks, rows and notes, against loops over single entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune import cache as kv
from fitprune.frame import Frame
from fitprune.select import ALIVE, DELETED, PADDING


@st.composite
def narrowed(draw):
    """A frame in the middle of a forward: some columns carried, some of them fillers, maybe a cache before it."""
    rows, length, past = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from([0, 0, 1, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    kept = draw(st.integers(1, length))
    frame = Frame([[] for _ in range(rows)], length, past, None, torch.device("cpu"), draw(st.booleans()))

    def some(total, count):
        return torch.stack([torch.randperm(total, generator=generator)[:count].sort().values for _ in range(rows)])

    if kept < length or draw(st.booleans()):
        frame.columns = some(length, kept)
        frame.status = torch.full((rows, kept), ALIVE)
        if draw(st.booleans()):
            frame.fillers = True
            strange = torch.rand(rows, kept, generator=generator) < 0.3
            strange[:, -1] = False  # the last token is alive
            frame.status[strange] = draw(st.sampled_from([PADDING, DELETED]))
    if past and draw(st.booleans()):
        count = draw(st.integers(1, past))
        valid = torch.rand(rows, count, generator=generator) < 0.7 if draw(st.booleans()) else None
        frame._held = (some(past, count), valid)
    total = past + length
    allowed = torch.ones(length, total, dtype=torch.bool).tril(past).expand(rows, -1, -1)
    real = torch.ones(rows, total, dtype=torch.bool)
    if draw(st.booleans()):
        real = torch.rand(rows, total, generator=generator) < 0.8
        allowed = allowed & real[:, None, :]
    return frame, allowed, real


def expected(frame, allowed):
    """allowed[row][query][key] among what the layer has, one entry at a time."""
    rows, length = allowed.shape[:2]
    own = [list(range(length))] * rows if frame.columns is None else frame.columns.tolist()
    held = [list(range(frame.past))] * rows if frame._held is None else frame._held[0].tolist()
    out = []
    for row in range(rows):
        status = frame.status[row].tolist() if frame.columns is not None and frame.fillers else [ALIVE] * len(own[row])
        valid = [True] * len(held[row])
        if frame._held is not None and frame._held[1] is not None:
            valid = frame._held[1][row].tolist()
        keys = [*held[row], *(frame.past + column for column in own[row])]
        ok = [*valid, *(kind == ALIVE for kind in status)]
        out.append([[bool(allowed[row, q, k]) and good for k, good in zip(keys, ok, strict=True)] for q in own[row]])
    return torch.tensor(out)


@settings(max_examples=200, deadline=None)
@given(narrowed(), st.sampled_from(["bool", "float", "half", "none"]))
def test_masks(case, kind):
    frame, allowed, real = case
    if frame.flash:
        padded = not real.all()
        mask = frame._mask(real if padded else None)
        wanted = expected(frame, real[:, None, :].expand_as(allowed))[:, 0]
        assert torch.equal(torch.ones_like(wanted) if mask is None else mask, wanted)
        return
    if kind == "none":  # transformers leaves the mask out where it is causal
        allowed = torch.ones_like(allowed[0]).tril(frame.past).expand_as(allowed)
        mask = frame._mask(None)
        wanted = expected(frame, allowed)[:, None]
        if mask is None:  # then causality alone must say the same: one query sees all, or queries are the keys
            queries, keys = wanted.shape[2:]
            assert queries in (1, keys)
            assert torch.equal(wanted, torch.ones_like(wanted).tril(keys - queries))
        else:
            assert torch.equal(mask.expand_as(wanted), wanted)
        return
    full = allowed[:, None]
    if kind != "bool":
        dtype = torch.float32 if kind == "float" else torch.float16
        full = torch.zeros(full.shape, dtype=dtype).masked_fill(~full, torch.finfo(dtype).min)
    mask = frame._mask(full)
    assert mask.dtype == full.dtype
    seen = mask if kind == "bool" else mask == 0
    assert torch.equal(seen, expected(frame, allowed)[:, None])


def test_rows_of_embeddings_of_any_layout():
    frame = Frame([[], []], 6, 0, None, torch.device("cpu"), False)
    frame.columns = torch.tensor([[0, 2, 5], [1, 2, 3]])
    for leading in ((2,), (1,), (3, 2), (3, 1)):  # M-RoPE has three sections in front
        tensor = torch.randn(*leading, 6, 4)
        out = frame._alive(tensor)
        for row, columns in enumerate(frame.columns):
            source = tensor.expand(*leading[:-1], 2, 6, 4).select(-3, row)
            assert torch.equal(out.select(-3, row), source[..., columns, :])
    positions = torch.arange(6)[None]
    assert torch.equal(frame._alive(positions, dim=-1), frame.columns)


def test_entering_an_uncut_layer_changes_nothing():
    frame = Frame([[(1, 3)]], 5, 0, None, torch.device("cpu"), False)
    given = {"attention_mask": torch.zeros(1, 1, 5, 5), "position_ids": torch.arange(5)[None]}
    kwargs = dict(given)
    frame.enter(0, torch.zeros(1, 5, 2), None, kwargs)
    assert all(kwargs[name] is given[name] for name in given)
    assert frame.cut(kwargs["attention_mask"]) is kwargs["attention_mask"]


@pytest.mark.parametrize("flash", [False, True])
def test_positions_are_used_up_by_rotary_embeddings(flash):
    """Flash attention would take gaps in position_ids for packed sequences."""
    frame = Frame([[(1, 3)]], 5, 0, None, torch.device("cpu"), flash)
    frame.columns, frame.status = torch.tensor([[0, 3, 4]]), torch.zeros(1, 3, dtype=torch.long)
    cos = torch.randn(1, 5, 4)
    kwargs = {"attention_mask": None, "position_ids": torch.arange(5)[None], "position_embeddings": (cos, cos)}
    frame.enter(1, torch.zeros(1, 3, 2), None, kwargs)
    assert kwargs["position_ids"] is None
    assert torch.equal(kwargs["position_embeddings"][0], cos[:, [0, 3, 4]])
    bare = {"attention_mask": None, "position_ids": torch.arange(5)[None]}
    frame.enter(1, torch.zeros(1, 3, 2), None, bare)  # a layer that makes its own embeddings needs them
    assert bare["position_ids"].tolist() == [[0, 3, 4]]


def test_what_a_layer_deletes_stays_valid_in_its_own_cache():
    """Found by the ragged decoding law: the notes are of what entered the layer."""
    from transformers import DynamicCache

    class Deleting(Frame):
        def choose(self, seen):
            self.status = self.status.clone()
            self.status[0, 1], self.fillers = DELETED, True
            return torch.tensor([[0, 1, 2], [0, 1, 2]])

    frame = Deleting([[(1, 3)], [(1, 2)]], 4, 0, None, torch.device("cpu"), False)
    frame.columns, frame.status = torch.tensor([[0, 1, 2, 3]] * 2), torch.zeros(2, 4, dtype=torch.long)
    frame.length = 4
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), layer)
    frame.enter(1, torch.zeros(2, 4, 2), None, {})
    frame.heard(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), 1.0, None)
    frame.held_by(1, cache)
    _, valid = kv.entries(cache, 1)
    assert valid is None or valid.all()
