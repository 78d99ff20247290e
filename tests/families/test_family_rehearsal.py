"""LLaVAs with other towers, layers and language models than the three families': answered as transformers does, or refused by name before
their weights are read. Tiny random checkpoints with their own processors; transformers' model and processor are the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from PIL import Image

import fitprune
from fitprune.embedded import model_path
from fitprune.errors import FitPruneError
from fitprune.families import loading
from fitprune.images.lengths import ImageLengths

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
TEXT = {
    **SMALL,
    "vocab_size": 144,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {**SMALL, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
PIXELS = {
    "do_resize": True,
    "do_normalize": True,
    "resample": 3,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "processor_class": "LlavaProcessor",
}
CLIP_PIXELS = {
    **PIXELS, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
}  # fmt: skip
SQUARE = {"height": 56, "width": 56}
SIGLIP_PIXELS = {**PIXELS, "image_processor_type": "SiglipImageProcessor", "size": SQUARE}
GRID = [[56, 112], [112, 56], [112, 112]]
NEXT_PIXELS = {
    **CLIP_PIXELS, "image_processor_type": "LlavaNextImageProcessor", "size": SQUARE, "image_grid_pinpoints": GRID, "do_pad": True,
    "do_center_crop": False, "processor_class": "LlavaNextProcessor",
}  # fmt: skip
IMAGES = [Image.effect_noise((width, height), 90).convert("RGB") for width, height in ((50, 50), (90, 40), (40, 120))]


def clip(**fields: Any) -> Any:
    return T.CLIPVisionConfig(**{**TOWER, **fields})


def siglip(**fields: Any) -> Any:
    return T.SiglipVisionConfig(**{**TOWER, **fields})


def saved(
    folder: Path,
    tower: Any,
    pixels: Mapping[str, Any],
    text: Any = None,
    kind: str = "Llava",
    said: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A checkpoint of random weights; said: its processor_config.json, if it has one."""
    torch.manual_seed(0)
    config = getattr(T, f"{kind}Config")(
        vision_config=tower, text_config=text or T.LlamaConfig(**TEXT), image_token_index=4, image_seq_length=16, **fields
    )
    getattr(T, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
    T.AutoTokenizer.from_pretrained(model_path("embedded")).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    if said is not None:
        (folder / "processor_config.json").write_text(json.dumps(said))
    return folder


def siglip_default(folder: Path) -> Path:
    return saved(folder, siglip(), SIGLIP_PIXELS, vision_feature_select_strategy="default", vision_feature_layer=-2)


RIGHT: dict[str, Callable[[Path], Path]] = {
    "SigLIP, full": lambda to: saved(to, siglip(), SIGLIP_PIXELS, vision_feature_select_strategy="full", vision_feature_layer=-1),
    "SigLIP, less a patch": siglip_default,
    "SigLIP, layers": lambda to: saved(
        to, siglip(), SIGLIP_PIXELS, vision_feature_select_strategy="full", vision_feature_layer=[-3, -2, -1]
    ),
    "SigLIP, Qwen2": lambda to: saved(
        to, siglip(), SIGLIP_PIXELS, T.Qwen2Config(**TEXT), vision_feature_select_strategy="full", vision_feature_layer=-1
    ),
    "NeXT with SigLIP and Granite": lambda to: saved(
        to, siglip(), NEXT_PIXELS, T.GraniteConfig(**TEXT), "LlavaNext",
        vision_feature_select_strategy="full", vision_feature_layer=[-2, -1], image_grid_pinpoints=GRID,
    ),
    "ViP": lambda to: saved(to, clip(), CLIP_PIXELS, kind="VipLlava", vision_feature_layers=[-2, -1]),
    "OneVision": lambda to: saved(
        to, siglip(), {**NEXT_PIXELS, "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor"},
        T.Qwen2Config(**TEXT), "LlavaOnevision", image_grid_pinpoints=GRID, vision_feature_layer=-1, video_token_index=143,
    ),
}  # fmt: skip
OURS: dict[str, Callable[[Path], Path]] = {  # the family `llava`, whose prompt and images are LLaVA's own
    "CLIP and Mistral": lambda to: saved(to, clip(), CLIP_PIXELS, T.MistralConfig(**TEXT, head_dim=8, sliding_window=None)),
    "CLIP and Phi": lambda to: saved(to, clip(), CLIP_PIXELS, T.PhiConfig(**TEXT)),
    "CLIP and Gemma": lambda to: saved(to, clip(), CLIP_PIXELS, T.GemmaConfig(**TEXT, head_dim=8)),
    "CLIP, full": lambda to: saved(to, clip(), CLIP_PIXELS, vision_feature_select_strategy="full"),
    "CLIP, layers": lambda to: saved(to, clip(), CLIP_PIXELS, vision_feature_layer=[-3, -2]),
    "CLIP, other pixels": lambda to: saved(to, clip(), SIGLIP_PIXELS),
}
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "crops": (
        lambda to: saved(to, clip(), {**CLIP_PIXELS, "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
        "clip_vision_model.* cannot take what its image processor makes",
    ),
    "another size": (
        lambda to: saved(to, siglip(), {**SIGLIP_PIXELS, "size": {"height": 28, "width": 28}}, vision_feature_select_strategy="full"),
        "siglip_vision_model.*(cannot take|visual tokens)",
    ),
    "patches": (
        lambda to: saved(
            to, siglip(), SIGLIP_PIXELS, said={"processor_class": "LlavaProcessor", "patch_size": 28}, vision_feature_select_strategy="full"
        ),
        "makes 16 visual tokens of an image of 64 × 64, a prompt is given 4",
    ),
    "strategy": (
        lambda to: saved(
            to, siglip(), SIGLIP_PIXELS, said={"processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"},
            vision_feature_select_strategy="full",
        ),
        "makes 16 visual tokens .* given 15",
    ),
    "NeXT without its first patch": (
        lambda to: saved(
            to, siglip(), NEXT_PIXELS, None, "LlavaNext", vision_feature_select_strategy="default", image_grid_pinpoints=GRID
        ),
        "siglip_vision_model",
    ),
}  # fmt: skip


@pytest.fixture(params=RIGHT)
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return RIGHT[request.param](tmp_path / "model")


def counted(model: Any, inputs: Mapping[str, Any]) -> int:
    names = ("pixel_values", "image_sizes")
    made = model.base_model.get_image_features(**{name: inputs[name] for name in names if name in inputs})
    return sum(len(one.reshape(-1, one.shape[-1])) for one in getattr(made, "pooler_output", made))


def agrees(vlm: Any, image: Image.Image) -> None:
    """The prompt has as many tokens as the model makes of the image, and a recipe that deletes nothing changes nothing."""
    inputs = vlm.encode([(vlm.prompt("What is it?"), [image])])
    with torch.no_grad():
        assert int((inputs["input_ids"] == vlm.image_token).sum()) == vlm.tokens_for(image) == counted(vlm.model, inputs)
        dense = vlm.model(**inputs).logits
        with fitprune.prune(vlm.model, fitprune.Recipe.none(vlm.cost.layers)):
            torch.testing.assert_close(vlm.model(**inputs).logits, dense)
        with fitprune.prune(vlm.model, fitprune.Recipe.step(layer=0, keep=0.5)) as trace:
            vlm.generate(inputs, max_new_tokens=2)
    assert trace.visual_tokens == [vlm.tokens_for(image)]
    assert len(trace.visual[-1][0]) == pytest.approx(vlm.tokens_for(image) / 2, abs=1)


def test_another_tower_is_answered_as_transformers_does(other: Path) -> None:
    vlm = fitprune.load(str(other), device="cpu")
    model = T.AutoModelForImageTextToText.from_pretrained(other, dtype=torch.float32).eval()
    for image in IMAGES:
        agrees(vlm, image)
        inputs = vlm.encode([(vlm.prompt("What is it?"), [image])])
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
        assert vlm.ask("What is it?", image, max_new_tokens=4) == vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("name", OURS)
def test_other_language_models_and_layers_of_clip(name: str, tmp_path: Path) -> None:
    vlm = fitprune.load(str(OURS[name](tmp_path / "model")), device="cpu")
    for image in IMAGES:
        agrees(vlm, image)


@pytest.mark.parametrize("name", ["SigLIP, full", "SigLIP, less a patch", "ViP"])
def test_images_side_by_side_are_told_apart_by_their_size(name: str, tmp_path: Path) -> None:
    vlm = fitprune.load(str(RIGHT[name](tmp_path / "model")), device="cpu")
    assert ImageLengths(vlm.model.config).each == vlm.tokens_for(IMAGES[0])


def test_pixtral_in_hand_has_a_budget_for_each_image_whatever_its_rows(tmp_path: Path) -> None:
    """A `llava` by its model type: images of any size, a mark of its own after each row of patches. Its processor needs torchvision."""
    tower = T.PixtralVisionConfig(**SMALL, num_hidden_layers=2, image_size=64, patch_size=16, head_dim=8)
    text = T.MistralConfig(**TEXT, head_dim=8, sliding_window=None)
    config = T.LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=4, vision_feature_select_strategy="full", vision_feature_layer=-1
    )
    torch.manual_seed(0)
    model = T.LlavaForConditionalGeneration(config).eval()
    assert ImageLengths(model.config).each is None
    images = [[4] * 4 + [9]] * 4, [[4] * 2 + [9]] * 3  # 64 × 64 and 48 × 32 pixels
    ids = [1, 7, *(token for image in images for row in image for token in row), 20, 21]
    inputs = {
        "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(2, 3, 64, 64), "image_sizes": torch.tensor([[64, 64], [48, 32]]),
    }  # fmt: skip
    with torch.no_grad(), fitprune.prune(model, fitprune.Recipe.step(layer=0, keep=0.5)) as trace:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    (places,), (left,) = trace.image_tokens, trace.visual[-1]
    assert [len(one) for one in places] == [16, 6]
    assert [int(torch.isin(left.cpu(), one.cpu()).sum()) for one in places] == [8, 3]
    assert fitprune.observe(model, [inputs], progress=False).visual_tokens.tolist() == [16, 6]


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_refused_before_weights_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = WRONG[name]
    path = make(tmp_path / "model")
    monkeypatch.setattr(loading, "from_transformers", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(FitPruneError, match=said) as caught:
        fitprune.load(str(path), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_layer_that_the_tower_has_not_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", clip(), CLIP_PIXELS)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -9}))
    with pytest.raises(FitPruneError, match=r"clip_vision_model.*cannot take|no model"):
        fitprune.load(str(path), device="cpu")


def test_sizes_that_the_config_does_not_say_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", clip(), CLIP_PIXELS)
    config = json.loads((path / "config.json").read_text())
    del config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FitPruneError, match=r"clip_vision_model.* cannot take what its image processor makes"):
        fitprune.load(str(path), device="cpu")
