"""Caches of unequal layers: what their notes say after growing, repeating and reordering; and which are refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig, StaticCache

from fitprune.decoder import cache as kv
from fitprune.errors import UnsupportedError


def filled(rows=2, lengths=(9, 6, 6)):
    cache = DynamicCache()
    for layer, length in enumerate(lengths):
        states = torch.arange(rows * length, dtype=torch.float32).view(rows, 1, length, 1).expand(-1, 2, -1, 4)
        cache.update(states.clone(), states.clone() + 0.5, layer)
    return cache


def marked(valid=True):
    cache = filled()
    columns = torch.tensor([[0, 1, 3, 5, 7, 8], [0, 2, 3, 4, 6, 8]])
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4]) if valid else None
    kv.mark(cache, 1, columns, real, seen=9)
    return cache, columns, real


def grow(cache, count, rows=2):
    for layer in range(len(cache.layers)):
        kv.admit(cache, layer)
        cache.update(torch.zeros(rows, 2, count, 4), torch.zeros(rows, 2, count, 4), layer)


def test_marking_keeps_the_layer_and_its_tensors():
    cache = filled()
    keys = cache.layers[1].keys
    assert not kv.is_pruned(cache)
    assert kv.entries(cache, 1) is None
    cache, columns, real = marked()
    assert kv.is_pruned(cache)
    assert isinstance(cache.layers[1], type(cache.layers[0]))
    assert torch.equal(cache.layers[1].keys, keys)
    assert kv.entries(cache, 0) is None
    found = kv.entries(cache, 1)
    assert torch.equal(found[0], columns)
    assert torch.equal(found[1], real)
    assert kv.entries(cache, 7) is None
    assert kv.entries(None, 0) is None
    assert not kv.is_pruned(None)


@given(st.lists(st.integers(1, 4), max_size=4), st.booleans())
def test_entries_follow_one_by_one(steps, valid):
    cache, columns, real = marked(valid)
    for count in steps:
        grow(cache, count)
    added = sum(steps)
    found, ok = kv.entries(cache, 1)
    assert found[:, :6].tolist() == columns.tolist()
    assert found[:, 6:].tolist() == [list(range(9, 9 + added))] * 2
    if valid:
        assert ok[:, :6].tolist() == real.tolist()
        assert ok[:, 6:].all()
    else:
        assert ok is None


@pytest.mark.parametrize("how", ["reorder", "repeat", "select"])
def test_rows_move_with_the_cache(how):
    cache, columns, real = marked()
    grow(cache, 1)
    keys = cache.layers[1].keys.clone()
    if how == "reorder":
        index = torch.tensor([1, 1])
        cache.reorder_cache(index)
    elif how == "repeat":
        index = torch.tensor([0, 0, 0, 1, 1, 1])
        cache.batch_repeat_interleave(3)
    else:
        index = torch.tensor([1])
        cache.batch_select_indices(index)
    found, ok = kv.entries(cache, 1)
    assert torch.equal(cache.layers[1].keys, keys[index])
    assert found[:, :6].tolist() == columns[index].tolist()
    assert ok[:, :6].tolist() == real[index].tolist()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_is_independent(copied):
    cache, columns, _ = marked()
    other = copied(cache)
    assert type(other.layers[1]) is type(cache.layers[1])
    other.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(kv.entries(cache, 1)[0], columns)
    assert torch.equal(kv.entries(other, 1)[0], columns[[1, 0]])


def test_cropping_is_refused():
    cache, *_ = marked()
    with pytest.raises(UnsupportedError, match="assistant_model"):
        cache.layers[1].crop(-1)
    with pytest.raises(UnsupportedError, match="assistant_model"):
        cache.crop(-1)


LLAMA = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)


def test_caches_that_serve():
    for cache in (None, DynamicCache(), DynamicCache(config=LLAMA), filled(), marked()[0]):
        kv.check_prunable(cache)


def test_caches_that_do_not_serve():
    window = MistralConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, sliding_window=4)
    for cache, words in (
        (StaticCache(config=LLAMA, max_cache_len=8), "fixed in advance"),
        (DynamicCache(config=window), "sliding"),
        (object(), "DynamicCache"),
    ):
        with pytest.raises(UnsupportedError, match=words) as error:
            kv.check_prunable(cache)
        assert "\n" not in str(error.value)


def test_marking_refuses_a_window_that_nobody_checked():
    window = MistralConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, sliding_window=4)
    cache = DynamicCache(config=window)
    with pytest.raises(UnsupportedError, match="sliding"):
        kv.mark(cache, 1, torch.zeros(1, 1, dtype=torch.long), None, 1)
