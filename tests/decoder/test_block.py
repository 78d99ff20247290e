"""Layers of any shape are cut inside, by their own forward, if everything but the attention works token by token."""

import logging
from contextlib import nullcontext

import pytest
import tiny
import torch
import transformers
from tiny import RECIPE, embedded
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (  # noqa: F401 (what an attention class of ours is found to consult)
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    eager_attention_forward,
)

import fitprune
from fitprune import Recipe
from fitprune.decoder import block as blocks
from fitprune.decoder.attach import find_decoder
from fitprune.decoder.block import Block, last_step, read_block
from fitprune.decoder.upstream import attention_of, parameters

EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
          "num_key_value_heads": 4}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
NORMS = ("input_layernorm",)
TOWERS = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
                      "image_size": 16, "crop_size": 16},
    "audio_config": {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 16,
                     "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16, "input_size": 16},
}  # fmt: skip

# decoder: (config, what is its own, the part that is its MLP, what comes before its attention and is read by nothing else)
INSIDE = {
    "LlamaModel": ("LlamaConfig", {}, "mlp", NORMS),
    "MistralModel": ("MistralConfig", {}, "mlp", NORMS),
    "Ministral3Model": ("Ministral3Config", {}, "mlp", NORMS),
    "Qwen2Model": ("Qwen2Config", {}, "mlp", NORMS),
    "Qwen3Model": ("Qwen3Config", {}, "mlp", NORMS),
    "Qwen3MoeModel": ("Qwen3MoeConfig", EXPERTS, "mlp", NORMS),
    "Qwen2VLTextModel": ("Qwen2VLTextConfig", SECTIONS, "mlp", NORMS),
    "Qwen2_5_VLTextModel": ("Qwen2_5_VLTextConfig", SECTIONS, "mlp", NORMS),
    "Qwen3VLTextModel": ("Qwen3VLTextConfig", SECTIONS, "mlp", NORMS),
    "Qwen3VLMoeTextModel": ("Qwen3VLMoeTextConfig", SECTIONS | EXPERTS, "mlp", NORMS),
    "Qwen3_5TextModel": ("Qwen3_5TextConfig", LINEAR, "mlp", NORMS),
    "MixtralModel": ("MixtralConfig", EXPERTS, "mlp", NORMS),
    "DeepseekV3Model": ("DeepseekV3Config", EXPERTS | LATENT, "mlp", NORMS),
    "Glm4MoeModel": ("Glm4MoeConfig", EXPERTS, "mlp", NORMS),
    "Glm4Model": ("Glm4Config", {}, "mlp", NORMS),
    "Glm4vTextModel": ("Glm4vTextConfig", SECTIONS, "mlp", NORMS),  # GLM-4.6V's as well
    "GemmaModel": ("GemmaConfig", {}, "mlp", NORMS),
    "Gemma2Model": ("Gemma2Config", {"attn_logit_softcapping": None}, "mlp", NORMS),
    "Gemma3TextModel": ("Gemma3TextConfig", {}, "mlp", NORMS),
    "Gemma4TextModel": ("Gemma4TextConfig", {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
                                             "num_kv_shared_layers": 0}, "mlp", NORMS),
    "CohereModel": ("CohereConfig", {}, "mlp", ()),
    "Cohere2Model": ("Cohere2Config", {}, "mlp", ()),
    "Llama4TextModel": ("Llama4TextConfig", EXPERTS | {"intermediate_size_mlp": 48, "moe_layers": [1, 3],
                                                       "attn_temperature_tuning": False}, "feed_forward", NORMS),
    "Olmo2Model": ("Olmo2Config", {}, "mlp", ()),
    "GraniteModel": ("GraniteConfig", {"residual_multiplier": 0.7, "attention_multiplier": 0.3}, "mlp", NORMS),
    "PhiModel": ("PhiConfig", {}, "mlp", ()),
    "Phi3Model": ("Phi3Config", {}, "mlp", NORMS),
    "Phi4MultimodalModel": ("Phi4MultimodalConfig", TOWERS, "mlp", NORMS),
    "SmolLM3Model": ("SmolLM3Config", {}, "mlp", NORMS),
    "Ernie4_5Model": ("Ernie4_5Config", {}, "mlp", NORMS),
    "Ernie4_5_MoeModel": ("Ernie4_5_MoeConfig", EXPERTS, "mlp", NORMS),
    "Exaone4Model": ("Exaone4Config", {}, "mlp", ()),
}  # fmt: skip


