"""Recorded prefills. No GPU needed: a recorder that traces every operation with its constants stands in for a CUDA graph.

`make_fx` runs a prefill once and writes down the operations on tensors with all shapes and Python numbers baked in, as
a CUDA graph would; replaying them on other inputs shows whatever was taken from the host at recording time.
"""

import pytest
import tiny
import torch
from test_generate import GREEDY
from test_prune import ROWS, close
from tiny import IMAGE_TOKENS, RECIPE, batch, embedded, prompt
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import fitprune
from fitprune import FitPruneError, Recipe
from fitprune.decoder.graphs import BUCKET, Graphs
from fitprune.decoder.upstream import cache_in, pass_cache
from fitprune.errors import UnsupportedError
from fitprune.scores import SCORES


def traced(run, inputs):
    """Every operation of a run, replayed on what is in `inputs` by then."""
    program = make_fx(run)(inputs)
    return lambda: program(inputs)


@pytest.fixture
def graphs():
    return Graphs(4, recorder=traced)


@pytest.fixture(params=["sdpa", "eager"])
def model(request, llava):
    llava.set_attn_implementation(request.param)
    yield llava
    llava.set_attn_implementation("sdpa")


def alive(trace):
    return [[row.tolist() for row in rows] for rows in trace.alive]


RECORDED = [name for name in SCORES if name != "random"]  # which draws on the host, so that all devices draw the same


def check(model, inputs, graphs, recipe=RECIPE, **options):
    with torch.no_grad():
        with fitprune.prune(model, recipe, **options) as trace:
            wanted = model(**inputs)
            wanted_alive, wanted_positions = alive(trace), trace.positions
        with fitprune.prune(model, recipe, graphs=graphs, **options) as trace:
            for _ in range(2):  # as it is recorded, and replayed
                found = model(**inputs)
                assert alive(trace) == wanted_alive
                if "attention_mask" not in inputs:
                    assert torch.equal(trace.positions, wanted_positions)
            assert len(graphs.recordings) == 1
            return found, wanted


def real_columns(layer, padding):
    """Keys of a cache layer that are real tokens, row by row."""
    keys, found = layer.keys, []
    columns, valid = layer.entries(keys.shape[2]) if hasattr(layer, "entries") else (None, None)
    for row, missing in enumerate(padding):
        held = torch.arange(keys.shape[2], device=keys.device) if columns is None else columns[row]
        good = held >= missing
        found.append(keys[row][:, good if valid is None else good & valid[row]])
    return found


PROMPTS = {
    "one image": prompt(3, "image", 5, seed=1),
    "two images": prompt(7, "image", 4, "image", 3, seed=2),
    "no text before": prompt("image", 6, seed=4),
    "as long as a bucket": prompt(BUCKET - IMAGE_TOKENS - 3, "image", 3, seed=5),
    "one more": prompt(BUCKET - IMAGE_TOKENS - 2, "image", 3, seed=5),
}


@pytest.mark.parametrize("score", RECORDED)
@pytest.mark.parametrize("rows", [[0], [0, 1, 3]])
def test_every_score_is_recorded(model, graphs, score, rows):
    inputs = batch([ROWS[row] for row in rows])
    found, wanted = check(model, inputs, graphs, score=score)
    close(found.logits[:, -1], wanted.logits[:, -1])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_recorded_prefill_is_the_prefill(model, graphs, name):
    found, wanted = check(model, PROMPTS[name], graphs)
    close(found.logits, wanted.logits)
    for ours, theirs in zip(cache_in(found).layers, cache_in(wanted).layers, strict=True):
        close(ours.keys, theirs.keys)
        close(ours.values, theirs.values)


def test_length_and_place_of_the_image_are_data(llava, graphs):
    """One recording serves every prompt of a bucket whose image has as many tokens."""
    prompts = [prompt(*parts, seed=seed) for seed, parts in enumerate(
        [(3, "image", 5), (1, "image", 9), (7, "image", 2), ("image", 4), (9, "image", 1)])]  # fmt: skip
    with torch.no_grad():
        with fitprune.prune(llava, RECIPE) as trace:
            wanted = [(llava(**inputs).logits, alive(trace)) for inputs in prompts]
        with fitprune.prune(llava, RECIPE, graphs=graphs) as trace:
            found = [(llava(**inputs).logits, alive(trace)) for inputs in prompts]
            assert len(graphs.recordings) == 1
    for (ours, place), (theirs, there) in zip(found, wanted, strict=True):
        close(ours, theirs)
        assert place == there


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_generate_gives_the_same_tokens(model, graphs, mode):
    inputs = prompt(3, "image", 5, seed=1)
    with mode():
        with fitprune.prune(model, RECIPE):
            wanted = model.generate(**inputs, **GREEDY)
        with fitprune.prune(model, RECIPE, graphs=graphs):
            for _ in range(2):
                assert torch.equal(model.generate(**inputs, **GREEDY), wanted)
            beams = model.generate(**inputs, **GREEDY, num_beams=2)
        with fitprune.prune(model, RECIPE):
            assert torch.equal(model.generate(**inputs, **GREEDY, num_beams=2), beams)
    assert not graphs.recordings


