"""LLaVA-HR's family: original configs told apart and read, names of weights, images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlamaTokenizer

from fitprune.checkpoints.original import Original
from fitprune.errors import FitPruneError
from fitprune.families import llava_hr as family
from fitprune.families.clip import pad_to_square

FOLDER = Path(__file__).parents[1] / "parity" / "llava_hr_vision"
TOKENIZER = Path(__file__).parents[1] / "parity" / "llava15" / "checkpoint"
MEAN_COLOUR = (122, 116, 104)  # CLIP's mean, as the original rounds it down


def original(name: str, **fields: Any) -> Original:
    """A recorded checkpoint, with some fields of its config.json replaced (None: left out)."""
    known = json.loads((FOLDER / name / "config.json").read_text()) | fields
    with safe_open(FOLDER / name / "weights.safetensors", "pt") as weights:
        shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    text = LlamaConfig(vocab_size=40, hidden_size=known["hidden_size"], intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPVisionConfig(**known["clip"])
    return Original({key: value for key, value in known.items() if value is not None}, text, clip, 33, shapes)


@pytest.mark.parametrize("name", ["large", "xxlarge", "frozen"])
def test_sizes_are_those_of_the_checkpoint(name: str) -> None:
    known = json.loads((FOLDER / name / "config.json").read_text())
    config = family.configure(original(name, image_aspect_ratio="pad"))
    vision = config.vision_config
    assert vision.depths == known["convnext"]["depths"]
    assert vision.hidden_sizes == known["convnext"]["dims"]
    assert vision.layer_norm_eps == known["convnext"]["norm_eps"]
    assert vision.image_size == known["input_image_size"]
    assert vision.adapters is not known["freeze_vision"]
    assert vision.clip.num_hidden_layers == known["clip"]["num_hidden_layers"]
    assert config.image_token_id == 33
    assert config.text_config.hidden_size == known["hidden_size"]
    assert config.image_aspect_ratio == "pad"


@pytest.mark.parametrize("name", ["large", "xxlarge", "frozen"])
def test_rules_leave_no_weight_over_and_none_out(name: str) -> None:
    """Every name of the original becomes one of the model or is dropped; every one of the model's tower is made."""
    source = original(name)
    model = family.model_class()(family.configure(source))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if ".vision_tower." in key}
    made, dropped = {}, set()
    for key, shape in source.shapes.items():
        if not key.startswith("model.vision_tower."):
            continue
        pattern, replacement = next(rule for rule in family.RULES if re.match(rule[0], key))
        if replacement:
            made[re.sub(pattern, replacement, key, count=1)] = shape
        else:
            dropped.add(key)
    assert made == shapes
    assert all(re.search(r"\.head\.|class_embedding|post_layernorm|position_ids", key) for key in dropped)


def test_only_two_towers_are_claimed() -> None:
    assert family.claims({"is_multipath_encoder": True, "vision_tower_slow": "convnext_xxlarge"})
    assert not family.claims({"is_multipath_encoder": False, "vision_tower_slow": "convnext_xxlarge"})
    assert not family.claims({"is_multipath_encoder": True})
    assert not family.claims({"mm_vision_tower": "openai/clip-vit-large-patch14-336"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_projector_type", None),
        ("mm_use_im_start_end", True),
        ("input_image_size", None),
        ("mm_hidden_size", 4096),
    ],
)
def test_variants_that_are_not_supported_are_named(field: str, value: Any) -> None:
    with pytest.raises(FitPruneError, match=field) as error:
        family.configure(original("large", **{field: value}))
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_towers_is_refused() -> None:
    source = original("large")
    with pytest.raises(FitPruneError, match="vision_tower_slow"):
        family.configure(Original(source.config, source.text, source.clip, 33, {"model.mm_projector.0.weight": (4, 4)}))


@pytest.mark.parametrize(("aspect", "squared"), [("pad", True), (None, False), ("square", False)])
@pytest.mark.parametrize("size", [(150, 64), (40, 90), (70, 70), (700, 500)])
def test_images_are_squared_as_configured(size: tuple[int, int], aspect: str | None, squared: bool) -> None:
    """Against the steps one by one: square with the mean colour, then CLIP's own processor."""
    config = family.configure(original("large", input_image_size=384, image_aspect_ratio=aspect))
    images = family.images(config, family.image_processor(config, None))
    image = Image.effect_noise(size, 90).convert("RGB")
    clip = CLIPImageProcessor(size={"shortest_edge": 384}, crop_size={"height": 384, "width": 384})
    whole = pad_to_square(image, MEAN_COLOUR) if squared else image
    expected = clip(whole, return_tensors="pt")["pixel_values"]
    assert torch.equal(images.prepare(image)["pixel_values"], expected)
    assert images.tokens_for(image) == config.image_seq_length == 576


def test_a_saved_processor_gives_the_same_pixels(tmp_path: Path) -> None:
    config = family.configure(original("large", input_image_size=384, image_aspect_ratio="pad"))
    first = family.image_processor(config, None)
    tokenizer = LlamaTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    family.processor(config, first, tokenizer).save_pretrained(tmp_path)
    image = Image.effect_noise((80, 50), 90).convert("RGB")
    again = family.images(config, family.image_processor(config, str(tmp_path)))
    expected = family.images(config, first).prepare(image)["pixel_values"]
    assert torch.equal(again.prepare(image)["pixel_values"], expected)
