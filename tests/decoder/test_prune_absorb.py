"""Survivors that stand for several tokens, against transformers' unpruned model: copies of a token are one that counts as many."""

import pytest
import tiny
import torch
from test_graphs import traced
from tiny import batch, embedded, prompt
from transformers import DynamicCache

import fitprune
from fitprune import FitPruneError, Recipe
from fitprune.decoder.graphs import Graphs
from fitprune.decoder.upstream import pass_cache
from fitprune.errors import UnsupportedError

ABSORB = Recipe.from_deletions([5, 0, 3, 0], visual_tokens=10, absorb=0.9, score="spread theta=0")
assert len(ABSORB.counts) == tiny.LAYERS


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def copies(rows=1, kinds=2, each=5, text=6, seed=0):
    """Visual tokens that come in copies, all at one position and seen by text only, as what each of them sees would tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    embeds, visual = embedded(kinds * each + text, (0, kinds * each), rows=rows)
    embeds = embeds.clone()
    one = torch.randn(rows, kinds, embeds.shape[2], generator=generator)
    embeds[:, : kinds * each] = one.repeat_interleave(each, 1)
    positions = torch.arange(kinds * each + text).clamp(min=kinds * each - 1).sub(kinds * each - 1)[None].expand(rows, -1)
    seen = torch.ones(embeds.shape[1], embeds.shape[1], dtype=torch.bool).tril()
    seen[: kinds * each, : kinds * each] = torch.block_diag(*[torch.ones(each, each)] * kinds).bool()
    return embeds, visual, positions, seen[None, None].expand(rows, -1, -1, -1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_copies_of_a_token_are_one_that_counts_as_many(kind, attention):
    model = tiny.decoder(kind)
    model.set_attn_implementation(attention)
    embeds, visual, positions, seen = copies(rows=2)
    mask = seen if attention == "sdpa" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    inputs = {"inputs_embeds": embeds, "position_ids": positions, "attention_mask": mask}
    steps = [{"inputs_embeds": embeds[:, -1:] * at, "position_ids": positions[:, -1:] + at} for at in (1, 2, 3)]

    def answers():
        """Logits of the text, and of steps that follow it on the cache."""
        cache = DynamicCache()
        return [
            model(**inputs, **pass_cache(model, cache)).logits[:, -6:],
            *(model(**step, past_key_values=cache).logits for step in steps),
        ]

    with torch.no_grad():
        dense = answers()
        with fitprune.prune(model, ABSORB, visual_mask=visual) as trace:
            for mine, its in zip(answers(), dense, strict=True):
                close(mine, its)
        assert [len(layer[0]) for layer in trace.visual] == [5, 5, 2, 2]
        with fitprune.prune(model, Recipe.from_deletions(ABSORB.counts, visual_tokens=10, score=ABSORB.score), visual_mask=visual):
            lost = answers()
    assert all((mine - its).abs().max() > 1e-3 for mine, its in zip(lost, dense, strict=True))  # deletion alone is felt


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_is_its_rows(attention):
    llava = tiny.llava()
    llava.set_attn_implementation(attention)
    rows = [prompt(3, "image", 5, seed=1), prompt(7, "image", 4, "image", 3, seed=2), prompt(9, "image", 2, seed=3)]
    with torch.no_grad(), fitprune.prune(llava, ABSORB):
        whole = llava.generate(**batch(rows), max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
        for at, row in enumerate(rows):
            alone = llava.generate(**row, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
            for step, logits in enumerate(alone.logits):
                close(whole.logits[step][at], logits[0])


def test_it_is_kept_with_the_recipe_and_refused_where_it_means_nothing(tmp_path):
    ABSORB.save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json").absorb == 0.9
    assert ABSORB.digest != Recipe.from_deletions(ABSORB.counts, visual_tokens=10).digest
    for wrong in (1.5, -0.1, "0.8"):
        with pytest.raises(FitPruneError, match="absorb"):
            Recipe.from_deletions([1], visual_tokens=2, absorb=wrong)


def test_flash_attention_is_refused_by_name(llava, monkeypatch):
    monkeypatch.setattr(llava.model.language_model.config, "_attn_implementation", "flash_attention_2")
    with torch.no_grad(), fitprune.prune(llava, ABSORB), pytest.raises(UnsupportedError, match="flash attention has no mask"):
        llava(**prompt(3, "image", 5, seed=1))


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_a_recorded_prefill_is_the_prefill(rows):
    """With the stand-in for CUDA graphs of test_graphs, which writes down every operation with its constants."""
    llava, inputs = tiny.llava(), batch([prompt(3, "image", 5, seed=1), prompt(7, "image", 4, "image", 3, seed=2)][: len(rows)])
    graphs = Graphs(2, recorder=traced)
    with torch.no_grad():
        with fitprune.prune(llava, ABSORB):
            wanted = llava.generate(**inputs, max_new_tokens=5, do_sample=False)
        with fitprune.prune(llava, ABSORB, graphs=graphs):
            for _ in range(2):  # as it is recorded, and replayed
                assert torch.equal(llava.generate(**inputs, max_new_tokens=5, do_sample=False), wanted)
            assert graphs.recordings


def test_no_layer_has_a_word_with_the_host(on_meta):
    model, embeds = on_meta
    _, mask = embedded(26, (3, 19), rows=2)
    with torch.no_grad(), fitprune.prune(model, ABSORB, visual_mask=mask):
        assert model.model(inputs_embeds=embeds).last_hidden_state.shape[1] == 26 - sum(ABSORB.deletions(16))