@pytest.mark.parametrize("rows", [[0, 3], pytest.param([0, 1, 3], marks=pytest.mark.rest), [0, 0, 0]])
def test_padded_batches(model, graphs, rows):
    """Rows of different lengths and different numbers of images: padding is data as well."""
    inputs = batch([ROWS[row] for row in rows])
    found, wanted = check(model, inputs, graphs)
    close(found.logits[:, -1], wanted.logits[:, -1])
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    for ours, theirs in zip(cache_in(found).layers, cache_in(wanted).layers, strict=True):
        for a, b in zip(real_columns(ours, padding), real_columns(theirs, padding), strict=True):
            close(a, b)
    with torch.no_grad():
        with fitprune.prune(model, RECIPE):
            tokens = model.generate(**inputs, **GREEDY)
        with fitprune.prune(model, RECIPE, graphs=graphs):
            assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


def test_a_decoder_with_a_mask_and_without_text_after(llama, graphs):
    embeds, mask = embedded(26, (3, 19), rows=2)
    with torch.no_grad():
        with fitprune.prune(llama, RECIPE, visual_mask=mask) as trace:
            wanted, place = llama.model(inputs_embeds=embeds).last_hidden_state, alive(trace)
        with fitprune.prune(llama, RECIPE, visual_mask=mask, graphs=graphs) as trace:
            close(llama.model(inputs_embeds=embeds).last_hidden_state, wanted)
            assert alive(trace) == place


@pytest.mark.parametrize("kind", ["phi3", "granite"])
def test_layers_of_other_shapes(kind, graphs):
    embeds, mask = tiny.embedded(26, (3, 19), rows=2)
    check(tiny.decoder(kind), {"inputs_embeds": embeds}, graphs, visual_mask=mask)


def test_as_many_recordings_as_asked_for_the_least_recently_used_go(llava):
    graphs = Graphs(2, recorder=traced)
    short, long, longer = (prompt(3 + BUCKET * n, "image", 5, seed=n) for n in range(3))
    with torch.no_grad(), fitprune.prune(llava, RECIPE, graphs=graphs):
        llava(**short)
        llava(**long)
        (first, second) = graphs.recordings
        llava(**short)
        llava(**longer)
        assert first in graphs.recordings
        assert second not in graphs.recordings
        assert len(graphs.recordings) == 2
    assert not graphs.recordings


def test_what_cannot_be_recorded_runs_as_it_is(llava, graphs):
    inputs = prompt(3, "image", 5, seed=1)
    with torch.no_grad(), fitprune.prune(llava, RECIPE, graphs=graphs):
        assert llava(**inputs, output_hidden_states=True).hidden_states is not None
        llava(**inputs, use_cache=False)
        assert not graphs.recordings
        cache = DynamicCache()
        llava(**inputs, **pass_cache(llava, cache))
        assert len(graphs.recordings) == 1
        later = torch.tensor([[5, 6, 7]])
        llava(input_ids=later, **pass_cache(llava, cache))  # a later turn, text only
        again = prompt(2, "image", 2, seed=8)
        llava(**again, **pass_cache(llava, cache))  # and one with a picture
        assert len(graphs.recordings) == 1
    with fitprune.prune(llava, RECIPE, graphs=graphs):
        llava(**inputs)  # with gradients
        assert not graphs.recordings


def test_everything_is_taken_back(llava, graphs):
    decoder = llava.model.language_model
    before = dict(decoder.__dict__)
    handle = fitprune.attach(llava, RECIPE, graphs=graphs)
    assert decoder.forward is graphs
    handle.detach()
    assert decoder.__dict__.keys() == before.keys()


def test_a_model_on_the_cpu_is_refused_and_left_as_it_was(llava):
    with pytest.raises(UnsupportedError, match="one CUDA device"):
        fitprune.attach(llava, RECIPE, graphs=4)
    with fitprune.prune(llava, RECIPE):  # nothing is left attached
        pass


