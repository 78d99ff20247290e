"""The laws of pruning, on prefills: what must hold for any model, recipe and batch (generation: test_generate.py).

The yardstick is `tiny.dense_pruned`: the unmodified model at full length, eager, in which a deleted token is masked
from the layer after its deletion on.
"""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LAYERS, RECIPE, batch, dense_pruned, embedded, prompt, spans_of
from transformers import DynamicCache

import fitprune
from fitprune import FitPruneError, Recipe
from fitprune.decoder.attach import find_decoder
from fitprune.decoder.upstream import cache_in, pass_cache

ATTENTIONS = ["sdpa", "eager"]
BOTH = [("llama", name) for name in ATTENTIONS]
IMAGES = [pytest.param(((3, 19),), id="one"), pytest.param(((0, 8), (8, 9), (12, 24)), id="three")]
ROWS = [prompt(3, "image", 5, seed=1), prompt(7, "image", 4, "image", 3, seed=2), prompt(9, seed=3), prompt("image", "image", 6, seed=4)]


def close(ours, theirs, atol=2e-4):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)


def forward(model, recipe=RECIPE, visual_mask=None, score="fitprune", **inputs):
    with torch.no_grad(), fitprune.prune(model, recipe, visual_mask=visual_mask, score=score) as trace:
        return model(**inputs), trace


def image_spans(row):
    ids = row["input_ids"][0]
    return [
        (at, at + tiny.IMAGE_TOKENS)
        for at in range(0, len(ids))
        if ids[at] == tiny.IMAGE_TOKEN and (ids[:at] == tiny.IMAGE_TOKEN).sum() % tiny.IMAGE_TOKENS == 0
    ]


def same_as_dense(trace, output, dense, row=0, shift=0):
    """Survivors after every layer, and the logits of every survivor, of one row that stands `shift` columns later."""
    for layer in range(LAYERS):
        assert (trace.alive[layer][row] - shift).tolist() == dense.alive(layer), f"row {row}, layer {layer}"
    where = trace.positions[row]
    close(output.logits[row][where >= 0], dense.logits[where[where >= 0] - shift])


# ---- a recipe of zeros -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", [*BOTH, *(("llava", name) for name in ATTENTIONS)], indirect=True)
def test_zero_recipe_is_bit_identical(implementation, request):
    model, zero = implementation, Recipe.none(LAYERS)
    if hasattr(model.config, "vision_config"):
        inputs, mask = batch(ROWS), None
    else:
        embeds, mask = embedded(26, (3, 19), rows=2)
        inputs = {"inputs_embeds": embeds}
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        wanted = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        with fitprune.prune(model, zero, visual_mask=mask) as trace:
            output = model(**inputs, output_hidden_states=True)
            generated = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(output.logits, plain.logits)
    assert all(map(torch.equal, output.hidden_states, plain.hidden_states))
    assert torch.equal(generated, wanted)
    assert len(trace) == LAYERS


# ---- the dense run with masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_pruned_is_the_masked_dense_run(kind, attention, images):
    model = tiny.decoder(kind)
    model.set_attn_implementation(attention)
    embeds, mask = embedded(26, *images)
    if images[0] == (0, 8):  # the first two touch: one run of True is one image
        images = spans_of(mask[0])
    dense = dense_pruned(model, {"inputs_embeds": embeds}, list(images), RECIPE)
    output, trace = forward(model, visual_mask=mask, inputs_embeds=embeds, output_hidden_states=True)
    assert sum(len(kept[0]) < 26 for kept in trace.alive) >= 3  # something was deleted
    same_as_dense(trace, output, dense)
    for layer in range(LAYERS - 1):  # the last one is recorded after the final norm
        kept = output.hidden_states[layer + 1][0]
        close(kept, dense.hidden[layer][trace.alive[layer][0]])