def built(name):
    """A tiny decoder by the name of its class."""
    settings, own, *_ = INSIDE[name]
    if not hasattr(transformers, name):
        pytest.skip(f"no {name} here")
    config = getattr(transformers, settings)(**{**tiny.SIZES, "head_dim": 8, **own})
    torch.manual_seed(0)
    return tiny.sharpen(getattr(transformers, name)(config))


def listened(parts):
    """Columns that go into each part at each of its calls, in order of the calls."""
    seen = []
    for part in parts:
        part.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("name", INSIDE)
def test_layers_that_are_cut_inside(name):
    """A deleted token pays for neither projection nor MLP of the layer that deletes it, and what is left is what the exit cut leaves."""
    model, (_, _, mlp, before) = built(name), INSIDE[name]
    counts = [0, 5, 0, 4] if name == "Qwen3_5TextModel" else [3, 0, 5, 2]
    recipe = Recipe.from_deletions(counts, visual_tokens=16)
    length, rows = 28, 2
    ids = torch.randint(2, tiny.VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(rows, length, dtype=torch.bool)
    visual[:, 3:19] = True
    layers = list(find_decoder(model).layers)
    if name == "Ministral3Model" and "cache_position" in parameters(attention_of(layers[0])):
        pytest.skip("this transformers scales queries by one position for all rows")
    for layer, count in zip(layers, counts, strict=True):
        if count or name != "Qwen3_5TextModel":
            found = read_block(layer)
            assert (found.attention, found.skipped) == ("self_attn", before)
            assert found.per_token == (("per_layer_input",) if name == "Gemma4TextModel" else ())
    after = [length - sum(counts[: index + 1]) for index in range(len(counts))]
    seen, projected = (
        listened(getattr(layer, mlp) for layer in layers),
        listened(last_step(attention_of(layer)) for layer in layers if attention_of(layer) is not None),
    )
    results = {}
    for where in (nullcontext, tiny.cut_at_exit):
        with where(), torch.no_grad(), fitprune.prune(model, recipe, visual_mask=visual) as trace:
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        results[where] = hidden, trace.alive
        if where is nullcontext:
            assert seen == after
            assert projected == [left for layer, left in zip(layers, after, strict=True) if attention_of(layer) is not None]
            seen.clear()
    assert seen == [length, *after[:-1]]
    (inside, alive), (outside, other) = results.values()
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=1e-5)
    assert [[row.tolist() for row in rows] for rows in alive] == [[row.tolist() for row in rows] for rows in other]


@pytest.mark.parametrize("name", ["Cohere2Model", "Gemma4TextModel", "Llama4TextModel", "Olmo2Model", "GraniteModel", "PhiModel"])
def test_the_last_layer_carries_on_only_what_is_read(name):
    """Whatever its shape; inputs per token as well."""
    built(name)  # or skipped
    settings, own, mlp, _ = INSIDE[name]
    torch.manual_seed(0)
    config = getattr(transformers, settings)(**{**tiny.SIZES, "head_dim": 8, **own})
    model = tiny.sharpen(getattr(transformers, name.replace("TextModel", "ForCausalLM").replace("Model", "ForCausalLM"))(config))
    ids = torch.randint(2, tiny.VOCAB, (2, 26), generator=torch.Generator().manual_seed(1))
    visual = torch.zeros(2, 26, dtype=torch.bool)
    visual[:, 3:19] = True
    seen = listened([getattr(find_decoder(model).layers[-1], mlp)])
    for counts in ([3, 0, 5, 2], [3, 0, 5, 0]):
        with torch.no_grad(), fitprune.prune(model, Recipe.from_deletions(counts, visual_tokens=16), visual_mask=visual):
            whole = model(input_ids=ids, use_cache=False).logits
            short = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits
        torch.testing.assert_close(short, whole[:, -2:], atol=1e-5, rtol=1e-5)
        assert seen[-1] == 2


