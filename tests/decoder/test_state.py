"""A prefill's state: what a layer is given, what it notes, who goes on (the masks themselves: test_masks.py)."""

import pytest
import torch

from fitprune import Recipe
from fitprune.decoder import cache as kv
from fitprune.decoder.deletion import DeletionPolicy, DeletionState
from fitprune.decoder.state import Prefill, PrefillState
from fitprune.kernels.select import ALIVE, DELETED, PADDING
from fitprune.scores import last


def test_a_layer_gets_the_models_mask_at_what_it_holds():
    """Two rows: one lost a token, the other carries a deleted one; the cache held two of three earlier tokens."""
    state = PrefillState(Prefill([[((1, 3),)], [((1, 2),)]], 4, past=3))
    state.token_index = torch.tensor([[0, 2, 3], [0, 1, 3]])
    state.status, state.pad_slots = torch.tensor([[ALIVE] * 3, [ALIVE, DELETED, ALIVE]]), True
    cache = _cache(torch.tensor([[0, 2], [0, 1]]), torch.tensor([[True, True], [False, True]]), 3)
    full = torch.ones(4, 7, dtype=torch.bool).tril(3)[None, None]
    for flash, mask in ((False, full), (True, torch.ones(2, 7, dtype=torch.bool))):
        state.call = Prefill(state.spans, 4, past=3, flash=flash)
        state._remembered.clear()
        kwargs = {"attention_mask": mask}
        here = state.enter(0, torch.zeros(2, 3, 2), cache, kwargs)
        columns, valid = here.keys()
        assert columns.tolist() == [[0, 2, 3, 5, 6], [0, 1, 3, 4, 6]]
        assert valid.tolist() == [[True] * 5, [False, True, True, False, True]]
        if flash:
            assert torch.equal(kwargs["attention_mask"], valid)
        else:
            causal = columns[:, None, None, :] <= state.columns()[:, None, :, None]
            assert torch.equal(kwargs["attention_mask"], causal & valid[:, None, None])


@pytest.mark.parametrize("flash", [False, True])
def test_a_mask_is_made_once_between_two_cuts(flash):
    state = PrefillState(Prefill([[((1, 3),)]], 5, real=torch.tensor([[False, True, True, True, True]]), flash=flash))
    state.token_index, state.status = torch.tensor([[0, 3, 4]]), torch.tensor([[PADDING, ALIVE, ALIVE]])
    given = torch.ones((1, 5) if flash else (1, 1, 5, 5), dtype=torch.bool)
    made = []
    for layer in (1, 2):
        kwargs = {"attention_mask": given}
        state.enter(layer, torch.zeros(1, 3, 2), None, kwargs)
        made.append(kwargs["attention_mask"])
    assert made[0] is made[1]
    state.carry_on(torch.tensor([[1, 2]]))
    kwargs = {"attention_mask": given}
    state.enter(3, torch.zeros(1, 2, 2), None, kwargs)
    assert kwargs["attention_mask"].shape[-1] == 2


def test_sizes_of_images_are_known_to_the_host():
    """Row 0 has two images, row 1 one of two runs; the first image of either loses tokens in layer 0, the second in layer 1."""
    spans = [[((1, 9),), ((10, 14),)], [((0, 4), (6, 8))]]
    recipe = Recipe.from_deletions([4, 2, 0], visual_tokens=8)
    state = DeletionState(DeletionPolicy(recipe, 3, last, seed=0), Prefill(spans, 16))
    assert PrefillState(Prefill(spans, 16)).image_sizes(2) == [8, 4]
    rows = [[recipe.deletions(n, 3) for n in (8, 4)], [recipe.deletions(6, 3)]]
    for layer in range(3):
        left = [8 - sum(rows[0][0][:layer]), 6 - sum(rows[1][0][:layer]), 4 - sum(rows[0][1][:layer])]
        assert state.image_sizes(layer) == [max(left[:2]), left[2]]
    assert PrefillState(Prefill([[], []], 4)).image_sizes(0) == []


def _cache(token_index, valid, seen):
    """A cache whose first layer holds these columns."""
    from transformers import DynamicCache

    cache = DynamicCache()
    states = torch.zeros(*token_index.shape, 1, 2).transpose(1, 2)
    cache.update(states, states, 0)
    kv.mark(cache, 0, token_index, valid, seen)
    return cache


def test_rows_of_embeddings_of_any_layout():
    state = PrefillState(Prefill([[], []], 6))
    state.token_index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    for leading in ((2,), (1,), (3, 2), (3, 1)):  # M-RoPE has three sections in front
        tensor = torch.randn(*leading, 6, 4)
        out = state.carried(tensor)
        for row, columns in enumerate(state.token_index):
            source = tensor.expand(*leading[:-1], 2, 6, 4).select(-3, row)
            assert torch.equal(out.select(-3, row), source[..., columns, :])
    positions = torch.arange(6)[None]
    assert torch.equal(state.carried(positions, dim=-1), state.token_index)


def test_entering_an_uncut_layer_changes_nothing():
    state = PrefillState(Prefill([[((1, 3),)]], 5))
    given = {"attention_mask": torch.zeros(1, 1, 5, 5), "position_ids": torch.arange(5)[None]}
    kwargs = dict(given)
    here = state.enter(0, torch.zeros(1, 5, 2), None, kwargs)
    assert all(kwargs[name] is given[name] for name in given)
    assert here.cut(kwargs["attention_mask"]) is kwargs["attention_mask"]


@pytest.mark.parametrize("flash", [False, True])
def test_positions_with_gaps_do_not_reach_flash_attention(flash):
    """Flash attention would take gaps in position_ids for packed sequences."""
    state = PrefillState(Prefill([[((1, 3),)]], 5, flash=flash))
    state.token_index, state.status = torch.tensor([[0, 3, 4]]), torch.zeros(1, 3, dtype=torch.long)
    cos = torch.randn(1, 5, 4)
    kwargs = {"attention_mask": None, "position_ids": torch.arange(5)[None], "position_embeddings": (cos, cos)}
    state.enter(1, torch.zeros(1, 3, 2), None, kwargs)
    assert kwargs["position_ids"] is None if flash else kwargs["position_ids"].tolist() == [[0, 3, 4]]
    assert torch.equal(kwargs["position_embeddings"][0], cos[:, [0, 3, 4]])
    bare = {"attention_mask": None, "position_ids": torch.arange(5)[None]}
    state.enter(1, torch.zeros(1, 3, 2), None, bare)  # a layer that makes its own embeddings needs them
    assert bare["position_ids"].tolist() == [[0, 3, 4]]


def test_what_a_layer_deletes_stays_valid_in_its_own_cache():
    """Found by the ragged decoding law: the notes are of what entered the layer."""
    from transformers import DynamicCache

    class Deleting(PrefillState):
        def select_survivors(self, seen):
            self.status = self.status.clone()
            self.status[0, 1], self.pad_slots = DELETED, True
            return torch.tensor([[0, 1, 2], [0, 1, 2]])

    state = Deleting(Prefill([[((1, 3),)], [((1, 2),)]], 4))
    state.token_index, state.status = torch.tensor([[0, 1, 2, 3]] * 2), torch.zeros(2, 4, dtype=torch.long)
    state.length = 4
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), layer)
    here = state.enter(1, torch.zeros(2, 4, 2), None, {})
    here.on_attention(torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), torch.zeros(2, 1, 4, 2), 1.0, None)
    here.record_cache(cache)
    _, valid = kv.entries(cache, 1)
    assert valid is None or valid.all()