@pytest.mark.parametrize("implementation", [("llava", name) for name in ATTENTIONS], indirect=True)
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_pruned_llava_is_the_masked_dense_run(implementation, row):
    inputs = ROWS[row]
    dense = dense_pruned(implementation, inputs, image_spans(inputs), RECIPE)
    output, trace = forward(implementation, **inputs)
    if "pixel_values" in inputs:
        same_as_dense(trace, output, dense)
        assert output.logits.shape[1] == inputs["input_ids"].shape[1] - 10 * len(image_spans(inputs))
    else:
        close(output.logits[0], dense.logits)


def test_nothing_left():
    """Images without text, and a recipe that deletes them whole."""
    embeds, mask = embedded(6, (0, 6), rows=2)
    for recipe in (Recipe.from_deletions([0, 0, 16, 0], visual_tokens=16), Recipe.step(layer=1, keep=0.0)):
        with pytest.raises(FitPruneError, match="nothing is left") as error:
            forward(tiny_llama(), recipe, mask, inputs_embeds=embeds)
        assert "\n" not in str(error.value)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_recipe_any_images(data):
    model = tiny_llama()
    length, gap = data.draw(st.integers(6, 30)), st.integers(0, 6)
    images, at = [], data.draw(gap)
    while at + 1 < length and len(images) < 3:
        end = data.draw(st.integers(at + 1, length))
        images.append((at, end))
        at = end + 1 + data.draw(gap)
    left, counts = 16, []
    for _ in range(LAYERS):
        counts.append(data.draw(st.integers(0, left)))
        left -= counts[-1]
    recipe = Recipe.from_deletions(counts, visual_tokens=16)
    embeds, mask = embedded(length, *images, seed=data.draw(st.integers(0, 99)))
    dense = dense_pruned(model, {"inputs_embeds": embeds}, images, recipe)
    if all(mask[0]) and recipe.alive(length)[-1] == 0:
        with pytest.raises(FitPruneError, match="nothing is left"):
            forward(model, recipe, visual_mask=mask, inputs_embeds=embeds)
        return
    output, trace = forward(model, recipe, visual_mask=mask, inputs_embeds=embeds)
    if images:
        same_as_dense(trace, output, dense)
    else:
        close(output.logits[0], dense.logits)
        assert len(trace) == 0


_llama = None