def test_the_last_step_of_attention_is_read_from_its_source():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.drop = nn.Linear(2, 2), nn.Dropout()
            self.p = 0.1

    class Assigned(Last):
        def forward(self, x):
            y = self.out(x)
            return y, None

    class Returned(Last):
        def forward(self, x):
            return self.out(x), None

    class Reshaped(Last):
        def forward(self, x):
            y = self.out(x).view(1, -1, 2)
            return y, None

    class Afterwards(Last):
        def forward(self, x):
            y = self.out(x)
            y = nn.functional.dropout(y, self.p)
            return y, None

    class Another(Last):
        def forward(self, x):
            y = self.out(x)
            return x, y

    assert [last_step(kind()) is not None for kind in (Assigned, Returned, Reshaped, Afterwards, Another)] == [True, True] + [False] * 3
    module = Assigned()
    assert last_step(module) is module.out
    module.forward = lambda x: (x, None)  # somebody's own
    assert last_step(module) is None


# ---- layers that differ in one thing ------------------------------------------------------------------------------


class Variant(LlamaDecoderLayer):
    """A Llama layer whose forward a subclass replaces, and has `more` at its end."""

    def forward(self, x, attention_mask=None, cache=None, position_embeddings=None, flag: bool = False, **given):
        y = x + self.self_attn(
            self.input_layernorm(x), attention_mask=attention_mask, cache=cache, position_embeddings=position_embeddings, **given
        )[0]  # fmt: skip
        return self.more(x, y + self.mlp(self.post_attention_layernorm(y)), cache, attention_mask, flag)

    def more(self, x, y, cache, mask, flag):
        return y


class Tupled(Variant):
    def more(self, x, y, cache, mask, flag):
        return (y,)


class Residual(Variant):
    def more(self, x, y, cache, mask, flag):
        return 0.5 * y + x * self.post_attention_layernorm.weight


class Flagged(Variant):
    def more(self, x, y, cache, mask, flag):
        return y.mean(1, keepdim=True) if flag else y


class Mixing(Variant):
    def more(self, x, y, cache, mask, flag):
        return y + 0.01 * y.mean(1, keepdim=True)


class MixingBefore(Variant):
    def more(self, x, y, cache, mask, flag):
        return y + x.roll(1, dims=1)


class FirstDiffers(Variant):
    def more(self, x, y, cache, mask, flag):
        return torch.cat([2 * y[:, :1], y[:, 1:]], 1)


class Counting(Variant):
    def more(self, x, y, cache, mask, flag):
        return y / y.shape[1]


class NormedOverTokens(Variant):
    def more(self, x, y, cache, mask, flag):
        return y / y.norm(dim=1, keepdim=True)


class ReadsTheCache(Variant):
    def more(self, x, y, cache, mask, flag):
        return y + len(cache)


class ReadsTheMask(Variant):
    def more(self, x, y, cache, mask, flag):
        return y if mask.sum() else x


class InPlace(Variant):
    def forward(self, x, *args, **kwargs):
        return super().forward(x.mul_(2), *args, **kwargs)


class Twice(Variant):
    def forward(self, x, *args, **kwargs):
        return super().forward(super().forward(x, *args, **kwargs), *args, **kwargs)


