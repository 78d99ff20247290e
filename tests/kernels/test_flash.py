"""Flash attention, by a stand-in that keeps its contract on a CPU: 2-D masks or none, and no gaps in position_ids.

The stand-in unpads every row as transformers' flash path does (queries are the last of the mask's columns), computes
each sequence by itself, causal and aligned at its last key, and refuses anything that real flash attention would
misread: 4-D masks, and positions with gaps in an unpadded row, which it takes for packed sequences.
"""

from importlib.util import find_spec

import pytest
import tiny
import torch
from test_generate import GREEDY, pad, removed_of
from test_prune import ROWS, close, image_spans
from tiny import LAYERS, RECIPE, batch, dense_pruned, embedded, prompt
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask

import fitprune
from fitprune.decoder.upstream import pass_cache
from fitprune.kernels import flash_cuda

NAME = "standin_flash"
calls = []


def standin(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    batch_size, heads, queries, size = query.shape
    keys = key.shape[2]
    positions = kwargs.get("position_ids")
    if positions is not None and attention_mask is None and queries > 1:
        assert (positions.diff(dim=-1) == 1).all(), "flash attention would take these for packed sequences"
    assert attention_mask is None or (attention_mask.ndim == 2 and attention_mask.shape == (batch_size, keys))
    assert module.config._attn_implementation == NAME  # the module is shown with the config that names flash
    calls.append(attention_mask is not None)
    key, value = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (key, value))
    out = torch.zeros(batch_size, queries, heads, size, dtype=query.dtype)
    for row in range(batch_size):
        real = torch.ones(keys, dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
        asking = real[keys - queries :]
        q, k, v = query[row][:, asking], key[row][:, real], value[row][:, real]
        logits = q @ k.transpose(1, 2) * (scaling or size**-0.5)
        ahead = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(k.shape[1] - q.shape[1] + 1)
        out[row, asking] = (logits.masked_fill(ahead, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out, None


@pytest.fixture
def flash(llava):
    """The LLaVA whose decoder runs the stand-in; set back afterwards."""
    AttentionInterface.register(NAME, standin)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    text = llava.model.language_model.config
    before = text._attn_implementation
    text._attn_implementation_internal = NAME
    calls.clear()
    yield llava
    text._attn_implementation_internal = before
    assert calls  # it ran


def same(ours, theirs):
    return [[row.tolist() for row in rows] for rows in ours] == [[row.tolist() for row in rows] for rows in theirs]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_of_a_ragged_batch(flash, side):
    inputs = batch(ROWS, side)
    with torch.no_grad(), fitprune.prune(flash, RECIPE) as trace:
        output = flash(**inputs)
    for number, row in enumerate(ROWS):
        shift = pad(inputs, number)
        dense = dense_pruned(flash, row, image_spans(row), RECIPE)
        for layer in range(LAYERS):
            assert (trace.alive[layer][number] - shift).tolist() == dense.alive(layer)
        where = trace.positions[number]
        close(output.logits[number][where >= 0], dense.logits[where[where >= 0] - shift])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generates_what_sdpa_does(flash, options):
    single, padded = {"input_ids": ROWS[1]["input_ids"], "pixel_values": ROWS[1]["pixel_values"]}, batch(ROWS)
    found = []
    for name in (NAME, "sdpa"):
        flash.model.language_model.config._attn_implementation_internal = name
        with torch.no_grad(), fitprune.prune(flash, RECIPE) as trace:
            for inputs in (single, padded):
                tokens = flash.generate(**inputs, **GREEDY, **options)
                found.append((tokens, trace.alive))
    for mine, other in zip(found[:2], found[2:], strict=True):
        assert torch.equal(mine[0], other[0])
        assert same(mine[1], other[1])


def test_a_single_row_needs_no_mask(flash):
    with torch.no_grad(), fitprune.prune(flash, RECIPE):
        flash.generate(**ROWS[0], **GREEDY)
    assert not any(calls)


def test_ragged_rows_without_padding(flash):
    """The mask is made by pruning itself: the rows keep different numbers of tokens."""
    embeds, mask = embedded(26, (3, 19), rows=2)
    mask[1, 8:] = False
    causal = flash.model.language_model
    hidden, kept = [], []
    for name in (NAME, "sdpa"):
        causal.config._attn_implementation_internal = name
        cache = DynamicCache()
        with torch.no_grad(), fitprune.prune(causal, RECIPE, visual_mask=mask) as trace:
            first = causal(inputs_embeds=embeds, **pass_cache(causal, cache)).last_hidden_state
            then = [causal(input_ids=torch.tensor([[n], [n + 1]]), **pass_cache(causal, cache)).last_hidden_state for n in (3, 5)]
            more = causal(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]]), **pass_cache(causal, cache)).last_hidden_state
        real = trace.positions >= 0
        hidden.append(torch.cat([first[real], *(step.flatten(0, 1) for step in then), more.flatten(0, 1)]))
        kept.append(trace.positions)
    assert torch.equal(*kept)
    close(*hidden)