def tiny_llama():
    global _llama
    _llama = _llama or tiny.llama()
    return _llama


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", [("llava", name) for name in ATTENTIONS], indirect=True)
def test_batch_is_its_rows(implementation, side):
    """Ragged counts, one to two images, a text-only row, padding on either side."""
    inputs = batch(ROWS, side)
    width = inputs["input_ids"].shape[1]
    output, trace = forward(implementation, **inputs)
    for number, row in enumerate(ROWS):
        shift = width - row["input_ids"].shape[1] if side == "left" else 0
        dense = dense_pruned(implementation, row, image_spans(row), RECIPE)
        same_as_dense(trace, output, dense, number, shift)
    assert output.logits.shape[1] == max(len(row) for row in trace.alive[-1])  # no column more than needed


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("implementation", BOTH, indirect=True)
def test_ragged_visual_counts_by_mask(implementation, side):
    """Any number of visual tokens per row, also where the image itself is padded."""
    width, spans = 30, [(4, 20), (2, 7), (10, 28), (0, 0)]
    sizes = [24, 30, 29, 12] if side else [30] * 4
    embeds, mask = torch.zeros(4, width, tiny.HIDDEN), torch.zeros(4, width, dtype=torch.bool)
    attention_mask, singles, shifts = torch.zeros(4, width, dtype=torch.long), [], []
    for row, ((start, end), size) in enumerate(zip(spans, sizes, strict=True)):
        shift = width - size if side == "left" else 0
        here = embedded(size, seed=row)[0]
        embeds[row, shift : shift + size], attention_mask[row, shift : shift + size] = here[0], 1
        mask[row, shift + start : shift + end] = True
        singles.append(here)
        shifts.append(shift)
    mask[3] = attention_mask[3] == 0  # the caller may call padding visual: it is padding
    inputs = {"inputs_embeds": embeds, "attention_mask": attention_mask} if side else {"inputs_embeds": embeds}
    output, trace = forward(implementation, visual_mask=mask, **inputs)
    for row, (here, shift) in enumerate(zip(singles, shifts, strict=True)):
        images = [spans[row]] if row < 3 else []
        dense = dense_pruned(implementation, {"inputs_embeds": here}, images, RECIPE)
        same_as_dense(trace, output, dense, row, shift)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch(data):
    """Rows of any length, with any images, padded on either side, any recipe; then a decoding step and two more."""
    model, rows, left = tiny_llama(), data.draw(st.integers(1, 4)), data.draw(st.booleans())
    lengths = [data.draw(st.integers(3, 26)) for _ in range(rows)]
    width = max(lengths)
    counts = data.draw(st.lists(st.integers(0, 8), min_size=LAYERS, max_size=LAYERS).filter(lambda c: sum(c) <= 16))
    recipe = Recipe.from_deletions(counts, visual_tokens=16)
    embeds, mask = torch.zeros(rows, width, tiny.HIDDEN), torch.zeros(rows, width, dtype=torch.bool)
    real, singles = torch.zeros(rows, width, dtype=torch.long), []
    for row, length in enumerate(lengths):
        shift = width - length if left else 0
        ends = sorted(data.draw(st.lists(st.integers(0, length - 1), max_size=4, unique=True)))
        visual = torch.zeros(length, dtype=torch.bool)
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            visual[start:end] = True
        here = embedded(length, seed=data.draw(st.integers(0, 99)))[0]
        embeds[row, shift : shift + length], real[row, shift : shift + length] = here[0], 1
        mask[row, shift : shift + length] = visual
        singles.append((here, visual, shift))
    positions, cache = (real.cumsum(1) - 1).clamp(min=0), DynamicCache()
    steps = torch.arange(3 * rows).view(rows, 3) + 5
    real = torch.nn.functional.pad(real, (0, 3), value=1)
    after = positions[:, -1:] + torch.arange(1, 4)
    model.set_attn_implementation(data.draw(st.sampled_from(ATTENTIONS)))
    given_mask = {} if bool(real.all()) and data.draw(st.booleans()) else {"attention_mask": real}

    def more(first, last):
        cut = {name: value[:, : width + last] for name, value in given_mask.items()}
        ids, where = steps[:, first:last], after[:, first:last]
        return model(input_ids=ids, position_ids=where, **pass_cache(model, cache), **cut).logits

    with torch.no_grad(), fitprune.prune(model, recipe, visual_mask=mask) as trace:
        cut = {name: value[:, :width] for name, value in given_mask.items()}
        output = model(inputs_embeds=embeds, position_ids=positions, **pass_cache(model, cache), **cut)
        decoded = torch.cat([more(0, 1), more(1, 3)], dim=1)
    model.set_attn_implementation("sdpa")
    for row, (here, visual, shift) in enumerate(singles):
        dense = dense_pruned(model, {"inputs_embeds": here}, spans_of(visual), recipe)
        if mask.any():
            same_as_dense(trace, output, dense, row, shift)
        new = model.get_input_embeddings()(steps[row])[None].detach()
        whole = {"inputs_embeds": torch.cat([here, new], dim=1)}
        close(decoded[row], dense_pruned(model, whole, [], None, removed=dense.removed).logits[-3:])


def test_dropped_padding_moves_images(llava):
    """A row whose padding goes faster than its own tokens: its image comes to stand before any image of the batch."""
    rows = [prompt(30, "image", 1, "image", 3, seed=1), prompt("image", 18, seed=2)]
    inputs = batch(rows)
    output, trace = forward(llava, **inputs)
    for number, row in enumerate(rows):
        shift = inputs["input_ids"].shape[1] - row["input_ids"].shape[1]
        same_as_dense(trace, output, dense_pruned(llava, row, image_spans(row), RECIPE), number, shift)