class Beside(Variant):
    """An MLP before the attention: in two halves it would be paid for twice."""

    def forward(self, x, attention_mask=None, cache=None, position_embeddings=None, **given):
        z = self.input_layernorm(x)
        z = x + self.mlp(z)
        return z + self.self_attn(
            self.input_layernorm(x), attention_mask=attention_mask, cache=cache, position_embeddings=position_embeddings, **given
        )[0]  # fmt: skip


def variant(kind):
    model = tiny.llama()
    for layer in model.model.layers:
        layer.__class__ = kind
    return model


@pytest.mark.parametrize("kind", [Variant, Tupled, Residual, Flagged])
def test_variants_that_work_token_by_token(kind):
    assert read_block(variant(kind).model.layers[1]) == Block("self_attn", ("input_layernorm",), ())


@pytest.mark.parametrize(
    "kind", [Mixing, MixingBefore, FirstDiffers, Counting, NormedOverTokens, ReadsTheCache, ReadsTheMask, InPlace, Twice, Beside]
)
def test_variants_that_do_not(kind):
    assert read_block(variant(kind).model.layers[1]) is None


class Crowded(nn.Module):
    """Experts with a capacity: those that come late are passed by."""

    def __init__(self, width, capacity):
        super().__init__()
        self.gate, self.experts = nn.Linear(width, 4, bias=False), nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.capacity = capacity

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        chosen, result = self.gate(flat).argmax(-1), torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            taken = (chosen == index).nonzero().flatten()[: int(self.capacity * len(flat) / 4)]
            result[taken] = expert(flat[taken])
        return result.view(x.shape)


def test_experts_with_a_capacity_are_left_whole():
    layer = tiny.llama().model.layers[0]
    layer.mlp = Crowded(tiny.HIDDEN, capacity=4.0)  # as good as none
    assert read_block(layer) is not None
    for capacity in (1.25, 3.0):  # too little for random rows; enough for them, but not if all want one expert
        layer.mlp = Crowded(tiny.HIDDEN, capacity)
        assert read_block(layer) is None


def test_a_part_that_mixes_tokens():
    class Mixer(nn.Module):
        def forward(self, x):
            return x.cumsum(1)

    layer = tiny.llama().model.layers[0]
    for name in ("mlp", "post_attention_layernorm"):
        part = getattr(layer, name)
        setattr(layer, name, Mixer())
        assert read_block(layer) is None
        setattr(layer, name, part)
    layer.input_layernorm = Mixer()  # nothing but the attention reads it, and that is run once, on all of them
    assert read_block(layer) is not None


def test_what_a_layer_is_tried_with():
    """No hook hears of it, nothing is left behind, and layers that are alike are tried once."""
    model = tiny.llama()
    layers = list(model.model.layers)
    heard = []
    for part in model.modules():
        part.register_forward_hook(lambda *_: heard.append(1))
    before = {name: dict(part.__dict__) for name, part in model.named_modules()}
    known = {}
    assert len({read_block(layer, known) for layer in layers}) == len(known) == 1
    assert not heard
    assert before == {name: dict(part.__dict__) for name, part in model.named_modules()}
    layers[1].mlp.act_fn = nn.ReLU()
    read_block(layers[1], known)
    assert len(known) == 2
    layers[2].__class__ = Mixing
    assert read_block(layers[2], known) is None
    own = layers[0]
    own.forward = own.forward  # as transformers 5.0 leaves it behind after recording hidden states
    assert read_block(own) is not None
    own.forward = lambda x, **_: x  # somebody's own
    assert read_block(own) is None


def test_half_precision_and_training_mode_make_no_difference():
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert read_block(tiny.decoder("phi3").to(kind).model.layers[0]) is not None
    layer = tiny.decoder("phi3").model.layers[0].train()
    layer.resid_mlp_dropout.p = 0.5
    assert read_block(layer) is not None
    assert layer.resid_mlp_dropout.training


