"""The support of test_vlms.py, checked by itself: models run, inputs are what they say, and the oracle is the model.

Nothing here uses fitprune, so a fault of the support cannot hide behind one of the product, nor the other way round.

    pytest tests/decoder/test_vlm_support.py
"""

import itertools

import oracle
import pytest
import tiny
import torch
import vlms
from vlms import IMAGE, SPECIAL, VIDEO

FAMILIES = vlms.available()
ONE, TWO, ADJACENT, CLIP = [4, "image", 5], [3, "image", 2, "image", 4], [2, "image", "image", 3], [3, "video", 4]


@pytest.fixture(params=map(vlms.param, FAMILIES))
def family(request):
    model = FAMILIES[request.param].model()
    model.set_attn_implementation("eager")
    yield FAMILIES[request.param]
    model.set_attn_implementation("sdpa")


def rows_of(family):
    return [ONE, TWO, ADJACENT, *([CLIP] if family.videos else [])]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs.call).logits


def test_positions_are_those_of_visual_tokens(family):
    for row in rows_of(family):
        for padding in ("left", "right", None):
            inputs = family.inputs([row, [1]] if padding else [row], padding)
            ids = inputs.call["input_ids"]
            assert torch.equal(inputs.visual, (ids == IMAGE) | (ids == VIDEO))
            found = inputs.visuals[0]
            for one in found:
                assert len(one.tokens) >= 4
                inner = torch.cat([one.tokens, one.frame]).sort().values
                assert inner.tolist() == list(range(one.tokens[0], one.tokens[-1] + 1))
                assert sum(end - start for start, end in one.runs) == len(one.tokens)
            assert all(a.tokens[-1] < b.tokens[0] for a, b in itertools.pairwise(found))
            assert not (inputs.asks & inputs.visual).any()


def test_the_oracle_without_deletions_is_the_model(family):
    model = family.model()
    for row in rows_of(family):
        inputs = family.inputs([row])
        plain = logits(model, inputs)
        assert plain.isfinite().all()
        dense = oracle.masked_dense(model, inputs)
        assert (dense.logits - plain).abs().max() <= (1e-4 if family.recurrent else 1e-6)
        assert dense.survivors[0].tolist() == list(range(plain.shape[1]))
        assert model.config.get_text_config()._attn_implementation == "eager"
        assert torch.equal(logits(model, inputs), plain)  # nothing is left behind


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_padded_batch_gives_each_row_its_own_logits(family, padding):
    if family.absolute and padding == "left":
        pytest.skip("this class counts padding as positions in forward")
    model = family.model()
    for rows in [rows_of(family)] if family.mixes else [[ONE, TWO], [CLIP, [2, *CLIP]]]:
        batch = family.inputs(rows, padding)
        together = logits(model, batch)
        dense = oracle.masked_dense(model, batch).logits
        for at, row in enumerate(rows):
            alone = logits(model, family.inputs([row]))[0]
            assert (together[at][batch.real[at]] - alone).abs().max() < 1e-4
            assert (dense[at][batch.real[at]] - alone).abs().max() < 1e-4


def test_greedy_generation_is_the_oracle_s_step_by_step(family):
    model, inputs = family.model(), family.inputs([ONE])
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        sequence = model.generate(**inputs.call, max_new_tokens=6, do_sample=False, suppress_tokens=SPECIAL)
        start = inputs.real.shape[1]
        dense = oracle.masked_dense(model, inputs.continued(sequence[:, start:])).logits[0, start - 1 : -1]
        dense[:, SPECIAL] = -torch.inf
        assert sequence[0, start:].tolist() == dense.argmax(-1).tolist()


def test_received_attention_is_that_of_the_maps(family):
    """The oracle's sums against loops over the maps that the model itself gives out."""
    if not family.shows_maps:
        pytest.skip("this class does not run with output_attentions")
    model, inputs = family.model(), family.inputs([TWO])
    with torch.no_grad():
        maps = model(**inputs.call, output_attentions=True).attentions
    got = [one for one in oracle.received(model, inputs) if one is not None]
    maps = [one for one in maps if one is not None]
    assert len(got) == len(maps) == len(oracle.decoder_of(model).layers) - len(family.recurrent)
    text = [at for at in range(inputs.real.shape[1]) if inputs.asks[0, at]]
    for (cross, intra), weights in zip(got, maps, strict=True):
        for one in inputs.visuals[0]:
            own = one.tokens.tolist()
            for key in own:
                assert cross[0, key] == pytest.approx(sum(weights[0, :, query, key].max().item() for query in text), abs=1e-5)
                assert intra[0, key] == pytest.approx(sum(weights[0, :, query, key].max().item() for query in own), abs=1e-5)


def test_what_a_deletion_reaches(family):
    model, inputs = family.model(), family.inputs([TWO])
    plain, last = logits(model, inputs)[0], len(oracle.decoder_of(model).layers) - 1
    gone = inputs.visuals[0][1].tokens[1:4]
    nothing = oracle.masked_dense(model, inputs, [[[]]] * last + [[gone]])
    if last not in family.recurrent:
        assert (nothing.logits[0] - plain).abs().max() < 1e-5  # no later layer misses them
    early = oracle.masked_dense(model, inputs, [[[]], [gone]])
    assert early.survivors[0].tolist() == [at for at in range(len(plain)) if at not in gone]
    changed = (early.logits[0] - plain).abs().amax(-1) > 1e-3
    assert changed[-1]  # the last text sees it
    if not family.both_ways:
        assert not changed[: inputs.visuals[0][1].tokens[0]].any()  # nothing before the image does
    assert (oracle.masked_dense(model, inputs, [[[]], [[]], [gone]]).logits[0] - early.logits[0]).abs().max() > 1e-4 or family.recurrent


def test_selection_goes_image_by_image(family):
    model, inputs = family.model(), family.inputs([TWO, ONE], "right")
    deletes = next(layer for layer in range(1, 9) if layer not in family.recurrent)

    class Counts:
        @staticmethod
        def deletions(tokens, layers):
            return [tokens // 3 if layer == deletes else 0 for layer in range(layers)]

    dense = oracle.select(model, inputs, Counts)
    for row, visuals in enumerate(inputs.visuals):
        for one in visuals:
            removed = dense.removed[row, one.tokens] == deletes
            assert removed.sum() == len(one.tokens) // 3
            cross, intra = (one_[row, one.tokens] for one_ in dense.received[deletes])
            assert (cross * intra)[removed].max() <= (cross * intra)[~removed].min()
    assert (dense.removed[~inputs.visual] == oracle.NEVER).all()
    again = oracle.masked_dense(model, inputs, [[(row == layer).nonzero().flatten() for row in dense.removed] for layer in range(4)])
    assert torch.equal(again.logits, dense.logits)


def test_two_oracles_agree(llava):
    """This one and tiny.py's, which masks by hooks on layers, on a LLaVA with deletions from its first layer on."""
    call = tiny.prompt(3, "image", 2, "image", 4)
    spans = [(3, 19), (21, 37)]
    real = torch.ones_like(call["input_ids"], dtype=torch.bool)
    visuals = [[vlms.Visual("image", torch.arange(*span), torch.tensor([], dtype=torch.long)) for span in spans]]
    dense = oracle.select(llava, vlms.Inputs(call, visuals, real), tiny.RECIPE)
    other = tiny.dense_pruned(llava, call, spans, tiny.RECIPE)
    assert torch.equal(dense.removed[0], other.removed)
    assert (dense.logits[0] - other.logits).abs().max() < 1e-5
