"""The laws of pruning, on generation: caches, beams, turns, turns taken by several generations, threads, sampling."""

import threading

import pytest
import tiny
import torch
from test_prune import ATTENTIONS, ROWS, close, image_spans
from tiny import LAYERS, NEVER, RECIPE, batch, dense_pruned, embedded, prompt
from transformers import DynamicCache

import fitprune
from fitprune import Recipe
from fitprune.decoder import cache as kv
from fitprune.decoder.upstream import pass_cache

GREEDY = {"do_sample": False, "max_new_tokens": 6}
LLAVAS = [("llava", name) for name in ATTENTIONS]
MANY = Recipe.from_deletions([2, 6, 0, 5], visual_tokens=16)


def removed_of(trace, row, shift, length):
    """[length] layer that deletes each token of a row, from a trace."""
    removed = torch.full((length,), NEVER)
    for layer in reversed(range(len(trace))):
        kept = {int(at) - shift for at in trace.alive[layer][row]}
        for at in range(length):
            if at not in kept:
                removed[at] = layer
    return removed


def recomputed(model, row, tokens, recipe=RECIPE):
    """Logits of each new token, by dense recomputation of everything with masks, and no cache at all."""
    dense = dense_pruned(model, row, image_spans(row), recipe)
    length = row["input_ids"].shape[1]
    whole = {**row, "input_ids": torch.cat([row["input_ids"], tokens[None]], dim=1)}
    again = dense_pruned(model, whole, [], None, removed=dense.removed)
    return again.logits[length - 1 : -1] if len(tokens) else again.logits[length:length]


# ---- decoding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", LLAVAS, indirect=True)
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["single", "ragged"])
@pytest.mark.parametrize("recipe", [RECIPE, MANY], ids=["few", "many"])
def test_cached_greedy_decoding_is_recomputation(implementation, rows, recipe):
    inputs = batch(rows)
    if len(rows) == 1:
        del inputs["attention_mask"]
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), fitprune.prune(implementation, recipe):
        out = implementation.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    for number, row in enumerate(rows):
        tokens = out.sequences[number, width:]
        wanted = recomputed(implementation, row, tokens, recipe)
        close(torch.stack([step[number] for step in out.logits]), wanted)
        assert tokens.tolist() == wanted.argmax(-1).tolist()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_decoding_by_hand_for_every_decoder(kind, attention):
    model = tiny.decoder(kind)
    model.set_attn_implementation(attention)
    embeds, mask = embedded(24, (3, 19))
    new = torch.tensor([5, 9, 31, 2])
    dense = dense_pruned(model, {"inputs_embeds": embeds}, [(3, 19)], RECIPE)
    whole = torch.cat([embeds, model.get_input_embeddings()(new)[None]], dim=1).detach()
    wanted = dense_pruned(model, {"inputs_embeds": whole}, [], None, removed=dense.removed).logits[24:]
    cache = DynamicCache()
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        model(inputs_embeds=embeds, **pass_cache(model, cache))
        one = model(input_ids=new[None, :1], **pass_cache(model, cache)).logits[0]
        rest = model(input_ids=new[None, 1:], **pass_cache(model, cache)).logits[0]  # several tokens at once
    close(torch.cat([one, rest]), wanted)
    assert [layer.get_seq_length() for layer in cache.layers] == [28, 25, 25, 20]


@pytest.mark.parametrize("implementation", LLAVAS, indirect=True)
def test_batch_generates_what_its_rows_do(implementation):
    inputs = batch(ROWS)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), fitprune.prune(implementation, RECIPE):
        together = implementation.generate(**inputs, **GREEDY)
        for number, row in enumerate(ROWS):
            alone = implementation.generate(**row, **GREEDY)
            assert together[number, width:].tolist() == alone[0, row["input_ids"].shape[1] :].tolist()


# ---- beams -------------------------------------------------------------------------------------------------------


