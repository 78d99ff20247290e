"""LLaVA-HR as a transformers model: saved and loaded by Auto classes, generating, pruned; and its processor."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, LlamaConfig, LlamaTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import fitprune
import fitprune.llava_hr
from fitprune.errors import FitPruneError
from fitprune.llava_hr import (
    LlavaHrConfig,
    LlavaHrForConditionalGeneration,
    LlavaHrImageProcessor,
    LlavaHrModel,
    LlavaHrProcessor,
    LlavaHrVisionConfig,
)

SIDE = 32  # 16 visual tokens, as many as tiny.prompt writes
TOKENIZER = Path(__file__).parents[1] / "parity" / "llava15" / "checkpoint"


def config(**vision: Any) -> LlavaHrConfig:
    clip = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, image_size=16, patch_size=4)
    tower = {"clip": clip, "depths": [1, 2], "hidden_sizes": [4, 6], "image_size": SIDE, **vision}
    return LlavaHrConfig(LlavaHrVisionConfig(**tower), LlamaConfig(**tiny.SIZES), image_token_index=tiny.IMAGE_TOKEN)


def build(seed: int = 0, **vision: Any) -> Any:
    """A model in which every weight of the tower matters."""
    model = tiny.sharpen(LlavaHrForConditionalGeneration(config(**vision)), seed)
    generator = torch.Generator().manual_seed(3000 + seed)
    for name, weight in model.model.vision_tower.named_parameters():
        if weight.ndim == 4 or "layer_scale" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5
    return model


def prompt(*parts: int | str, seed: int = 0) -> dict[str, Tensor]:
    inputs = tiny.prompt(*parts, seed=seed)
    if count := parts.count("image"):
        generator = torch.Generator().manual_seed(4000 + seed)
        inputs["pixel_values"] = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return inputs


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    known = LlamaTokenizer.from_pretrained(TOKENIZER)
    known.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return known


# ---- the model ------------------------------------------------------------------------------------------------------


def test_round_trip_through_auto_classes(model: Any, tmp_path: Path) -> None:
    inputs = prompt(3, "image", 4)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()  # names as in memory

    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is LlavaHrForConditionalGeneration
    assert type(again.model) is LlavaHrModel
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-5, rtol=0)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is LlavaHrModel
    torch.testing.assert_close(model.lm_head(bare(**inputs).last_hidden_state), expected, atol=1e-5, rtol=0)


def test_round_trip_of_the_config(tmp_path: Path) -> None:
    first = config(adapters=False, layer_norm_eps=1e-5)
    first.image_aspect_ratio = "square"
    first.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is LlavaHrConfig
    assert type(again.vision_config) is LlavaHrVisionConfig
    again.name_or_path = ""  # the folder
    assert again.to_dict() == first.to_dict()
    assert (again.image_seq_length, again.image_aspect_ratio, again.vision_config.adapters) == (16, "square", False)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["model_type"] == "llava_hr"


def test_token_count_follows_from_the_vision_config_whatever_is_given() -> None:
    again = LlavaHrConfig(config(image_size=48).vision_config.to_dict(), image_seq_length=5)
    assert again.image_seq_length == again.vision_config.num_image_tokens == 36
    assert (again.vision_feature_select_strategy, again.vision_feature_layer) == ("full", -1)


def test_registering_twice_does_not_fail() -> None:
    importlib.reload(fitprune.llava_hr)
    assert type(AutoConfig.for_model("llava_hr")) is LlavaHrConfig


def test_missing_weights_are_reported_and_drawn_anew(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    scale = "model.vision_tower.high_res.stages.1.layers.0.layer_scale_parameter"
    lost = {"model.vision_tower.adapters.1.gate.2.bias", scale}
    for name in lost:
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, report = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == lost
    assert set(again.state_dict()[scale].tolist()) == {torch.tensor(1e-6).item()}  # drawn anew, not what memory held


def test_every_weight_of_the_tower_matters() -> None:
    model = build()
    inputs = prompt(2, "image", 2)
    model(**inputs).logits.sum().backward()
    idle = {name for name, weight in model.model.named_parameters() if weight.grad is None}
    assert not idle
    still = {name for name, weight in model.model.vision_tower.named_parameters() if not weight.grad.abs().sum() > 0}
    # a constant added to every key moves no softmax
    assert {name for name in still if not name.endswith("k_proj.bias")} == set()


def test_each_image_is_encoded_on_its_own(model: Any) -> None:
    inputs = prompt(2, "image", 3, "image", 2)
    both = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    assert [tuple(features.shape) for features in both] == [(16, tiny.HIDDEN)] * 2
    for image, features in zip(inputs["pixel_values"], both, strict=True):
        alone = model.get_image_features(pixel_values=image[None]).pooler_output[0]
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_from_float32_pixels(tmp_path: Path, dtype: torch.dtype) -> None:
    build().save_pretrained(tmp_path)
    half = LlavaHrForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    inputs = prompt(3, "image", 4)
    with torch.no_grad():
        found = half.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
        expected = half.float().get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
        logits = half.to(dtype)(**inputs).logits
    assert found.dtype == dtype
    assert torch.isfinite(logits).all()
    assert (found.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_chosen_when_loading(tmp_path: Path, implementation: str) -> None:
    build().save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=implementation)
    model(**prompt(2, "image", 2))
    used = {type(m).__name__: m.config._attn_implementation for m in model.modules() if hasattr(m, "q_proj")}
    assert used == {"CLIPAttention": implementation, "LlamaAttention": implementation}


def test_generation_in_a_left_padded_batch_as_row_by_row(model: Any) -> None:
    rows = [prompt(2, "image", 3, seed=1), prompt(6, "image", 2, "image", 4, seed=2), prompt(5, seed=3)]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": tiny.PAD}
    alone = [model.generate(**row, **options)[0, -5:] for row in rows]
    together = model.generate(**tiny.batch(rows, "left"), **options)
    assert torch.equal(together[:, -5:], torch.stack(alone))


def test_adjacent_images_are_two_spans() -> None:
    locate = tiny.found_by(config())
    assert locate.lengths.each == 16
    assert locate(prompt(3, "image", "image", 2)).spans() == [[((3, 19),), ((19, 35),)]]


def test_pruning_deletes_what_the_slow_oracle_deletes() -> None:
    model = build(seed=5)
    inputs = prompt(4, "image", 3, "image", 5, seed=5)
    oracle = tiny.dense_pruned(model, inputs, [(4, 20), (23, 39)], tiny.RECIPE)
    with fitprune.prune(model, tiny.RECIPE) as trace, torch.no_grad():
        logits = model(**inputs).logits
    for layer in range(tiny.LAYERS):
        assert trace.alive[layer][0].tolist() == oracle.alive(layer)
    assert len(oracle.alive(tiny.LAYERS - 1)) == 44 - 2 * 10
    torch.testing.assert_close(logits[0, -1], oracle.logits[-1], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        unpruned = model(**inputs).logits[0, -1]
    assert (unpruned - oracle.logits[-1]).abs().max() > 1e-3


# ---- the processor --------------------------------------------------------------------------------------------------


def processor(tokenizer: Any, pad: bool = True) -> LlavaHrProcessor:
    images = LlavaHrImageProcessor(do_pad=pad, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaHrProcessor(images, tokenizer, image_seq_length=16)


def noise(width: int = 20, height: int = 50) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def test_processor_expands_images_and_tokenises_in_pieces(tokenizer: Any) -> None:
    inputs = processor(tokenizer)(noise(), "USER: <image>\nWhat?")
    image = tokenizer.convert_tokens_to_ids("<image>")
    expected = [*tokenizer("USER: ").input_ids, *[image] * 16, *tokenizer("\nWhat?").input_ids[1:]]
    assert inputs["input_ids"] == [expected]
    assert inputs["attention_mask"] == [[1] * len(expected)]
    assert expected != tokenizer("USER: " + "<image>" * 16 + "\nWhat?").input_ids  # in one pass: other ids


def test_processor_pads_a_batch_on_the_tokenizers_side(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    texts = ["<image>\nWhat?", "<image>\nand <image>\nWhat is shown?", "Hello"]
    inputs = processor(tokenizer)([noise(), noise(9, 9), noise(30, 10)], texts, padding=True, return_tensors="pt")
    assert inputs["pixel_values"].shape == (3, 3, SIDE, SIDE)
    longest = int(inputs["attention_mask"].sum(1).max())
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, longest)
    assert inputs["attention_mask"][:, -1].all()
    images = inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")
    assert images.sum(1).tolist() == [16, 32, 0]


def test_processor_leaves_rows_unpadded_unless_told(tokenizer: Any) -> None:
    rows = processor(tokenizer)(noise(), ["<image>\nWhat?", "Hello"])["input_ids"]
    assert [len(row) for row in rows] == [len(tokenizer("\nWhat?").input_ids) + 16, len(tokenizer("Hello").input_ids)]


def test_processor_makes_the_round_trip(tokenizer: Any, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    first = processor(tokenizer)
    first.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is LlavaHrProcessor
    assert type(again.image_processor) is type(AutoImageProcessor.from_pretrained(tmp_path)) is LlavaHrImageProcessor
    image, text = noise(), "<image>\nWhat?"
    one, two = (each(image, text, return_tensors="pt") for each in (first, again))
    assert one.keys() == two.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_processed_inputs_run_through_the_model(tokenizer: Any) -> None:
    sizes = {**tiny.SIZES, "vocab_size": len(tokenizer)}
    wide = LlavaHrConfig(config().vision_config, LlamaConfig(**sizes), image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    model = LlavaHrForConditionalGeneration(wide).eval()
    inputs = processor(tokenizer)([noise(), noise()], "<image>\nor <image>\nWhat?", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(tokenizer))


def test_processor_takes_what_a_chat_template_hands_it(tokenizer: Any, tmp_path: Path) -> None:
    """Images by row, files, texts that bring their BOS token, and none where that is asked for."""
    ready, picture = processor(tokenizer), noise()
    picture.save(tmp_path / "a.png")
    text = "<image>\nWhat?"
    wanted = ready([picture, picture], [text, text], return_tensors="pt")
    made = ready([[picture], [str(tmp_path / "a.png")]], [text, text], videos=None, audio=None, return_tensors="pt")
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)
    ids = wanted["input_ids"][0].tolist()
    assert ready(picture, f"<s>{text}", add_special_tokens=False)["input_ids"][0].count(tokenizer.bos_token_id) == 1
    assert ready(picture, text, add_special_tokens=False)["input_ids"] == [ids[1:]]
    chat = "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}<image>\n{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "a.png")}]}]
    inputs = ready.apply_chat_template(messages, chat_template=chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["input_ids"].tolist() == ready(picture, "<image>\n")["input_ids"]
    assert torch.equal(inputs["pixel_values"], wanted["pixel_values"][:1])


def test_what_cannot_be_processed_is_refused(tokenizer: Any) -> None:
    ready = processor(tokenizer)
    with pytest.raises(FitPruneError, match="nothing to process"):
        ready()
    with pytest.raises(FitPruneError, match="leave out videos and audio"):
        ready(text="a", videos=[[noise()]])
    with pytest.raises(FitPruneError, match=r"the texts have 2 <image> but there are 1 image"):
        ready(noise(), ["<image>\na", "<image>\nb"])
    with pytest.raises(FitPruneError, match=r"the texts have 1 <image> but there are 0 image"):
        ready(text="<image>\na")
    unaware = processor(LlamaTokenizer.from_pretrained(TOKENIZER))
    with pytest.raises(FitPruneError, match="does not know <image>"):
        unaware(noise(), "<image>\na")
