"""Reading what an original config.json means: family, sizes, tower, end of answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from multimodal import PARITY, Recorded

import fitprune
from fitprune.checkpoints.original import OriginalCheckpoint, is_original, read_original
from fitprune.checkpoints.source import Source
from fitprune.errors import FitPruneError
from fitprune.families.loading import original_family

ORIGINAL = PARITY / "llava15" / "checkpoint"


def copy(folder: Path, tower: bool = True, **fields: Any) -> Path:
    """The recorded checkpoint with other fields in its config.json (None removes one)."""
    path = folder / "copy"
    shutil.copytree(ORIGINAL, path)
    if not tower:
        shutil.move(path / "clip_tower", folder / "tower")
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return path


def read(path: Path, **options: str) -> OriginalCheckpoint:
    source = Source(path)
    config = source.json("config.json")
    return read_original(source, config, original_family(config, source), **options)


def test_the_layout_is_told_by_its_fields() -> None:
    assert is_original({"mm_vision_tower": "openai/clip", "model_type": "llava"})
    assert not is_original({"model_type": "llava", "text_config": {}})
    assert not is_original({"model_type": "llava", "text_config": {}, "mm_vision_tower": "kept"})


def test_sizes_come_from_the_flat_config_and_not_from_defaults() -> None:
    text = read(ORIGINAL).config.text_config
    flat = json.loads((ORIGINAL / "config.json").read_text())
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ):
        assert getattr(text, field) == flat[field], field
    assert text.vocab_size == 448  # 400, <image>, <pad>, and up to a multiple of 64


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_both_names_of_the_llama_kind(tmp_path: Path, model_type: str) -> None:
    llava = fitprune.load(str(copy(tmp_path, model_type=model_type)), device="cpu")
    Recorded("llava15").check_forward(llava, "odd")


@pytest.mark.parametrize(
    ("fields", "kind", "theta"),
    [
        ({"model_type": "llava_mistral", "rope_theta": 1e6, "sliding_window": 0}, "mistral", 1e6),
        ({"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"}, "qwen2", 10000.0),
        ({"rope_theta": 5e6}, "llama", 5e6),
        ({}, "llama", 10000.0),
    ],
)
def test_the_language_model_is_the_one_named(tmp_path: Path, fields: dict[str, Any], kind: str, theta: float) -> None:
    text = read(copy(tmp_path, **fields)).config.text_config
    assert text.model_type == kind
    assert text.rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None, "num_hidden_layers": "x"}, r"config\.json lacks hidden_size, num_hidden_layers"),
        ({"model_type": "llava_mpt"}, "names llava_mpt .*: of the original layout Llama, Mistral and Qwen2"),
        ({"model_type": "llava", "architectures": ["LlavaGemmaForCausalLM"]}, r"names llava \(LlavaGemmaForCausalLM\)"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio 'highres'"),
        ({"mm_vision_select_layer": 9}, "mm_vision_select_layer 9, but CLIP has 4 layers"),
        ({"mm_vision_select_layer": [1, 2]}, "mm_vision_select_layer"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps 'small' where a number is expected"),
        ({"num_attention_heads": 7}, "hidden_size that num_attention_heads does not divide"),
        ({"tokenizer_model_max_length": "long"}, r"config\.json makes no model"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised checkpoints are not supported"),
        ({"is_multipath_encoder": True, "vision_tower_slow": 7}, "vision_tower_slow 7"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"}, "mm_patch_merge_type"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FitPruneError, match=message):
        read(copy(tmp_path, **fields))


def test_where_the_tower_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy(tmp_path, tower=False)
    given = read(path, vision_tower=str(tmp_path / "tower"))
    Recorded("llava15").check_forward(fitprune.load(str(path), vision_tower=str(tmp_path / "tower"), device="cpu"), "exact")
    shutil.copytree(tmp_path / "tower", path / "openai" / "clip-vit-large-patch14-336")
    assert read(path).config.vision_config.to_dict() == given.config.vision_config.to_dict()
    shutil.rmtree(path / "openai")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "tower", tmp_path / "openai" / "clip-vit-large-patch14-336")
    assert read(path).config.vision_config.image_size == 56


def test_a_tower_that_is_nowhere_or_no_clip(tmp_path: Path) -> None:
    path = copy(tmp_path, tower=False, mm_vision_tower="someone/their-tower")
    with pytest.raises(FitPruneError, match="someone/their-tower"):
        read(path)
    with pytest.raises(FitPruneError, match=r"no checkpoint at \./nowhere"):
        read(path, vision_tower="./nowhere")
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(FitPruneError, match="is a 'siglip': only CLIP is supported"):
        read(path, vision_tower=str(tmp_path / "tower"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"hidden_act": "nothing"}, "cannot make the model .*nothing"), ({"pad_token_id": 10**6}, "cannot make the model")],
)
def test_configs_that_make_no_model(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FitPruneError, match=message) as error:
        fitprune.load(str(copy(tmp_path, **fields)), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mm_vision_tower": None}, "neither mm_vision_tower, as in the original layout, nor text_config"),
        ({"text_config": {"model_type": "llama"}}, "the weights are of the original layout, config.json is not"),
    ],
)
def test_a_config_of_neither_layout_is_refused_before_a_default_model_is_made(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FitPruneError, match=message):
        fitprune.load(str(copy(tmp_path, **fields)), device="cpu")


def test_a_tower_that_is_a_missing_path_asks_for_a_copy(tmp_path: Path) -> None:
    path = copy(tmp_path, tower=False, mm_vision_tower="/data/clip-vit-large-patch14-336")
    with pytest.raises(FitPruneError, match="name a copy with --vision-tower"):
        read(path)


def test_the_image_is_never_answered_where_the_file_has_spare_rows(tmp_path: Path) -> None:
    """As Qwen's: more rows than tokens, so that `<image>` gets one of the file's own."""
    tensors = Recorded("llava15").tensors()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = torch.cat([tensors[key], tensors[key][:64]])
    path = Recorded("llava15").rewritten(tmp_path / "copy", tensors, vocab_size=464)
    llava = fitprune.load(str(path), device="cpu")
    assert llava.image_token == 400
    assert llava.model.get_input_embeddings().weight.shape[0] == 464
    assert llava.model.generation_config.suppress_tokens == [400, 401]
    Recorded("llava15").check_forward(llava, "wide")


def test_answers_end_where_the_generation_config_says(tmp_path: Path) -> None:
    path = copy(tmp_path)
    assert read(path).eos == 2
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert read(path).eos == [2, 9]
    (path / "generation_config.json").unlink()
    assert read(path).eos == 2


def test_images_are_cropped_where_the_checkpoint_was_not_trained_on_squares(tmp_path: Path) -> None:
    wide = Recorded("llava15").pictures("wide")[0]
    plain = fitprune.load(str(copy(tmp_path, image_aspect_ratio="square")), device="cpu")
    middle = wide.crop(((wide.width - wide.height) // 2, 0, (wide.width + wide.height) // 2, wide.height))
    difference = plain.prepare(wide)["pixel_values"] - plain.prepare(middle)["pixel_values"]
    assert difference.abs().mean() < 0.1  # the crop of the resized image is the resized crop, up to its edges
    squared = fitprune.load(str(ORIGINAL), device="cpu")
    assert (plain.prepare(wide)["pixel_values"] - squared.prepare(wide)["pixel_values"]).abs().mean() > 0.3
