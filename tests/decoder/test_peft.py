"""PEFT's wrapper: a pruned model with adapters is the pruned model into which they are merged, and is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch

import fitprune
from fitprune.decoder.attach import attachment_of
from fitprune.decoder.upstream import unwrapped
from fitprune.errors import FitPruneError, UnsupportedError

peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INPUTS = [tiny.prompt(3, "image", 5), tiny.prompt(2, "image", "image", 4, seed=1)]


def adapted(model: Any, task: str | None = "CAUSAL_LM", **options: Any) -> Any:
    """A copy of a model with adapters that change what it says, dropout included; in eval mode."""
    settings = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.2, "target_modules": TARGETS, **options}
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(task_type=task, **settings))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.15
    return wrapped.eval()


@pytest.fixture(scope="module", params=["CAUSAL_LM", None])
def wrapped(request: pytest.FixtureRequest, llava: Any) -> Any:
    """Of the class for language models, whose forward names its arguments, and of the general one."""
    return adapted(llava, request.param)


@pytest.fixture(scope="module")
def merged(wrapped: Any) -> Any:
    return copy.deepcopy(wrapped).merge_and_unload()


def test_the_adapter_matters(llava: Any, merged: Any) -> None:
    with torch.no_grad():
        assert (llava(**INPUTS[0]).logits - merged(**INPUTS[0]).logits).abs().max() > 0.5


@pytest.mark.parametrize("inputs", INPUTS)
def test_a_prefill_is_that_of_the_merged_model(inputs: dict[str, Any], wrapped: Any, merged: Any) -> None:
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE) as ours, fitprune.prune(merged, tiny.RECIPE) as wanted:
        got, expected = wrapped(**inputs).logits, merged(**inputs).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert [layer[0].tolist() for layer in ours.alive] == [layer[0].tolist() for layer in wanted.alive]
    assert got.shape[1] < inputs["input_ids"].shape[1]


def test_generation_and_a_padded_batch(wrapped: Any, merged: Any) -> None:
    inputs = tiny.batch(INPUTS)
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with fitprune.prune(wrapped, tiny.RECIPE), fitprune.prune(merged, tiny.RECIPE):
        got, expected = wrapped.generate(**inputs, **options), merged.generate(**inputs, **options)
    assert got.sequences.tolist() == expected.sequences.tolist()
    for one, other in zip(got.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_adapters_that_are_merged_in_place(llava: Any) -> None:
    wrapped = adapted(llava)
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE):
        apart = wrapped(**INPUTS[0]).logits
        wrapped.merge_adapter()
        torch.testing.assert_close(wrapped(**INPUTS[0]).logits, apart, atol=1e-4, rtol=1e-4)
        wrapped.unmerge_adapter()
        with wrapped.disable_adapter():
            off = wrapped(**INPUTS[0]).logits
    with torch.no_grad(), fitprune.prune(llava, tiny.RECIPE):
        torch.testing.assert_close(off, llava(**INPUTS[0]).logits, atol=1e-4, rtol=1e-4)


def test_the_vision_tower_and_whole_modules_may_be_adapted(llava: Any) -> None:
    wrapped = adapted(llava, target_modules="all-linear", modules_to_save=["lm_head"])
    merged = copy.deepcopy(wrapped).merge_and_unload()
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE), fitprune.prune(merged, tiny.RECIPE):
        torch.testing.assert_close(wrapped(**INPUTS[1]).logits, merged(**INPUTS[1]).logits, atol=1e-4, rtol=1e-4)


def test_a_bare_language_model(llama: Any) -> None:
    wrapped = adapted(llama)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    embeds, mask = tiny.embedded(24, (3, 19))
    with torch.no_grad():
        with fitprune.prune(wrapped, tiny.RECIPE, visual_mask=mask):
            got = wrapped(inputs_embeds=embeds).logits
        with fitprune.prune(merged, tiny.RECIPE, visual_mask=mask):
            torch.testing.assert_close(got, merged(inputs_embeds=embeds).logits, atol=1e-4, rtol=1e-4)


def test_adapters_without_the_wrapper(llava: Any) -> None:
    """PEFT's layers in a model that stays what it is, as transformers' `load_adapter` puts them there."""
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False), copy.deepcopy(llava))
    model.eval()
    with torch.no_grad():
        assert (model(**INPUTS[0]).logits - llava(**INPUTS[0]).logits).abs().max() > 0.1
        with fitprune.prune(model, tiny.RECIPE) as trace:
            got = model(**INPUTS[0]).logits[0]
    wanted = tiny.dense_pruned(model, INPUTS[0], [(3, 19)], tiny.RECIPE)
    assert trace.alive[-1][0].tolist() == wanted.alive(tiny.LAYERS - 1)
    torch.testing.assert_close(got, wanted.logits[wanted.alive(tiny.LAYERS - 1)], atol=1e-4, rtol=1e-4)


def test_nothing_is_left_behind(wrapped: Any) -> None:
    before = {name: dict(module.__dict__) for name, module in wrapped.named_modules()}
    with torch.no_grad():
        dense = wrapped(**INPUTS[0]).logits
        fitprune.attach(wrapped, tiny.RECIPE)
        with pytest.raises(FitPruneError, match="already has a recipe"):
            fitprune.attach(unwrapped(wrapped), tiny.RECIPE)
        fitprune.detach(wrapped)
        assert torch.equal(wrapped(**INPUTS[0]).logits, dense)
    for name, module in wrapped.named_modules():
        assert module.__dict__.keys() == before[name].keys(), name
        hooks = (module._forward_pre_hooks, module._forward_hooks)
        assert not any("fitprune" in str(getattr(hook, "__module__", "")) for each in hooks for hook in each.values()), name


def test_what_the_model_is_asked_for_is_seen_through_the_wrapper(wrapped: Any) -> None:
    with fitprune.prune(wrapped, tiny.RECIPE), pytest.raises(UnsupportedError, match="without labels"):
        wrapped(**INPUTS[0], labels=INPUTS[0]["input_ids"])
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE), pytest.raises(UnsupportedError, match="logits_to_keep"):
        wrapped(**INPUTS[0], logits_to_keep=torch.tensor([1, 2]))
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE):
        assert wrapped(**INPUTS[0], logits_to_keep=1).logits.shape[1] == 1


def test_a_recipe_is_fitted_as_on_the_merged_model(wrapped: Any, merged: Any) -> None:
    wrapped.train()
    ours = fitprune.observe(wrapped, INPUTS, progress=False)
    assert wrapped.training
    assert any(module.training for name, module in wrapped.named_modules() if "lora_dropout" in name)
    wrapped.eval()
    wanted = fitprune.observe(merged, INPUTS, progress=False)
    torch.testing.assert_close(ours.cross, wanted.cross, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(ours.intra, wanted.intra, atol=1e-5, rtol=1e-3)
    assert (ours.model, ours.fingerprint, ours.cost) == (wanted.model, wanted.fingerprint, wanted.cost)
    one, other = (fitprune.fit(stats, reduction_ratio=0.5) for stats in (ours, wanted))
    assert one.counts == pytest.approx(other.counts, abs=1e-3)
    assert (one.model, one.fingerprint, one.cost, one.samples) == (other.model, other.fingerprint, other.cost, other.samples)
    with fitprune.prune(wrapped, one) as trace, torch.no_grad():
        wrapped(**INPUTS[0])
    assert len(trace.alive[-1][0]) < len(trace.alive[0][0])


def test_adapters_that_lengthen_the_prompt_are_refused(llama: Any) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(copy.deepcopy(llama), config).eval()
    with pytest.raises(UnsupportedError, match="before the prompt"):
        fitprune.attach(wrapped, tiny.RECIPE, visual_mask=torch.ones(1, 8, dtype=torch.bool))


def test_wrappers_that_hold_adapters_of_several_kinds_or_each_other(llava: Any) -> None:
    """`PeftMixedModel`, which is no `PeftModel`; a wrapper around a wrapper; several adapters at once."""
    lora = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    mixed = peft.get_peft_model(copy.deepcopy(llava), lora, mixed=True)
    mixed.add_adapter("other", peft.LoHaConfig(r=4, target_modules=TARGETS, init_weights=False))
    mixed.set_adapter(["default", "other"])
    two = peft.get_peft_model(copy.deepcopy(llava), lora)
    two.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    two.base_model.set_adapter(["default", "other"])
    first = peft.get_peft_model(copy.deepcopy(llava), lora)
    nested = peft.get_peft_model(first, peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    for wrapped in (mixed, two, nested):
        model = wrapped.eval()
        merged = copy.deepcopy(unwrapped(model))
        for layer in [part for part in merged.modules() if isinstance(part, peft.tuners.tuners_utils.BaseTunerLayer)]:
            layer.merge(adapter_names=getattr(layer, "active_adapters", None))
        with torch.no_grad(), fitprune.prune(model, tiny.RECIPE) as ours, fitprune.prune(merged, tiny.RECIPE):
            torch.testing.assert_close(model(**INPUTS[0]).logits, merged(**INPUTS[0]).logits, atol=1e-4, rtol=1e-4)
        assert len(ours.visual[-1][0]) < tiny.IMAGE_TOKENS
        assert fitprune.observe(model, INPUTS[:1], progress=False).visual_tokens.tolist() == [tiny.IMAGE_TOKENS]


def test_adapters_that_are_switched_added_and_merged_under_a_recipe(llava: Any) -> None:
    wrapped = adapted(llava)
    wrapped.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False))
    wrapped.eval()
    other = copy.deepcopy(wrapped).merge_and_unload(adapter_names=["other"])
    with torch.no_grad(), fitprune.prune(other, tiny.RECIPE):
        wanted = other(**INPUTS[0]).logits
    with torch.no_grad(), fitprune.prune(wrapped, tiny.RECIPE) as trace:
        wrapped.set_adapter("other")
        torch.testing.assert_close(wrapped(**INPUTS[0]).logits, wanted, atol=1e-4, rtol=1e-4)
        unloaded = wrapped.merge_and_unload(adapter_names=["other"])
        torch.testing.assert_close(unloaded(**INPUTS[0]).logits, wanted, atol=1e-4, rtol=1e-4)
    assert len(trace.visual[-1][0]) < tiny.IMAGE_TOKENS
    assert attachment_of(unloaded) is None
    copy.deepcopy(unloaded)  # nothing that keeps it from being copied is left either
