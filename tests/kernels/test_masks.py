"""The rule of who sees whom, against loops over single entries, and the kernels' tiles against the rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fitprune.kernels import chunked, masks, reference
from fitprune.kernels.reference import TEXT

TYPES = {"bool": torch.bool, "float": torch.float32, "half": torch.float16}


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
    """A layer in the middle of a forward: which of n new tokens are carried, their columns, its keys' columns, validity, past."""
    rows, new, past = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.sampled_from([0, 0, 1, 4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def some(total: int, count: int) -> Tensor:
        return torch.stack([torch.randperm(total, generator=generator)[:count].sort().values for _ in range(rows)])

    carried = some(new, draw(st.integers(1, new)))
    cached = some(past, draw(st.integers(0, past))) if past else torch.zeros(rows, 0, dtype=torch.long)
    keys = torch.cat([cached, carried + past], dim=1)
    valid = torch.rand(keys.shape, generator=generator) < 0.7 if draw(st.booleans()) else None
    return carried, carried + past, keys, valid, past + new


def seen_by_loops(model: Tensor, carried: Tensor, keys: Tensor, valid: Tensor | None) -> Tensor:
    """model [B, n, C] of bool, at the queries and keys of a layer, an entry at a time: [B, 1, Q, K]."""
    rows, queries, count = carried.shape[0], carried.shape[1], keys.shape[1]
    out = torch.zeros(rows, 1, queries, count, dtype=torch.bool)
    for row in range(rows):
        for q in range(queries):
            for k in range(count):
                good = valid is None or bool(valid[row, k])
                out[row, 0, q, k] = good and bool(model[row, carried[row, q], keys[row, k]])
    return out


def as_type(seen: Tensor, kind: str) -> Tensor:
    return seen if kind == "bool" else masks.as_numbers(seen, TYPES[kind])


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from([*TYPES, "none"]), st.booleans())
def test_dense(case: tuple[Tensor, Tensor, Tensor, Tensor | None, int], kind: str, alone: bool) -> None:
    carried, queries, keys, valid, total = case
    new = total - int((queries - carried).max())
    model = torch.ones(new, total, dtype=torch.bool).tril(total - new).expand(carried.shape[0], -1, -1)
    if kind == "none":
        wanted = seen_by_loops(model, carried, keys, valid)
        mask = masks.dense(None, queries, keys, valid, carried)
        if mask is None:  # then causality alone must say the same: a single query sees all, or queries are the keys
            assert valid is None
            assert queries.shape[1] in (1, keys.shape[1])
            assert torch.equal(wanted, torch.ones_like(wanted).tril(keys.shape[1] - queries.shape[1]))
        else:
            assert torch.equal(mask.expand_as(wanted), wanted)
        return
    model = model & (torch.rand(model.shape, generator=torch.Generator().manual_seed(1)) < 0.8)
    if alone:  # one mask for all rows
        model = model[:1].expand_as(model)
    given_mask = as_type(model[:1] if alone else model, kind)[:, None]
    mask = masks.dense(given_mask, queries, keys, valid, carried)
    assert mask is not None
    assert mask.dtype == TYPES[kind]
    assert torch.equal(mask if kind == "bool" else mask == 0, seen_by_loops(model, carried, keys, valid))


@settings(max_examples=80, deadline=None)
@given(layers(), st.booleans())
def test_flash(case: tuple[Tensor, Tensor, Tensor, Tensor | None, int], padded: bool) -> None:
    _, _, keys, valid, total = case
    real = torch.rand(keys.shape[0], total, generator=torch.Generator().manual_seed(2)) < 0.7
    mask = masks.flash(real.long() if padded else None, keys, valid)
    wanted = torch.tensor(
        [
            [(not padded or bool(real[row, key])) and (valid is None or bool(valid[row, at])) for at, key in enumerate(line)]
            for row, line in enumerate(keys.tolist())
        ]
    )
    assert torch.equal(torch.ones_like(wanted) if mask is None else mask, wanted)


@pytest.mark.parametrize("kind", ["none", "keys", "bool", "float"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (4, 4), (3, 7)])
def test_additive_is_the_same_rule_for_every_kind(kind: str, queries: int, keys: int) -> None:
    position = torch.arange(keys)[None]
    real = torch.tensor([[True] * keys, [False] + [True] * (keys - 1)]) if keys > 1 else torch.ones(2, 1, dtype=torch.bool)
    seen = masks.causal(position[:, keys - queries :], position, None if kind == "none" else real)
    given_mask = {"none": None, "keys": real, "bool": seen, "float": masks.as_numbers(seen)}[kind]
    numbers = masks.additive(given_mask, queries, keys, torch.zeros(1))
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers == 0, seen)
    assert float(numbers.min()) >= torch.finfo(torch.float32).min


def test_half_precision_numbers_stay_finite() -> None:
    hidden = masks.as_numbers(torch.zeros(1, 1, 1, 2, dtype=torch.bool), torch.float16)
    assert torch.isfinite(hidden).all()
    assert torch.isfinite(masks.additive(torch.full((1, 1, 1, 2), -torch.inf), 1, 2, hidden)).all()


@settings(max_examples=60, deadline=None)
@given(layers(), st.sampled_from(["none", "keys", "bool", "float"]), st.integers(0, 10**6))
def test_tiles_apply_the_rule(case: tuple[Tensor, Tensor, Tensor, Tensor | None, int], kind: str, seed: int) -> None:
    """chunked.py on masks that this module makes; the Triton kernel is compared the same way in test_triton.py."""
    torch.manual_seed(seed)
    carried, queries, keys, valid, _ = case
    rows, asking, count = carried.shape[0], carried.shape[1], keys.shape[1]
    real = torch.ones(rows, count, dtype=torch.bool) if valid is None else valid.clone()
    real[:, -asking:] = True  # every query sees itself
    position = torch.arange(count)[None]
    made = {
        "none": None,
        "keys": real,
        "bool": masks.causal(queries, keys, real),
        "float": masks.as_numbers(masks.causal(position[:, count - asking :], position, real)),
    }[kind]
    query, key = torch.randn(rows, 4, asking, 8), torch.randn(rows, 2, count, 8)
    group = torch.randint(1, 3, (rows, asking))
    group[:, -1] = TEXT
    key_group = torch.nn.functional.pad(group.clamp(min=0), (count - asking, 0))
    wanted = reference(query, key, 0.3, made, group, key_group)
    got = chunked(query, key, 0.3, made, group, key_group, images=2, block_bytes=256)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
