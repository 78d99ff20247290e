"""Original names of weights → transformers' names."""

from __future__ import annotations

import pytest

from fitprune.checkpoints.names import CLIP, in_model, rename


@pytest.mark.parametrize(
    ("original", "renamed"),
    [
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("model.layers.31.self_attn.q_proj.weight", "model.language_model.layers.31.self_attn.q_proj.weight"),
        ("model.norm.weight", "model.language_model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.mm_projector.0.bias", "model.multi_modal_projector.linear_1.bias"),
        ("model.mm_projector.2.weight", "model.multi_modal_projector.linear_2.weight"),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias", "model.vision_tower.encoder.layers.3.mlp.fc1.bias"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", ""),
        ("model.vision_tower.vision_tower.vision_model.embeddings.position_ids", ""),
        ("model.mm_projector.1.weight", None),
        ("optimizer.state", None),
    ],
)
def test_names_that_all_families_share(original: str, renamed: str | None) -> None:
    assert rename(original, ()) == renamed


def test_a_familys_rules_go_first() -> None:
    assert rename("model.norm.weight", ((r"model\.norm", "elsewhere"),)) == "elsewhere.weight"
    assert rename("model.norm.weight", ((r"model\.norm", ""),)) == ""


@pytest.mark.parametrize(
    ("original", "renamed"),
    [
        ("vision_model.pre_layrnorm.weight", "model.vision_tower.pre_layrnorm.weight"),
        ("embeddings.class_embedding", "model.vision_tower.embeddings.class_embedding"),
        ("vision_model.embeddings.position_ids", ""),
        ("text_model.encoder.layers.0.mlp.fc1.weight", ""),
        ("visual_projection.weight", ""),
        ("logit_scale", ""),
        ("something.else", None),
    ],
)
def test_a_towers_own_repository(original: str, renamed: str | None) -> None:
    assert rename(original, (), CLIP) == renamed


def test_the_installed_transformers_decides_how_deep_clip_lies() -> None:
    name, deeper = "model.vision_tower.encoder.x", "model.vision_tower.vision_model.encoder.x"
    assert in_model(name, {name}) == name
    assert in_model(name, {deeper}) == deeper
    assert in_model(name, {}) == name
