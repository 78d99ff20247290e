"""Parity with the authors' code: everything that was recorded from it on small Llama models, layer by layer.

Fixtures in tests/parity/llama (see its README): survivors must be identical after every layer; hidden states, logits
and caches agree within 1e-4; cache lengths and greedy tokens are identical. sdpa and eager.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import fitprune
from fitprune import Recipe
from fitprune.decoder.upstream import pass_cache

DATA = Path(__file__).parent / "parity" / "llama"
CASES = sorted(path.stem for path in [*DATA.glob("runtime_*_r*.json"), *DATA.glob("next_*.json")])


@cache
def parity_model(name):
    values = json.loads((DATA / "config.json").read_text())
    values = {key: value for key, value in values.items() if not key.startswith("n_") and key != "torch_dtype"}
    model = LlamaForCausalLM(LlamaConfig(**values)).eval()
    model.load_state_dict(load_file(DATA / f"model_{name}.safetensors"))
    return model


def load(case):
    facts, recorded = json.loads((DATA / f"{case}.json").read_text()), load_file(DATA / f"{case}.safetensors")
    source = recorded if "inputs_embeds" in recorded else load_file(DATA / f"runtime_{facts['model']}_inputs.safetensors")
    embeds = source["inputs_embeds"]
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    mask[:, facts.get("n_prefix", 35) :][:, : facts["n_visual"]] = True
    return facts, recorded, embeds, mask


def recipe_of(facts):
    if "table_2880" in facts:
        return Recipe.from_deletions(facts["table_2880"], visual_tokens=2880)
    return Recipe.from_deletions(facts["tokens_removed_per_layer"], visual_tokens=facts["n_visual"])


def lengths(cache):
    return [layer.get_seq_length() for layer in cache.layers]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_every_case_is_here():
    assert len(CASES) == 12
    assert any(case.startswith("next_") for case in CASES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_everything_recorded(case, attention):
    facts, recorded, embeds, mask = load(case)
    model = parity_model(facts["model"])
    model.set_attn_implementation(attention)
    removed = recorded["removed_at_layer"].long()
    cache, last_of_layer, hooks = DynamicCache(), [], []
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda _m, _a, out: last_of_layer.append(out[0, -1])))
    try:
        with torch.no_grad(), fitprune.prune(model, recipe_of(facts), visual_mask=mask) as trace:
            base = model.model(inputs_embeds=embeds, **pass_cache(model.model, cache), use_cache=True)
            hidden = base.last_hidden_state
            for hook in hooks:
                hook.remove()
            for layer in range(len(model.model.layers)):
                survivors = ((removed < 0) | (removed > layer)).nonzero().flatten()
                assert torch.equal(trace.alive[layer][0], survivors), f"layer {layer}"
            close(hidden, recorded["last_hidden_state"])
            if "last_token_hidden" in recorded:
                close(torch.stack(last_of_layer), recorded["last_token_hidden"])
            assert lengths(cache) == facts["kv_len_prefill"]
            for name, theirs in recorded.items():
                if "_cache_layer" in name:
                    kept = cache.layers[int(name.rpartition("layer")[2])]
                    close(kept.keys if name[0] == "k" else kept.values, theirs)

            logits = model.lm_head(hidden[:, -1:])
            tokens = []
            for step, theirs in enumerate(recorded["step_logits"]):
                close(logits[0, -1], theirs)
                tokens.append(int(logits[0, -1].argmax()))
                if step + 1 < len(recorded["step_logits"]):
                    logits = model(input_ids=torch.tensor([tokens[-1:]]), **pass_cache(model, cache)).logits
                    if "kv_len_decode" in facts:
                        assert lengths(cache) == facts["kv_len_decode"][step]
            assert tokens == facts["greedy_tokens"]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["runtime_A1_r60", "runtime_A2_r90", "runtime_A3_r60", "next_A2_r40_n1440"])
def test_generate_gives_the_recorded_tokens(case, attention):
    facts, _, embeds, mask = load(case)
    model = parity_model(facts["model"])
    model.set_attn_implementation(attention)
    with torch.no_grad(), fitprune.prune(model, recipe_of(facts), visual_mask=mask):
        out = model.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=127)
    assert out[0].tolist() == facts["greedy_tokens"]


@pytest.mark.parametrize("case", ["runtime_A1_r60", "runtime_A2_r90"])
def test_recorded_scores(case):
    facts, recorded, embeds, mask = load(case)
    model = parity_model(facts["model"])
    model.set_attn_implementation("sdpa")
    start, n = facts["n_prefix"], facts["n_visual"]
    removed = recorded["removed_at_layer"][start : start + n].long()

    def checking(seen):
        entering = (removed < 0) | (removed >= seen.layer)
        alive = seen.token_group[0] == 1
        ours = fitprune.scores.product(seen)
        # the released code divides by the number of visual tokens that enter the layer; that changes no rank
        theirs = recorded["score"][seen.layer][entering] * int(alive.sum())
        torch.testing.assert_close(ours[0, alive], theirs, rtol=2e-5, atol=0)
        checked.append(seen.layer)
        return ours

    checked = []
    with torch.no_grad(), fitprune.prune(model, recipe_of(facts), visual_mask=mask, score=checking):
        model.model(inputs_embeds=embeds, use_cache=False)
    assert checked == [layer for layer, count in enumerate(facts["tokens_removed_per_layer"]) if count]