@pytest.mark.parametrize("padded", [False, True])
def test_a_later_turn(flash, padded):
    firsts = [prompt(3, "image", 5, seed=5), prompt(6, "image", 1, "image", 2, seed=6)][: 1 + padded]
    turns = [prompt(2, "image", 4, seed=8), prompt("image", 1, "image", 5, seed=10)][: 1 + padded]
    one, two = batch(firsts), batch(turns)
    mask = torch.cat([one["attention_mask"], two["attention_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    width, cache = one["input_ids"].shape[1], DynamicCache()
    if not padded:
        one.pop("attention_mask")
    with torch.no_grad(), fitprune.prune(flash, RECIPE) as trace:
        flash(**one, position_ids=positions[:, :width], **pass_cache(flash, cache))
        kept = trace.alive
        removed = [
            removed_of(trace, row, width - firsts[row]["input_ids"].shape[1], firsts[row]["input_ids"].shape[1])
            for row in range(len(firsts))
        ]
        second = {"attention_mask": mask, "position_ids": positions[:, width:]} if padded else {}
        output = flash(input_ids=two["input_ids"], pixel_values=two["pixel_values"], **pass_cache(flash, cache), **second)
    assert kept
    for row, (first, turn) in enumerate(zip(firsts, turns, strict=True)):
        past = first["input_ids"].shape[1]
        whole = {name: torch.cat([first[name], turn[name]], dim=int(name == "input_ids")) for name in first}
        spans = [span for span in image_spans(whole) if span[0] >= past]
        dense = dense_pruned(flash, whole, spans, RECIPE, start=past, removed=removed[row])
        shift = width + pad(two, row) - past
        for layer in range(LAYERS):
            assert (trace.alive[layer][row] - shift).tolist() == [at for at in dense.alive(layer) if at >= past]
        where = trace.positions[row]
        close(output.logits[row][where >= 0], dense.logits[where[where >= 0] - shift])


def test_zero_recipe(flash):
    with torch.no_grad():
        wanted = flash(**batch(ROWS)).logits
        with fitprune.prune(flash, fitprune.Recipe.none(LAYERS)):
            assert torch.equal(flash(**batch(ROWS)).logits, wanted)
    assert tiny.LAYERS == LAYERS


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_real_kernel_keeps_the_contract_of_the_stand_in(dtype, size):
    """PyTorch's own flash kernel on packed rows: causal, aligned at the last key, no row sees another, grouped heads."""
    lengths = [(9, 9), (3, 17), (1, 40), (33, 64)]  # queries and keys of each row: a prefill, later turns, a decoded token
    query = torch.randn(sum(q for q, _ in lengths), 4, size, device="cuda", dtype=dtype)
    key, value = (torch.randn(sum(k for _, k in lengths), 2, size, device="cuda", dtype=dtype) for _ in range(2))
    starts = [torch.tensor([0, *column], device="cuda").cumsum(0).int() for column in zip(*lengths, strict=True)]
    found = torch.ops.aten._flash_attention_forward(query, key, value, *starts, 33, 64, 0.0, True, False, scale=0.2)[0]
    for row, (queries, keys) in enumerate(lengths):
        q = query[starts[0][row] :][:queries].transpose(0, 1).float()
        k, v = (part[starts[1][row] :][:keys].transpose(0, 1).float().repeat_interleave(2, 0) for part in (key, value))
        ahead = torch.ones(queries, keys, dtype=torch.bool, device="cuda").triu(keys - queries + 1)
        wanted = ((q @ k.transpose(1, 2) * 0.2).masked_fill(ahead, -torch.inf).softmax(-1) @ v).transpose(0, 1)
        torch.testing.assert_close(found[starts[0][row] :][:queries].float(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [64, 128])
def test_fused_attention_tells_the_right_log_sum_exp(dtype, size):
    """What `flash_cuda` takes from PyTorch's kernel, wherever it says that it applies; on a prompt of more than one block."""
    query = torch.randn(2, 333, 4, size, device="cuda", dtype=dtype).transpose(1, 2)
    key, value = (torch.randn(2, 333, 4, size, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(2))
    with torch.inference_mode():
        if not flash_cuda.applies(query, key, value, None):
            pytest.skip("PyTorch runs another kernel for this on this GPU")
        output, norms = flash_cuda.attend(query, key, value, 0.1)
    scores = query.float() @ key.float().transpose(-1, -2) * 0.1
    scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(1), -torch.inf)
    torch.testing.assert_close(norms[..., :333], scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.float(), scores.softmax(-1) @ value.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash-attn")
def test_generates_with_the_package_what_sdpa_does():
    model = tiny.llava().to("cuda", torch.bfloat16)
    inputs = {name: tensor.cuda() for name, tensor in batch(ROWS).items()}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    found = []
    for name in ("sdpa", "flash_attention_2"):
        model.model.language_model.set_attn_implementation(name)
        with torch.no_grad(), fitprune.prune(model, RECIPE) as trace:
            model(**inputs)
        found.append([[row.numel() for row in rows] for rows in trace.alive])
    assert found[0] == found[1]  # in 16 bits the two may rank neighbours the other way round
