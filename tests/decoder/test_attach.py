"""Attaching leaves an unmodified model unmodified: everything is taken back, also after an exception, also from accelerate."""

import copy
import inspect

import pytest
import tiny
import torch
from test_prune import ROWS, close
from tiny import LAYERS, RECIPE, batch, embedded
from transformers import AttentionInterface, DynamicCache

import fitprune
from fitprune.decoder import upstream
from fitprune.decoder.attach import attachment_of, find_decoder
from fitprune.decoder.block import read_block
from fitprune.decoder.upstream import attention_registry, pass_cache

MODELS = ["llama", "llava"]


def state(model):
    """Everything that attaching might touch, by identity where there is one."""
    out = {}
    for name, module in model.named_modules():
        out[name, "dict"] = {key: id(value) for key, value in module.__dict__.items() if not key.startswith("_forward")}
        out[name, "hooks"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
        out[name, "options"] = (len(module._forward_pre_hooks_with_kwargs), len(module._forward_hooks_with_kwargs))
        config = getattr(module, "config", None)
        out[name, "config"] = (id(config), getattr(config, "_attn_implementation", None), str(config))
        if name.endswith("self_attn"):
            functions = attention_registry(module)
            out[name, "registry"] = sorted(functions._global_mapping) + sorted(getattr(functions, "_local_mapping", {}))
    return out


def inputs_of(kind):
    if kind == "llava":
        return batch(ROWS), None
    embeds, mask = embedded(26, (3, 19))
    return {"inputs_embeds": embeds}, mask


@pytest.fixture(params=MODELS)
def case(request):
    model = request.getfixturevalue(request.param)
    inputs, mask = inputs_of(request.param)
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)  # transformers installs its own hooks at the first such call
    return model, inputs, mask


def test_everything_is_restored(case):
    model, inputs, mask = case
    before = state(model)
    with torch.no_grad():
        wanted = model(**inputs).logits
        with fitprune.prune(model, RECIPE, visual_mask=mask):
            assert state(model) != before
            assert model.config._attn_implementation == "sdpa"  # the model's own settings are never touched
            model(**inputs)
            model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
        assert state(model) == before
        assert torch.equal(model(**inputs).logits, wanted)


def test_everything_is_restored_after_an_exception(case):
    model, inputs, mask = case
    before = state(model)

    def failing(seen):
        if seen.layer:
            raise KeyError("a score of one's own, with a fault")
        return seen.received[0]

    def fails_in_the_block():
        with fitprune.prune(model, RECIPE, visual_mask=mask):
            raise KeyError("here")

    def fails_in_a_layer():
        with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask, score=failing):
            model(**inputs)

    for fails in (fails_in_the_block, fails_in_a_layer):
        with pytest.raises(KeyError):
            fails()
        assert state(model) == before


def test_an_exception_in_one_forward_does_not_hurt_the_next(case):
    model, inputs, mask = case
    broken = [True]

    def sometimes(seen):
        if broken[0] and seen.layer == 2:
            raise KeyError("once")
        return fitprune.scores.product(seen)

    with torch.no_grad():
        with fitprune.prune(model, RECIPE, visual_mask=mask):
            wanted = model(**inputs).logits
        with fitprune.prune(model, RECIPE, visual_mask=mask, score=sometimes):
            with pytest.raises(KeyError):
                model(**inputs)
            broken[0] = False
            assert torch.equal(model(**inputs).logits, wanted)


def test_lasting_attachment(case):
    model, inputs, mask = case
    before = state(model)
    handle = fitprune.attach(model, RECIPE, visual_mask=mask)
    assert attachment_of(model) is handle
    with torch.no_grad():
        model(**inputs)
    assert len(handle.trace) == LAYERS
    fitprune.detach(model)
    assert attachment_of(model) is None
    assert state(model) == before
    handle.detach()  # a second time, and of a model with nothing attached: nothing happens
    fitprune.detach(model)
    fitprune.detach(handle)
    assert state(model) == before


def test_nothing_is_patched_at_import_or_on_classes(llama):
    layer = type(llama.model.layers[0])
    forward = layer.forward
    with fitprune.prune(llama, RECIPE, visual_mask=torch.ones(1, 4, dtype=torch.bool)):
        assert layer.forward is forward
        assert not [name for name in AttentionInterface._global_mapping if "fitprune" in name]
    assert "fitprune" not in inspect.getsource(layer)


def test_hidden_states_and_attentions_can_be_asked_for(llama):
    embeds, mask = embedded(26, (3, 19))
    llama.set_attn_implementation("eager")
    try:
        with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
            output = llama(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True)
    finally:
        llama.set_attn_implementation("sdpa")
    assert [h.shape[1] for h in output.hidden_states] == [26, 23, 23, 18, 16]
    assert [a.shape[-1] for a in output.attentions] == [26, 23, 23, 18]  # what entered each layer


