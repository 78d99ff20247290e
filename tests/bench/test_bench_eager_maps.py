"""The benchmark's copy of the authors' way deletes what their own code deleted, and what ours deletes."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_parity_llama import CASES, load, parity_model, recipe_of

import fitprune
from fitprune.bench import eager_maps
from fitprune.bench.models import twin
from fitprune.decoder.upstream import cache_in


@pytest.mark.parametrize("case", CASES)
def test_it_does_what_was_recorded_from_their_code(case: str) -> None:
    facts, recorded, embeds, _ = load(case)
    model = twin(parity_model(facts["model"]).model)
    model.set_attn_implementation("eager")
    visual, layers = facts["n_visual"], len(model.layers)
    removed = recorded["removed_at_layer"].long()
    deletions = recipe_of(facts).deletions(visual, layers)
    with torch.no_grad():
        cache, alive = eager_maps.prefill(model, embeds, deletions, facts.get("n_prefix", 35), visual)
    for layer in range(layers):
        assert torch.equal(alive[layer][0], ((removed < 0) | (removed > layer)).nonzero().flatten())
    assert [layer.get_seq_length() for layer in cache.layers] == facts["kv_len_prefill"]
    for name, theirs in recorded.items():
        if "_cache_layer" in name:
            kept = cache.layers[int(name.rpartition("layer")[2])]
            torch.testing.assert_close(kept.keys if name[0] == "k" else kept.values, theirs, atol=1e-4, rtol=0)


def test_rows_of_a_batch_keep_what_pruning_keeps() -> None:
    model = tiny.llama().model
    embeds, mask = tiny.embedded(30, (4, 20), rows=3)
    with torch.no_grad(), fitprune.prune(model, tiny.RECIPE, visual_mask=mask) as trace:
        ours = cache_in(model(inputs_embeds=embeds, use_cache=True))
    eager = twin(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        cache, alive = eager_maps.prefill(eager, embeds, tiny.RECIPE.deletions(16, tiny.LAYERS), 4, 16)
    assert len({tuple(row.tolist()) for row in alive[-1]}) == 3  # rows differ, so the comparison says something
    for layer in range(tiny.LAYERS):
        assert [row.tolist() for row in alive[layer]] == [row.tolist() for row in trace.alive[layer]]
        torch.testing.assert_close(cache.layers[layer].values, ours.layers[layer].values, atol=1e-5, rtol=1e-4)
