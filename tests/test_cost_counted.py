"""The cost of a layer against a forward whose products are counted by torch: the same number, class by class.

Tiny decoders, eager attention (so the whole square is multiplied), experts one by one (so only those that are met).
`FlopCounterMode` counts two FLOPs per multiply-accumulate, module by module.

    pytest tests/test_cost_counted.py -k Deepseek
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import Cache, DynamicCache

from fitprune.cost import CostModel, LayerCost
from fitprune.errors import FitPruneError

LENGTH = 24
PLAIN: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {**PLAIN, "head_dim": 24}  # four heads of 24 in 64
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 4}
DEEP = {"moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
DEEP |= {"n_group": 1, "topk_group": 1}
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTA |= {"layer_types": ["linear_attention", "full_attention"] * 2}
GEMMA4 = {**WIDE, **WINDOWS, "global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 3, 3]}

LLAMA_SHAPED = {
    "Llama": PLAIN,
    "Mistral": WIDE,
    "Qwen2": PLAIN,
    "Qwen3": WIDE,
    "Phi3": PLAIN,
    "Gemma2": {**WIDE, "sliding_window": 8},
    "Gemma3Text": {**WIDE, **WINDOWS},
    "Cohere2": {**PLAIN, **WINDOWS},
    "Glm4": WIDE,
    "Ministral3": WIDE,
    "SmolLM3": PLAIN,
    "Qwen3VLText": {**WIDE, "rope_parameters": ROPE},
}
OTHERS = {
    "Qwen3Moe": {**WIDE, **EXPERTS, "mlp_only_layers": [1]},
    "Qwen2Moe": {**PLAIN, **EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
    "Mixtral": {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV2": {**PLAIN, **LATENT, **DEEP},
    "DeepseekV3": {**PLAIN, **LATENT, **DEEP},
    "Glm4Moe": {**WIDE, **DEEP},
    "Ernie4_5_Moe": {**PLAIN, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
    "Llama4Text": {  # its experts are all multiplied, whichever are met: here all of them are
        **WIDE, "intermediate_size": 40, "intermediate_size_mlp": 80, "num_local_experts": 2, "num_experts_per_tok": 2,
        "interleave_moe_layer_step": 2, "attention_chunk_size": 16,
    },
    "Gemma4Text": {**GEMMA4, "num_kv_shared_layers": 0},
    "Gemma4Text, shared keys": {**GEMMA4, "num_kv_shared_layers": 2},
    "Gemma4Text, experts": {
        **GEMMA4, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4,
        "top_k_experts": 2, "moe_intermediate_size": 24, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
    },
    "Starcoder2": PLAIN,  # an MLP of two matrices
}  # fmt: skip
HYBRIDS = {
    "Qwen3_5Text": {**WIDE, **DELTA},
    "Qwen3Next": {**WIDE, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 40},
    "Lfm2": {**PLAIN, "layer_types": ["conv", "full_attention"] * 2},
    "Lfm2Moe": {**PLAIN, **EXPERTS, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
}
CLASSES = {**LLAMA_SHAPED, **OTHERS, **HYBRIDS}


def config_of(name: str) -> Any:
    kind = getattr(transformers, f"{name.partition(',')[0]}Config", None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return kind(**CLASSES[name])


def counted(name: str) -> tuple[CostModel, Any, dict[str, int], Any]:
    """The cost model, the decoder, the multiply-accumulates of its modules by name, and a cache of the prompt."""
    config = config_of(name)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    cache = {} if name in HYBRIDS else {cache_name(model): DynamicCache()}  # a plain one: pruning's keep what is out of a window
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(input_ids=torch.randint(3, 100, (1, LENGTH)), use_cache=True, **cache)
    counts = counter.get_flop_counts()
    found = {part: sum(counts.get(f"{type(model).__name__}.{part}", {}).values()) // 2 for part, _ in model.named_modules()}
    return CostModel.from_config(config), model, found, next((one for one in output.values() if isinstance(one, Cache)), None)


def cache_name(model: nn.Module) -> str:
    from fitprune.cost.parts import cache_argument

    return str(cache_argument(model))


def values(layer: Any) -> int:
    """How many numbers a layer of a cache holds."""
    total = 0
    for name in ("keys", "values", "conv_states", "recurrent_states"):
        found = getattr(layer, name, None)
        for one in found.values() if isinstance(found, dict) else [found]:  # several states, since some version
            total += one.numel() if torch.is_tensor(one) else 0
    return total


@pytest.mark.parametrize("name", [*LLAMA_SHAPED, *OTHERS])
def test_each_layer_multiplies_what_it_costs(name: str) -> None:
    cost, _, found, _ = counted(name)
    assert bool(cost.each) == (name in OTHERS)
    assert [found[f"layers.{at}"] for at in range(4)] == [cost.attention_macs(LENGTH, at) + cost.rest_macs(LENGTH, at) for at in range(4)]


@pytest.mark.parametrize("name", HYBRIDS)
def test_of_linear_attention_the_projections_are_counted_and_the_state_by_hand(name: str) -> None:
    """Its fallback in torch goes by chunks of its own size, padded: those products say nothing."""
    cost, model, found, _ = counted(name)
    assert cost.deletable == (1, 3)
    for at, layer in enumerate(model.layers):
        if at in cost.deletable:
            assert found[f"layers.{at}"] == cost.attention_macs(LENGTH, at) + cost.rest_macs(LENGTH, at)
            continue
        mixer = next(one for part, one in layer.named_children() if part in ("linear_attn", "conv"))
        inside = [part for part, one in mixer.named_modules() if isinstance(one, nn.Linear)]
        prefix = f"layers.{at}.{'conv' if 'Lfm2' in name else 'linear_attn'}"
        projections = sum(found[f"{prefix}.{part}"] for part in inside)
        (convolution,) = (one.weight.numel() for one in mixer.modules() if isinstance(one, nn.Conv1d))
        recurrence = 0 if "Lfm2" in name else 3 * 4 * 8 * 12  # value heads; keys × values of a head's state, thrice a token
        assert cost.attention_macs(LENGTH, at) == projections + LENGTH * (convolution + recurrence)
        assert cost.rest_macs(LENGTH, at) == found[f"layers.{at}"] - found[prefix]


@pytest.mark.parametrize("name", CLASSES)
def test_the_cache_holds_what_is_said(name: str) -> None:
    cost, _, _, cache = counted(name)
    if cache is None:
        pytest.skip("a cache of its own, in this version of transformers")
    held = [values(layer) for layer in cache.layers]
    assert held + [0] * (4 - len(held)) == cost.kv_bytes([0] * 4, LENGTH, 0, bytes_per_value=1)


def test_a_state_does_not_grow() -> None:
    cost = CostModel.from_config(config_of("Qwen3_5Text"))
    short, long = (cost.kv_bytes([0] * 4, count, 5) for count in (10, 20))
    assert short[0] == long[0] == 2 * (4 * 8 * 12 + (2 * 2 * 8 + 4 * 12) * 4)  # bytes × (state + convolution of width 4)
    assert long[1] - short[1] == 2 * 10 * 2 * 2 * 24
    assert cost.attention_macs(20, 0) == 2 * cost.attention_macs(10, 0)


def test_layers_with_experts_and_layers_without() -> None:
    each = CostModel.from_config(config_of("Qwen3Moe")).per_layer
    more = 2 * 3 * 64 * 24 + 64 * 4 - 3 * 64 * 80  # two experts and the router, instead of an MLP
    assert [layer.leaving - each[1].leaving for layer in each] == [more, 0, more, more]


REFUSED = [
    ("FalconH1", PLAIN, "layer 0 has 2 parts that mix tokens"),
    ("Bamba", PLAIN, "layer 0 mixes tokens by a BambaMixer"),
    ("GptOss", {**WIDE, "num_local_experts": 4}, "layer 0 has an attention .GptOssAttention. with weights of its own"),
    ("DiffLlama", PLAIN, "layer 0 .*DiffLlamaAttention"),
    ("Bert", {}, "no decoder with layers is built from it"),
]


@pytest.mark.parametrize(("name", "sizes", "words"), REFUSED)
def test_what_cannot_be_counted_is_refused_by_name_and_reason(name: str, sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(FitPruneError, match=f"what a model of {name}Config costs is not known: {words}"):
        CostModel.from_config(getattr(transformers, f"{name}Config")(**sizes))


def test_layers_that_look_at_something_else_are_refused() -> None:
    text = {**PLAIN, "cross_attention_layers": [1]}
    with pytest.raises(FitPruneError, match="layer 1 attends to something else than the tokens that go through it"):
        CostModel.from_config(transformers.MllamaConfig(text_config=text))


def test_counting_leaves_everything_as_it_was() -> None:
    before, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    config = transformers.LlamaConfig(**{**PLAIN, "vocab_size": 131, "quantization_config": {"quant_method": "fp8"}})
    text = config.to_json_string(use_diff=False)
    assert CostModel.from_config(config) == CostModel(4, 64, 80, 4, 2, 16, vocab=131)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_default_dtype() == dtype
    assert torch.empty(1).device.type == "cpu"
    assert config.to_json_string(use_diff=False) == text


def test_a_config_that_was_changed_is_counted_anew() -> None:
    config = transformers.LlamaConfig(**PLAIN)
    assert CostModel.from_config(config).intermediate == 80
    config.intermediate_size = 96
    assert CostModel.from_config(config).intermediate == 96


def test_the_sizes_and_the_layers_of_a_llama_say_the_same() -> None:
    sizes = CostModel(4, 64, 176, 4, 2, 16, vocab=9)
    layers = CostModel.of_layers([LayerCost.llama(64, 176, 4, 2, 16)] * 4, 64, vocab=9)
    assert sizes.per_layer == layers.per_layer
    assert not sizes.differences(layers)
    for alive in ([9, 9, 4, 0], [8.25, 7.5, 1.125, 0.5]):
        assert sizes.visual_macs(alive, 11) == layers.visual_macs(alive, 11)
        assert sizes.speedup(alive, 11, 3) == layers.speedup(alive, 11, 3)
    assert sizes.kv_bytes([1, 2, 3, 4], 11, 3) == layers.kv_bytes([1, 2, 3, 4], 11, 3)
    assert sizes.dense_macs(7, 1) == layers.dense_macs(7, 1) == sum(sizes.visual_macs([7] * 4, 7)[1:])
    assert sizes.attention_macs(5) == layers.attention_macs(5) == layers.attention_macs(5, 3)