def test_find_decoder(llama, llava):
    assert find_decoder(llama) is llama.model
    assert find_decoder(llama.model) is llama.model
    assert find_decoder(llava) is llava.model.language_model
    assert find_decoder(llava.model) is llava.model.language_model


def test_the_state_goes_to_the_decoder_alone(llava):
    """transformers 5.24 hands a model's keyword arguments to its vision tower as well, which may take none that it does not know."""
    seen = []
    tower = llava.model.vision_tower
    hook = tower.register_forward_hook(lambda module, args, kwargs, output: seen.append(set(kwargs)), with_kwargs=True)
    with torch.no_grad(), fitprune.prune(llava, RECIPE) as trace:
        llava(**batch(ROWS))
    hook.remove()
    assert len(trace) == LAYERS
    assert seen
    assert all(upstream.STATE_KEY not in names for names in seen)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_under_either_name(llama, name):
    """The old name is taken from callers until transformers 5.40, the new one since 5.24; an empty cache is false as a truth value."""
    if name == "cache" and upstream.cache_argument(llama) != "cache":
        pytest.skip("this transformers does not know the name")
    embeds, mask = embedded(26, (3, 19))
    cache = DynamicCache()
    with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
        first = llama(inputs_embeds=embeds, **{name: cache}).logits
        second = llama(input_ids=torch.tensor([[4]]), **{name: cache}).logits
    assert [layer.get_seq_length() for layer in cache.layers] == [27, 24, 24, 19]
    assert (first.shape[1], second.shape[1]) == (16, 1)


# ---- accelerate --------------------------------------------------------------------------------------------------


def offloaded(model):
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def dispatched(model):
    from accelerate import dispatch_model

    names = {"lm_head": "cpu", "model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    names |= {f"model.layers.{index}": "cpu" for index in range(LAYERS)}
    return dispatch_model(model, names, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("place", [offloaded, dispatched])
def test_accelerates_hooks_stay(place):
    embeds, mask = embedded(26, (3, 19))

    def steps(model):
        """By hand: generate of transformers 5.0 does not know the device of an offloaded model."""
        cache = DynamicCache()
        logits = [model(inputs_embeds=embeds, **pass_cache(model, cache)).logits]
        return logits + [model(input_ids=torch.tensor([[n]]), **pass_cache(model, cache)).logits for n in (4, 7)]

    plain = tiny.llama()
    with torch.no_grad(), fitprune.prune(plain, RECIPE, visual_mask=mask) as trace:
        wanted, kept = steps(plain), trace.positions
    model = place(tiny.llama())
    assert any(hasattr(module, "_hf_hook") for module in model.modules())
    assert all(read_block(layer) is not None for layer in find_decoder(model).layers)  # still cut inside
    before = state(model)
    with torch.no_grad():
        dense = steps(model)
        with fitprune.prune(model, RECIPE, visual_mask=mask) as trace:
            for ours, theirs in zip(steps(model), wanted, strict=True):
                close(ours, theirs, atol=1e-6)
            assert torch.equal(trace.positions, kept)
            assert attachment_of(model) is not None
        assert state(model) == before
        assert all(map(torch.equal, steps(model), dense))


def test_a_split_over_devices_where_layers_move(tmp_path):
    """Half of the layers on disk: accelerate gives them their weights, and new mask objects, as they run."""
    from accelerate import dispatch_model

    embeds, mask = embedded(26, (3, 19), (20, 24), rows=2)
    mask[1, :9] = False  # ragged
    plain = tiny.llama()
    with torch.no_grad(), fitprune.prune(plain, RECIPE, visual_mask=mask):
        wanted = plain(inputs_embeds=embeds).logits
    names = {"lm_head": "cpu", "model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    names |= {f"model.layers.{index}": "disk" if index > 1 else "cpu" for index in range(LAYERS)}
    model = dispatch_model(tiny.llama(), names, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        close(model(inputs_embeds=embeds).logits, wanted, atol=1e-6)


def test_compiled_parts_stay_compiled(llava):
    """torch.compile of a layer's parts: traced again for shorter inputs, with the same result."""
    model, inputs = copy.deepcopy(llava), batch(ROWS)
    with torch.no_grad():
        with fitprune.prune(model, RECIPE) as trace:
            wanted, alive = model(**inputs).logits, trace.alive
        for layer in find_decoder(model).layers:
            layer.mlp.compile(backend="eager")
        with fitprune.prune(model, RECIPE) as trace:
            assert torch.equal(model(**inputs).logits, wanted)
            assert all(torch.equal(a, b) for ours, theirs in zip(trace.alive, alive, strict=True)
                       for a, b in zip(ours, theirs, strict=True))  # fmt: skip