def test_a_score_that_asks_the_host_is_refused_in_words(llava):
    def fails(run, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match="leave graphs out"),
        fitprune.prune(llava, RECIPE, graphs=Graphs(1, recorder=fails)),
    ):
        llava(**prompt(3, "image", 5, seed=1))


@pytest.mark.parametrize("rows", [[0], [0, 1, 3]])
@pytest.mark.parametrize("score", RECORDED)
def test_no_number_comes_from_the_host_while_a_prefill_is_recorded(llava, score, rows):
    """Which `meta` lets pass: a tensor made of Python numbers is copied to the device, and that ends a recording."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "lift_fresh" in str(func) and args[0].numel():
                made.append(args[0])
            return func(*args, **(kwargs or {}))

    def watched(run, inputs):
        with Watch():
            torch.tensor([1])
            output = run(inputs)
        return lambda: output

    with torch.no_grad(), fitprune.prune(llava, RECIPE, graphs=Graphs(1, recorder=watched), score=score):
        llava(**batch([ROWS[row] for row in rows]))
    assert [tensor.tolist() for tensor in made] == [[1]]  # the one that shows that they are seen


@pytest.mark.parametrize("recipe", [RECIPE, Recipe.step(layer=1, keep=0.25), Recipe.none(tiny.LAYERS)])
@pytest.mark.parametrize("score", RECORDED)
def test_no_layer_has_a_word_with_the_host(on_meta, recipe, score):
    model, embeds = on_meta
    _, mask = embedded(26, (3, 19), (20, 23), rows=2)
    with torch.no_grad(), fitprune.prune(model, recipe, visual_mask=mask, score=score):
        hidden = model.model(inputs_embeds=embeds).last_hidden_state
    assert hidden.shape[1] == 26 - sum(sum(recipe.deletions(n, tiny.LAYERS)) for n in (16, 3))


@pytest.mark.parametrize("score", ["fitprune", "spread"])
def test_rows_that_delete_different_numbers_ask_the_host_nothing_either(on_meta, score):
    model, embeds = on_meta
    _, mask = embedded(26, (3, 19), rows=2)
    mask[1, 10:] = False
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask, score=score):
        assert model.model(inputs_embeds=embeds).last_hidden_state.shape[0] == 2


def test_a_number_of_graphs_that_is_none_is_an_error(llava):
    for wrong in (-1, 1.5, "8"):
        with pytest.raises(FitPruneError, match="graphs"):
            fitprune.attach(llava, RECIPE, graphs=wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[0], [0, 3]])
@pytest.mark.parametrize("score", RECORDED)
def test_on_a_gpu(rows, score):
    """What a real recording leaves: survivors, caches and tokens of the prefill that runs as it is."""
    model = tiny.llava().cuda()
    inputs = {name: tensor.cuda() for name, tensor in batch([ROWS[row] for row in rows]).items()}
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()

    def caches(output):
        return [real_columns(layer, padding) for layer in cache_in(output).layers]

    with torch.no_grad():
        with fitprune.prune(model, RECIPE, score=score) as trace:
            output = model(**inputs)
            wanted, wanted_alive = caches(output), alive(trace)
            tokens = model.generate(**inputs, **GREEDY)
        with fitprune.prune(model, RECIPE, graphs=2, score=score) as trace:
            for _ in range(3):  # recorded, then replayed
                found = model(**inputs)
                assert alive(trace) == wanted_alive
                close(found.logits[:, -1], output.logits[:, -1])
                for ours, theirs in zip(caches(found), wanted, strict=True):
                    for a, b in zip(ours, theirs, strict=True):
                        close(a, b)
            for _ in range(3):
                assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


@pytest.mark.gpu
def test_a_replay_on_a_gpu_reads_the_inputs_of_its_own_call():
    """One recording, several prompts: nothing of the call that was recorded is left in it."""
    model = tiny.llava().cuda()
    prompts = [{name: part.cuda() for name, part in prompt(*parts, seed=seed).items()}
               for seed, parts in enumerate([(3, "image", 5), (1, "image", 9), (7, "image", 2)])]  # fmt: skip
    with torch.no_grad():
        with fitprune.prune(model, RECIPE) as trace:
            wanted = [(model(**inputs).logits, alive(trace)) for inputs in prompts]
        with fitprune.prune(model, RECIPE, graphs=1) as trace:
            for inputs, (logits, place) in [*zip(prompts, wanted, strict=True)] * 2:
                close(model(**inputs).logits, logits)
                assert alive(trace) == place