def test_padding_is_never_looked_at(llava):
    inputs = batch(ROWS)
    poisoned = {**inputs, "input_ids": inputs["input_ids"].clone()}
    poisoned["input_ids"][inputs["attention_mask"] == 0] = 7  # other padding, same answer
    output, trace = forward(llava, **inputs)
    other, again = forward(llava, **poisoned)
    for row in range(len(ROWS)):
        real = trace.positions[row] >= 0
        close(output.logits[row][real], other.logits[row][real], atol=1e-5)
    assert [[r.tolist() for r in rows] for rows in trace.alive] == [[r.tolist() for r in rows] for rows in again.alive]


# ---- cutting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_inside_is_exit(kind):
    model = tiny.decoder(kind)
    embeds, mask = embedded(28, (2, 18), (20, 24), rows=2)
    inside, trace = forward(model, visual_mask=mask, inputs_embeds=embeds)
    with tiny.cut_at_exit():
        outside, other = forward(model, visual_mask=mask, inputs_embeds=embeds)
    close(inside.logits, outside.logits, atol=1e-5)
    for layer in range(LAYERS):
        assert all(map(torch.equal, trace.alive[layer], other.alive[layer]))
        held, there = cache_in(inside).layers[layer], cache_in(outside).layers[layer]
        close(held.keys, there.keys, atol=1e-5)


def rows_of(model, *names):
    """Rows that come out of these parts of each layer, in order of their calls, and what stops listening."""
    rows, hooks = [], []
    for layer in find_decoder(model).layers:
        for name in names:
            part = layer.get_submodule(name)
            hooks.append(part.register_forward_hook(lambda _m, _a, out: rows.append(out.shape[1])))
    return rows, lambda: [hook.remove() for hook in hooks]


def test_what_follows_attention_is_spared_inside(llama):
    """A deleted token pays for its layer's queries, keys, values and attention and for nothing after."""
    embeds, mask = embedded(26, (3, 19))
    rows, stop = rows_of(llama, "self_attn.q_proj", "self_attn.o_proj", "mlp")
    forward(llama, visual_mask=mask, inputs_embeds=embeds)
    stop()
    assert rows == [26, 23, 23, 23, 23, 23, 23, 18, 18, 18, 16, 16]


@pytest.mark.parametrize("recipe", [RECIPE, Recipe.from_deletions([3, 0, 4, 0], visual_tokens=16)])
def test_the_last_layer_carries_on_only_what_is_read(llama, recipe):
    embeds, mask = embedded(26, (3, 19), rows=2)
    whole, trace = forward(llama, recipe, visual_mask=mask, inputs_embeds=embeds)
    left = trace.positions.shape[1]
    for reads in (1, 5):
        rows, stop = rows_of(llama, "self_attn.o_proj", "mlp")
        short, again = forward(llama, recipe, visual_mask=mask, inputs_embeds=embeds, logits_to_keep=reads)
        assert rows[-2:] == [reads, reads]
        rows.clear()
        seen, _ = forward(llama, recipe, visual_mask=mask, inputs_embeds=embeds, logits_to_keep=reads, output_hidden_states=True)
        stop()
        assert rows[-2:] == [left, left]  # somebody looks at all of them
        assert torch.equal(trace.positions, again.positions)
        close(short.logits, whole.logits[:, -reads:])
        close(seen.logits, short.logits)
        for ours, theirs in zip(cache_in(short).layers, cache_in(whole).layers, strict=True):
            close(ours.keys, theirs.keys)


def test_generate_reads_one_column_of_the_last_layer(llava):
    inputs = batch(ROWS)
    rows, stop = rows_of(llava, "mlp")
    with torch.no_grad(), fitprune.prune(llava, RECIPE) as trace:
        llava.generate(**inputs, max_new_tokens=1, do_sample=False)
    stop()
    assert rows[-1] == 1
    assert rows[-2] == max(map(len, trace.alive[-2]))


def test_caches_hold_what_enters(llama):
    embeds, mask = embedded(26, (3, 19))
    output, _ = forward(llama, visual_mask=mask, inputs_embeds=embeds)
    assert [layer.get_seq_length() for layer in cache_in(output).layers] == [26, 23, 23, 18]