def beams_see_their_images(model, row):
    """transformers 5.0 repeats pixel values image by image, so that beams of a prompt with two images mix them up."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model.generate(**row, do_sample=False, max_new_tokens=1, num_beams=2)
    hook.remove()
    return torch.equal(seen[0][0], seen[0][1])


@pytest.mark.parametrize("implementation", LLAVAS, indirect=True)
def test_beams_batched_are_beams_one_by_one(implementation):
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 3, "return_dict_in_generate": True, "output_scores": True}
    inputs = batch(ROWS)
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), fitprune.prune(implementation, RECIPE) as trace:
        together = implementation.generate(**inputs, **beams)
        assert len(trace.alive[0]) == 3 * len(ROWS)  # a row per beam
        for number, row in enumerate(ROWS):
            alone = implementation.generate(**row, **beams)
            mine = slice(3 * number, 3 * number + 3)
            assert together.sequences[mine, width:].tolist() == alone.sequences[:, row["input_ids"].shape[1] :].tolist()
            close(together.sequences_scores[mine], alone.sequences_scores)
    # every beam's score is the mean log-probability that dense recomputation with masks gives its tokens
    for number, row in enumerate(ROWS):
        if len(image_spans(row)) > 1 and not beams_see_their_images(implementation, row):
            continue
        for beam in range(3 * number, 3 * number + 3):
            tokens = together.sequences[beam, width:]
            chosen = recomputed(implementation, row, tokens).log_softmax(-1).gather(1, tokens[:, None])
            close(together.sequences_scores[beam], chosen.mean())


@pytest.mark.parametrize("side", ["one", "left"])
def test_embeds_and_mask_generate_with_beams(llama, side):
    """Bare LlamaForCausalLM: rows of `visual_mask` repeat with the beams."""
    embeds, mask = embedded(24, (3, 19), rows=2)
    inputs = {"inputs_embeds": embeds}
    if side == "left":  # the second row is shorter
        inputs["attention_mask"] = torch.ones(2, 24, dtype=torch.long)
        inputs["attention_mask"][1, :3] = 0
    kinds = ({**GREEDY}, {**GREEDY, "num_beams": 3}, {**GREEDY, "num_beams": 2, "num_return_sequences": 2})
    for how in kinds:
        with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
            together = llama.generate(**inputs, **how)
        for row in range(2):
            first = 3 if side == "left" and row == 1 else 0
            with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask[row : row + 1, first:]):
                alone = llama.generate(inputs_embeds=embeds[row : row + 1, first:], **how)
            each = how.get("num_return_sequences", 1)
            assert torch.equal(together[row * each : (row + 1) * each], alone)


# ---- sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}, {"num_beams": 2}])
def test_sampling_with_a_seed(llava, options):
    outputs = []
    for _ in range(2):
        torch.manual_seed(11)
        with torch.no_grad(), fitprune.prune(llava, RECIPE):
            outputs.append(llava.generate(**batch(ROWS), do_sample=True, max_new_tokens=5, **options))
    assert torch.equal(*outputs)
    assert outputs[0].shape[0] == len(ROWS) * options.get("num_return_sequences", 1)


# ---- several generations at once ---------------------------------------------------------------------------------


def step_by_hand(model, row):
    """A generator that yields after every forward."""
    cache, given, tokens = DynamicCache(), row, []
    for _ in range(6):
        logits = model(**given, **pass_cache(model, cache)).logits
        tokens.append(int(logits[0, -1].argmax()))
        given = {"input_ids": torch.tensor([tokens[-1:]])}
        yield tokens


def test_interleaved_generations_do_not_meet(llava):
    rows = [ROWS[0], ROWS[1], ROWS[3], ROWS[2]]
    with torch.no_grad(), fitprune.prune(llava, MANY):
        wanted = [list(step_by_hand(llava, row))[-1] for row in rows]
        steps = [step_by_hand(llava, row) for row in rows]
        taking_turns = list(zip(*steps, strict=True))[-1]
    assert list(taking_turns) == wanted


def test_threads_do_not_meet(llama):
    """Batches of one to three rows at once (a LLaVA's vision tower is not safe for threads in transformers 5.0)."""
    (embeds, mask), answers = embedded(24, (3, 19), rows=3), {}
    with torch.no_grad(), fitprune.prune(llama, MANY, visual_mask=mask[:1]) as trace:

        def answer(number):
            with torch.no_grad():
                return llama.generate(inputs_embeds=embeds[: number + 1] * (number + 1), **GREEDY).tolist()

        wanted = [answer(number) for number in range(3)]

        def work(number):
            answers[number] = [answer(number) for _ in range(8)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(trace) == LAYERS  # of one of them, not of a mixture
        assert [len(rows[0]) for rows in trace.alive] == [22, 16, 16, 11]
    assert answers == {number: [wanted[number]] * 8 for number in range(3)}


# ---- later turns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", LLAVAS, indirect=True)
@pytest.mark.parametrize("new", [(4, "image", 5), ("image", 2, "image", 3), (7,)], ids=["image", "two", "text"])
def test_a_later_turn_brings_an_image(implementation, new):
    """Unpadded, through generate, as a chat does it: the whole conversation's tokens, the new images' pixels."""
    first, turn = prompt(3, "image", 5, seed=5), prompt(*new, seed=6)
    how = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), fitprune.prune(implementation, RECIPE) as trace:
        cache = DynamicCache()
        before = implementation.generate(**first, **pass_cache(implementation, cache), **how)
        removed = removed_of(trace, 0, 0, first["input_ids"].shape[1])
        past = cache.get_seq_length()
        ids = torch.cat([before.sequences, turn["input_ids"]], dim=1)
        pixels = {name: value for name, value in turn.items() if name == "pixel_values"}
        after = implementation.generate(input_ids=ids, **pass_cache(implementation, cache), **pixels, **how)
    length = ids.shape[1]
    whole = {"input_ids": ids, "pixel_values": torch.cat([first["pixel_values"], *pixels.values()])}
    spans = [span for span in image_spans(whole) if span[0] >= past]
    dense = dense_pruned(implementation, whole, spans, RECIPE, start=past, removed=removed)
    if spans:
        for layer in range(LAYERS):
            kept = [at for at in dense.alive(layer) if at >= past]
            assert trace.alive[layer][0].tolist() == kept
    whole["input_ids"] = after.sequences
    wanted = dense_pruned(implementation, whole, [], None, removed=dense.removed).logits[length - 1 : -1]
    close(torch.stack([step[0] for step in after.logits]), wanted)
    assert after.sequences[0, length:].tolist() == wanted.argmax(-1).tolist()


@pytest.mark.parametrize("implementation", LLAVAS, indirect=True)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_later_turn_in_a_padded_batch(implementation, side):
    """Both turns padded, ragged counts in both, one row without a new image; then a decoding step."""
    firsts = [prompt(3, "image", 5, seed=5), prompt(6, "image", 1, "image", 2, seed=6), prompt(4, seed=7)]
    turns = [prompt(2, "image", 4, seed=8), prompt(5, seed=9), prompt("image", 1, "image", 3, seed=10)]
    one, two = batch(firsts, side), batch(turns, side)
    mask = torch.cat([one["attention_mask"], two["attention_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    width, cache = one["input_ids"].shape[1], DynamicCache()
    step = torch.tensor([[7], [8], [9]])
    with torch.no_grad(), fitprune.prune(implementation, RECIPE) as trace:
        implementation(**one, position_ids=positions[:, :width], **pass_cache(implementation, cache))
        removed = [removed_of(trace, row, pad(one, row), firsts[row]["input_ids"].shape[1]) for row in range(3)]
        output = implementation(
            input_ids=two["input_ids"], pixel_values=two["pixel_values"], attention_mask=mask,
            position_ids=positions[:, width:], **pass_cache(implementation, cache),
        )  # fmt: skip
        decoded = implementation(
            input_ids=step,
            attention_mask=torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1),
            position_ids=mask.sum(1, keepdim=True),
            **pass_cache(implementation, cache),
        )
    total = cache.get_seq_length()
    assert total == mask.shape[1] + 1
    for layer in range(1, LAYERS):  # the notes know where the new token stands
        columns, _ = kv.entries(cache, layer)
        assert columns[:, -1].tolist() == [total - 1] * 3
        assert columns.shape[1] == cache.layers[layer].get_seq_length() < total
    for row in range(3):
        past = firsts[row]["input_ids"].shape[1]
        shift = width + pad(two, row) - past  # where the row's second turn stands
        pixels = [part["pixel_values"] for part in (firsts[row], turns[row]) if "pixel_values" in part]
        whole = {"input_ids": torch.cat([firsts[row]["input_ids"], turns[row]["input_ids"]], dim=1)}
        if pixels:
            whole["pixel_values"] = torch.cat(pixels)
        spans = [span for span in image_spans(whole) if span[0] >= past]
        dense = dense_pruned(implementation, whole, spans, RECIPE, start=past, removed=removed[row])
        for layer in range(LAYERS):
            assert (trace.alive[layer][row] - shift).tolist() == [at for at in dense.alive(layer) if at >= past]
        where = trace.positions[row]
        close(output.logits[row][where >= 0], dense.logits[where[where >= 0] - shift])
        whole["input_ids"] = torch.cat([whole["input_ids"], step[row][None]], dim=1)
        wanted = dense_pruned(implementation, whole, [], None, removed=dense.removed).logits[-1]
        close(decoded.logits[row, -1], wanted)


def pad(inputs, row):
    """Padding columns on the left of a row."""
    return int(inputs["attention_mask"][row].argmax())
