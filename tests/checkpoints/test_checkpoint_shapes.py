"""Every weight of the released checkpoints, at its real shape, finds its place in the model. No storage is needed.

Names and shapes are written out from what the released files hold (LLaVA's and LLaVA-HR's model code; the counts are
those of their weight indexes), the models are made on no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig

from fitprune.checkpoints.fill import Part, empty, match
from fitprune.checkpoints.names import rename
from fitprune.checkpoints.original import Original, text_config
from fitprune.checkpoints.tower import OPENAI_CLIP
from fitprune.families import FAMILIES
from fitprune.families.loading import family_in
from fitprune.recipe import Recipe

Shapes = Iterator[tuple[str, tuple[int, ...]]]
TOWER = "openai/clip-vit-large-patch14-336"
VICUNA = {"model_type": "llava", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "vocab_size": 32000, "tie_word_embeddings": False}
SIZE_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
SIZE_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40}
MM = {"mm_vision_tower": TOWER, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 1024, "mm_vision_select_layer": -2,
      "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}  # fmt: skip
LLAVA = {**MM, "image_aspect_ratio": "pad"}
NEXT = {**MM, "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]}  # fmt: skip
HR = {**MM, "image_aspect_ratio": "pad", "is_multipath_encoder": True, "input_image_size": 1024, "freeze_vision": False}
CONVNEXT = {
    "convnext_large_mlp.clip_laion2b_ft_320": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xxlarge.clip_laion2b_soup": ((3, 4, 30, 3), (384, 768, 1536, 3072)),
}

CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llava-v1.5-7b": ("llava", {**VICUNA, **SIZE_7B, **LLAVA}),
    "llava-v1.5-13b": ("llava", {**VICUNA, **SIZE_13B, **LLAVA}),
    "llava-v1.6-vicuna-7b": ("llava_next", {**VICUNA, **SIZE_7B, **NEXT}),
    "llava-v1.6-vicuna-13b": ("llava_next", {**VICUNA, **SIZE_13B, **NEXT, "model_type": "llava_llama"}),
    "llava-v1.6-mistral-7b": (
        "llava_next",
        {**VICUNA, **SIZE_7B, **NEXT, "model_type": "llava_mistral", "intermediate_size": 14336, "num_key_value_heads": 8,
         "rope_theta": 1e6, "max_position_embeddings": 32768, "sliding_window": None},
    ),
    "llava-v1.6-34b": (
        "llava_next",
        {**VICUNA, **NEXT, "model_type": "llava_llama", "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60,
         "num_attention_heads": 56, "num_key_value_heads": 8, "vocab_size": 64000, "rope_theta": 5e6},
    ),
    "llama3-llava-next-8b": (
        "llava_next",
        {**VICUNA, **SIZE_7B, **NEXT, "model_type": "llava_llama", "intermediate_size": 14336, "num_key_value_heads": 8,
         "vocab_size": 128256, "rope_theta": 5e5},
    ),
    "llava-hr-7b-sft-1024": ("llava_hr", {**VICUNA, **SIZE_7B, **HR, "vision_tower_slow": "convnext_large_mlp.clip_laion2b_ft_320"}),
    "llava-hr-13b-x-sft-1024": ("llava_hr", {**VICUNA, **SIZE_13B, **HR, "vision_tower_slow": "convnext_xxlarge.clip_laion2b_soup"}),
}  # fmt: skip
TOTALS = {"llava-hr-7b-sft-1024": 1072, "llava-hr-13b-x-sft-1024": 1178}  # tensors, without inv_freq


def language(config: dict[str, Any]) -> Shapes:
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        for projection, out in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield f"{name}self_attn.{projection}_proj.weight", (out, hidden)
        yield from ((f"{name}mlp.{part}_proj.weight", (mlp, hidden)) for part in ("gate", "up"))
        yield f"{name}mlp.down_proj.weight", (hidden, mlp)
        yield from ((f"{name}{norm}_layernorm.weight", (hidden,)) for norm in ("input", "post_attention"))
        yield f"{name}self_attn.rotary_emb.inv_freq", (64,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)
    for index, width in ((0, config["mm_hidden_size"]), (2, hidden)):
        yield f"model.mm_projector.{index}.weight", (hidden, width)
        yield f"model.mm_projector.{index}.bias", (hidden,)


def both(name: str, weight: tuple[int, ...], bias: int) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", (bias,)


def clip(prefix: str) -> Shapes:
    size = OPENAI_CLIP[TOWER]
    d, mlp = size["hidden_size"], size["intermediate_size"]
    yield f"{prefix}embeddings.class_embedding", (d,)
    yield f"{prefix}embeddings.patch_embedding.weight", (d, 3, 14, 14)
    yield f"{prefix}embeddings.position_embedding.weight", ((336 // 14) ** 2 + 1, d)
    for norm in ("pre_layrnorm", "post_layernorm"):
        yield from both(prefix + norm, (d,), d)
    for layer in range(size["num_hidden_layers"]):
        name = f"{prefix}encoder.layers.{layer}."
        for part in ("q", "k", "v", "out"):
            yield from both(f"{name}self_attn.{part}_proj", (d, d), d)
        yield from both(f"{name}mlp.fc1", (mlp, d), mlp)
        yield from both(f"{name}mlp.fc2", (d, mlp), d)
        for norm in ("layer_norm1", "layer_norm2"):
            yield from both(name + norm, (d,), d)


def two_towers(name: str, d: int = 1024) -> Shapes:
    depths, widths = CONVNEXT[name]
    c, tower = widths[-1], "model.vision_tower."
    slow = f"{tower}slow_vision_tower.vision_tower."
    yield from both(f"{slow}stem.0", (widths[0], 3, 4, 4), widths[0])
    yield from both(f"{slow}stem.1", (widths[0],), widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            yield from both(f"{slow}stages.{stage}.downsample.0", (widths[stage - 1],), widths[stage - 1])
            yield from both(f"{slow}stages.{stage}.downsample.1", (width, widths[stage - 1], 2, 2), width)
        for block in range(depth):
            at = f"{slow}stages.{stage}.blocks.{block}."
            yield f"{at}weight", (width,)
            yield from both(f"{at}conv_dw", (width, 1, 7, 7), width)
            yield from both(f"{at}norm", (width,), width)
            yield from both(f"{at}mlp.fc1", (4 * width, width), 4 * width)
            yield from both(f"{at}mlp.fc2", (width, 4 * width), width)
    yield from both(f"{slow}head.norm", (c,), c)
    if "xxlarge" not in name:
        yield from both(f"{slow}head.pre_logits.fc", (c, c), c)
    yield from both(f"{slow}head.fc", (1000, c), 1000)
    yield from clip(f"{tower}fast_vision_tower.vision_tower.vision_model.")
    for adapter in range(3):
        at = f"{tower}align_stages_latent.{adapter}."
        yield from both(f"{at}slow_conv", (c, c, 1, 1), c)
        yield from both(f"{at}slow_proj", (d, c, 1, 1), d)
        yield from both(f"{at}fast_conv", (d, 1, 7, 7), d)
        yield from both(f"{at}fast_proj", (d, d, 1, 1), d)
        yield from both(f"{at}gate.0", (d // 2, 2 * d), d // 2)
        yield from both(f"{at}gate.2", (1, d // 2), 1)
    yield from both(f"{tower}align_stages.0.fast_proj", (d, d), d)
    yield from both(f"{tower}align_stages.0.slow_proj", (d, c), d)


def shapes_of(family: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    found = dict(language(config))
    if family == "llava_hr":
        return found | dict(two_towers(config["vision_tower_slow"]))
    found |= clip("model.vision_tower.vision_tower.vision_model.")
    if family == "llava_next":
        found["model.image_newline"] = (config["hidden_size"],)
    return found


class Shaped:
    """Weights of which only names and shapes exist."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes, self.files = shapes, dict.fromkeys(shapes, Path("checkpoint"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_weight_has_its_place(name: str) -> None:
    kind, config = CHECKPOINTS[name]
    assert [module for module in FAMILIES.values() if family_in(module).claims(config)] == [kind]
    family, shapes = family_in(kind), shapes_of(kind, config)
    if name in TOTALS:
        assert sum("inv_freq" not in key for key in shapes) == TOTALS[name]
    rows = config["vocab_size"] + 64
    original = Original(config, text_config(config, rows), CLIPVisionConfig(**OPENAI_CLIP[TOWER]), config["vocab_size"], shapes)
    model = empty(family.model_class(), family.configure(original), None)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    part = Part(Shaped(shapes), lambda key: rename(key, family.RULES))  # type: ignore[arg-type]
    (plan,) = match(model, [part], name, config["vocab_size"])
    assert set(plan.values()) == {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize(("name", "tokens"), [("llava-v1.5-7b", 576), ("llava-v1.6-vicuna-7b", 2880), ("llava-hr-7b-sft-1024", 1024)])
def test_published_recipes_fit_the_checkpoints_they_are_for(name: str, tokens: int) -> None:
    kind, config = CHECKPOINTS[name]
    for path in (f"liuhaotian/{name}", f"/models/{name}/"):
        recipe = Recipe.published(path, 0.6)
        assert recipe.num_layers == config["num_hidden_layers"]
        assert recipe.visual_tokens == tokens
    family = family_in(kind)
    original = Original(config, text_config(config, 32064), CLIPVisionConfig(**OPENAI_CLIP[TOWER]), 32000, shapes_of(kind, config))
    made = family.configure(original)
    if kind != "llava_next":
        assert made.image_seq_length == tokens
    torch.testing.assert_close(made.text_config.rms_norm_eps, 1e-5)