# ---- more deleted, fewer kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["fitprune", "cross", "self", "random"])
def test_a_higher_ratio_keeps_a_subset_in_the_layer_that_cuts(llama, score):
    embeds, mask = embedded(30, (3, 27))
    before = None
    for keep in (1.0, 0.9, 0.75, 0.5, 0.3, 0.1, 0.0):
        _, trace = forward(llama, Recipe.step(layer=1, keep=keep), mask, score=score, inputs_embeds=embeds)
        kept = set(trace.visual[-1][0].tolist())
        assert before is None or kept < before
        before = kept
    assert not before


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=LAYERS, max_size=LAYERS), st.integers(0, LAYERS - 1))
def test_a_higher_ratio_never_keeps_more(counts, layer):
    if sum(counts) > 15:
        return
    more = [*counts]
    more[layer] += 1
    embeds, mask = embedded(24, (2, 18))
    kept = []
    for recipe in (counts, more):
        _, trace = forward(tiny_llama(), Recipe.from_deletions(recipe, visual_tokens=16), mask, inputs_embeds=embeds)
        kept.append([len(rows[0]) for rows in trace.visual])
    assert all(b <= a for a, b in zip(*kept, strict=True))
    assert sum(kept[1]) < sum(kept[0])


# ---- nothing to prune --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", [("llava", name) for name in ATTENTIONS], indirect=True)
def test_text_only_prompts_are_untouched(implementation):
    inputs = batch([prompt(9, seed=3), prompt(5, seed=4)])
    with torch.no_grad():
        wanted = implementation(**inputs)
        tokens = implementation.generate(**inputs, max_new_tokens=5, do_sample=False)
        with fitprune.prune(implementation, RECIPE) as trace:
            output = implementation(**inputs)
            assert torch.equal(implementation.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)
    assert torch.equal(output.logits, wanted.logits)
    assert len(trace) == 0
    assert not fitprune.decoder.cache.is_pruned(cache_in(output))


# ---- other ways in -----------------------------------------------------------------------------------------------


def test_bare_decoder_and_causal_model_agree(llama):
    embeds, mask = embedded(26, (3, 19), rows=2)
    whole, trace = forward(llama, visual_mask=mask, inputs_embeds=embeds)
    with torch.no_grad(), fitprune.prune(llama.model, RECIPE, visual_mask=mask) as bare:
        hidden = llama.model(inputs_embeds=embeds, **pass_cache(llama.model, DynamicCache())).last_hidden_state
        assert torch.equal(llama.lm_head(hidden), whole.logits)
    assert torch.equal(bare.positions, trace.positions)


def test_positional_arguments(llava):
    row = ROWS[0]
    keyword, _ = forward(llava, **row)
    with torch.no_grad(), fitprune.prune(llava, RECIPE):
        positional = llava(row["input_ids"], row["pixel_values"])
    assert torch.equal(positional.logits, keyword.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_precision(dtype, attention):
    model = tiny.llava()
    model.set_attn_implementation(attention)
    _, exact = forward(model, **batch(ROWS))
    model = model.to(dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch(ROWS).items()}
    output, trace = forward(model, **inputs)
    assert output.logits.dtype == dtype
    assert bool(output.logits.isfinite().all())
    for ours, theirs in zip(trace.visual[0], exact.visual[0], strict=True):  # the first cut, a few ranks apart at most
        assert len(ours) == len(theirs)
        assert len(set(ours.tolist()) & set(theirs.tolist())) >= 0.8 * len(theirs)
    with torch.no_grad(), fitprune.prune(model, RECIPE):
        assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 4


def test_switching_attention_inside_the_block(llama):
    embeds, mask = embedded(26, (3, 19))
    with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask) as trace:
        logits, kept = [], []
        for name in ("sdpa", "eager", "sdpa"):
            llama.set_attn_implementation(name)
            logits.append(llama(inputs_embeds=embeds).logits)
            kept.append(trace.positions)
    close(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(kept[0], kept[1])
