"""Layers are cut inside if they compute norm → attention → add → norm → MLP → add, and no others."""

import importlib
import inspect
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from tiny import RECIPE, embedded
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

import fitprune
from fitprune.decoder.block import Block, read_block
from fitprune.decoder.upstream import PROJECTION, attention_of


def decoder_layers():
    """Every decoder layer of transformers, as far as its modules import here."""
    folder = Path(transformers.__file__).parent / "models"
    for file in sorted(folder.glob("*/modeling_*.py")):
        if "DecoderLayer(" not in file.read_text(encoding="utf-8"):
            continue
        try:
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        except Exception:  # it needs a package, or another torch
            continue
        yield from (
            kind for name, kind in vars(module).items()
            if name.endswith("DecoderLayer") and inspect.isclass(kind) and kind.__module__ == module.__name__
        )  # fmt: skip


def unbuilt(kind):
    """An instance of a layer class with something for each part that its methods call, and nothing else."""
    layer = object.__new__(kind)
    nn.Module.__init__(layer)
    for name in set(re.findall(r"self\.(\w+)\(", inspect.getsource(kind))):
        if not hasattr(kind, name):
            setattr(layer, name, nn.Identity())
    return layer


def test_layers_of_transformers_are_read():
    """Every decoder layer says where its cache comes in (there is one argument for it); and those that must be cut inside are."""
    inside, names = {}, set()
    for kind in decoder_layers():
        annotated = [name for name, one in inspect.signature(kind.forward).parameters.items() if "Cache" in str(one.annotation)]
        assert len(annotated) <= 1, kind
        names.update(annotated)
        inside[kind.__name__] = read_block(unbuilt(kind))
    assert len(names) > 0
    for prefix in ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen2VL", "Qwen2_5_VL", "Qwen3VLText", "Qwen3Moe"):
        block = inside[f"{prefix}DecoderLayer"]
        assert block is not None, prefix
        assert (block.first_norm, block.attention) == ("input_layernorm", "self_attn"), prefix
        assert (block.second_norm, block.mlp) == ("post_attention_layernorm", "mlp"), prefix
    # more norms, factors, dropout, side by side, encoders
    for prefix in ("Gemma2", "Gemma3", "Phi", "Granite", "Cohere", "Bart"):
        assert inside[f"{prefix}DecoderLayer"] is None, prefix


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_output_projection_is_the_last_step_of_attention(family):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kinds = [kind for name, kind in vars(module).items() if name.endswith("Attention") and "Vision" not in name]
    assert kinds
    for kind in kinds:
        assert re.search(rf"attn_output = self\.{PROJECTION}\(attn_output\)\s+return attn_output", inspect.getsource(kind.forward))


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_a_block_is_what_the_layer_computes(kind):
    model = tiny.decoder(kind)
    layer = model.model.layers[1]
    block = read_block(layer)
    if block is None:
        assert kind in ("phi3", "granite")
        return
    first_norm, attention, second_norm, mlp = (
        getattr(layer, name) for name in (block.first_norm, block.attention, block.second_norm, block.mlp)
    )
    hidden = torch.randn(1, 5, tiny.HIDDEN)
    rotary = model.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        wanted = layer(hidden, position_embeddings=rotary, attention_mask=None)
        attended, _ = attention(first_norm(hidden), position_embeddings=rotary, attention_mask=None)
        middle = hidden + attended
        assert torch.equal(middle + mlp(second_norm(middle)), wanted[0] if block.in_tuple else wanted)
    assert attention_of(layer) is attention
    # the output projection is attention's last step
    assert re.search(rf"self\.{PROJECTION}\(attn_output\)\s+return attn_output", inspect.getsource(type(attention).forward))


class Variant(LlamaDecoderLayer):
    """A Llama layer whose forward a subclass replaces."""

    def __init__(self):
        nn.Module.__init__(self)
        for name in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "third_norm"):
            setattr(self, name, nn.Identity())
        self.factor = 0.5


def attended(layer, x, **given):
    """What attention makes of the normed hidden states; a function, since a method would see the layer behind its stand-in."""
    return layer.self_attn(layer.input_layernorm(x), **given)[0]


class OtherNames(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=attention_mask, cache=cache, **more) + x
        return (self.mlp(self.post_attention_layernorm(y)) + y,)


class Scaled(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=attention_mask, cache=cache, **more)
        y = x + y * self.factor
        return y + self.mlp(self.post_attention_layernorm(y))


class NormedFirst(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        x = self.input_layernorm(x)  # the residual is normed as well
        y = x + self.self_attn(x, attention_mask=attention_mask, cache=cache, **more)[0]
        return y + self.mlp(self.post_attention_layernorm(y))


class ThirdNorm(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=attention_mask, cache=cache, **more) + x
        return y + self.third_norm(self.mlp(self.post_attention_layernorm(y)))


class SideBySide(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=attention_mask, cache=cache, **more) + x
        return y + self.mlp(self.post_attention_layernorm(x))


class Forgetful(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=None, cache=cache, **more) + x
        return y + self.mlp(self.post_attention_layernorm(y))


class MixtureAside(Variant):
    def forward(self, x, attention_mask=None, cache=None, **more):
        y = attended(self, x, attention_mask=attention_mask, cache=cache, **more) + x
        z = self.post_attention_layernorm(y)
        return y + (self.mlp(z, z) if isinstance(self.mlp, nn.Identity) else self.mlp(z))


def test_other_shapes_are_told_apart():
    assert read_block(OtherNames()) == Block("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", True)
    for kind in (Scaled, NormedFirst, ThirdNorm, SideBySide, Forgetful, MixtureAside):
        assert read_block(kind()) is None, kind
    own = OtherNames()
    own.forward = own.forward  # as transformers 5.0 leaves it behind after recording hidden states
    assert read_block(own) is not None
    own.forward = lambda x, **_: x  # somebody's own
    assert read_block(own) is None


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
        assert read_block(layer).in_tuple
    for where in (nullcontext, tiny.cut_at_exit):
        with where(), torch.no_grad(), fitprune.prune(model.model, RECIPE, visual_mask=mask) as trace:
            found = model.model(inputs_embeds=embeds).last_hidden_state
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert [[row.tolist() for row in rows] for rows in trace.alive] == [[row.tolist() for row in rows] for rows in alive]