def test_a_layer_that_is_cut_at_its_exit_says_so_once(caplog):
    blocks.say_cut_at_exit.cache_clear()
    model = variant(Mixing)
    embeds, mask = embedded(24, (3, 19))
    with caplog.at_level(logging.WARNING, "fitprune.decoder.block"), torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        model(inputs_embeds=embeds)
        model(inputs_embeds=embeds)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["Mixing cannot be cut inside"]


class Guarded(Variant):
    """Whose attention may fail."""

    def forward(self, x, attention_mask=None, cache=None, position_embeddings=None, **given):
        try:
            return super().forward(x, attention_mask, cache, position_embeddings, **given)
        except Exception:
            return x


class HeadsFirst(LlamaAttention):
    """Whose last step gets its rows on another axis."""

    def forward(self, hidden_states, **given):
        y, weights = super().forward(hidden_states, **given)
        y = self.merge(y.unflatten(-1, (4, -1)).transpose(1, 2))
        return y, weights


class Merge(nn.Module):
    def forward(self, heads):
        return heads.transpose(1, 2).flatten(2)


def test_layers_whose_attention_is_guarded_or_ends_otherwise():
    """They delete what Llama's deletes, and get the same results."""
    embeds, mask = embedded(24, (3, 19), rows=2)
    models = [tiny.llama(), variant(Guarded), variant(Variant)]
    for layer in models[2].model.layers:
        layer.self_attn.__class__, layer.self_attn.merge = HeadsFirst, Merge()
        assert last_step(layer.self_attn) is layer.self_attn.merge
    results = []
    for model in models:
        assert all(read_block(layer) is not None for layer in model.model.layers)
        with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
            results.append(model(inputs_embeds=embeds, use_cache=False).logits)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], atol=1e-5, rtol=1e-5)


def test_a_layer_that_returns_a_tuple_is_cut_inside():
    """As some of transformers 5.0 do; a bare tensor in its place would be indexed like one."""

    class Tupled(LlamaDecoderLayer):
        def forward(self, hidden_states, attention_mask=None, position_ids=None, cache: "transformers.Cache | None" = None,
                    position_embeddings=None, **kwargs):  # fmt: skip
            residual = hidden_states
            hidden_states, _ = self.self_attn(
                self.input_layernorm(hidden_states), attention_mask=attention_mask, position_ids=position_ids,
                cache=cache, position_embeddings=position_embeddings, **kwargs,
            )  # fmt: skip
            hidden_states = residual + hidden_states
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
            return (hidden_states,)

    class Unpacking(LlamaModel):
        def forward(self, attention_mask=None, position_ids=None, cache: "transformers.Cache | None" = None,
                    inputs_embeds=None, **kwargs):  # fmt: skip
            rotary = self.rotary_emb(inputs_embeds, torch.arange(inputs_embeds.shape[1])[None])
            for layer in self.layers:
                inputs_embeds = layer(inputs_embeds, None, None, None, rotary, **kwargs)[0]  # by position
            return BaseModelOutputWithPast(last_hidden_state=self.norm(inputs_embeds))

    model = tiny.llama()
    embeds, mask = embedded(24, (3, 19))
    embeds = embeds.expand(2, -1, -1)  # two rows: a bare tensor would lose one
    with torch.no_grad(), fitprune.prune(model.model, RECIPE, visual_mask=mask) as trace:
        wanted, alive = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state, trace.alive
    model.model.__class__ = Unpacking
    for layer in model.model.layers:
        layer.__class__ = Tupled
        assert read_block(layer) is not None
    for where in (nullcontext, tiny.cut_at_exit):
        with where(), torch.no_grad(), fitprune.prune(model.model, RECIPE, visual_mask=mask) as trace:
            found = model.model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert [[row.tolist() for row in rows] for rows in trace.alive] == [[row.tolist() for row in rows] for rows in alive]
