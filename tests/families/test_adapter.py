"""Adapter folders of PEFT: their base is loaded, they are merged into it, and nothing of them is lost without a word."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from multimodal import PARITY
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import fitprune
from fitprune.checkpoints.source import Source
from fitprune.cli import main
from fitprune.embedded import embedded, model_path
from fitprune.errors import FitPruneError
from fitprune.families.adapter import base_of, settled
from fitprune.families.vlm import VLM

RANK, ALPHA = 4, 12
QUESTION = "What number is written?"
PARTS = ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "mlp.down_proj.weight")


@pytest.fixture(scope="module")
def base() -> VLM:
    return fitprune.load("embedded", device="cpu")


def adapter(folder: Path, weights: dict[str, Tensor], before: str = "base_model.model.", **config: Any) -> Path:
    """An adapter of some of a model's weights, as PEFT writes it, made without PEFT."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, weight in weights.items():
        if name.endswith(PARTS):
            key = before + name.removesuffix(".weight")
            tensors[f"{key}.lora_A.weight"] = 0.2 * torch.randn(RANK, weight.shape[1], generator=generator)
            tensors[f"{key}.lora_B.weight"] = 0.2 * torch.randn(weight.shape[0], RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "init_lora_weights": True, "peft_version": "0.21.2",
        "base_model_name_or_path": str(model_path()), "target_modules": [part.split(".")[1] for part in PARTS], **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def weights_of(vlm: VLM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in vlm.model.named_parameters()}


def by_hand(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """W + alpha / r · B A, where the adapter's names are the model's."""
    tensors, out = load_file(folder / "adapter_model.safetensors"), dict(weights)
    for key in [key for key in tensors if ".lora_A." in key]:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        out[name] = weights[name] + ALPHA / RANK * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return out


def assert_weights(vlm: VLM, wanted: dict[str, Tensor]) -> None:
    for name, weight in vlm.model.named_parameters():
        torch.testing.assert_close(weight, wanted[name], msg=name)


def test_the_base_that_an_adapter_names_is_loaded_and_merged(base: VLM, tmp_path: Path) -> None:
    made = adapter(tmp_path / "lora", weights_of(base))
    vlm = fitprune.load(str(made), device="cpu")
    assert_weights(vlm, by_hand(weights_of(base), made))
    assert (vlm.name, vlm.template, vlm.cost) == (str(made), base.template, base.cost)
    picture = Image.open(embedded().picture)
    inputs = vlm.encode([(vlm.prompt(QUESTION), [picture])])
    with torch.no_grad():
        assert (vlm.model(**inputs).logits - base.model(**inputs).logits).abs().max() > 0.1


def test_names_of_weights_as_transformers_once_had_them(base: VLM, tmp_path: Path) -> None:
    """As transformers 4 named them, and 5.0 the vision tower's; the model's own stand beside."""
    weights = weights_of(base)
    old = {}
    for name, weight in weights.items():
        short = name.removeprefix("model.")
        old[short.replace("language_model.", "language_model.model.").replace("vision_tower.", "vision_tower.vision_model.")] = weight
    now, then = adapter(tmp_path / "now", weights), adapter(tmp_path / "then", old)
    assert not set(load_file(now / "adapter_model.safetensors")) & set(load_file(then / "adapter_model.safetensors"))
    assert_weights(fitprune.load(str(then), device="cpu"), by_hand(weights, now))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "model.vision_tower.encoder.layers.0.mlp.fc1.weight"),
        ("multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.weight"),
    ],
)
def test_names_that_are_the_same(name: str, same: str) -> None:
    assert settled(name) == settled(same)
    assert settled(same) == same.removeprefix("model.")


def test_a_base_elsewhere(base: VLM, tmp_path: Path) -> None:
    made = adapter(tmp_path / "lora", weights_of(base), base_model_name_or_path="/gone/llava")
    with pytest.raises(FitPruneError, match=r"lora is an adapter of /gone/llava \(no checkpoint at /gone.* --model-base") as caught:
        fitprune.load(str(made))
    assert "\n" not in str(caught.value)
    vlm = fitprune.load(str(made), model_base="embedded", device="cpu")
    assert_weights(vlm, by_hand(weights_of(base), made))


def test_a_base_that_is_not_here_or_is_quantised(base: VLM, tmp_path: Path) -> None:
    weights = weights_of(base)
    folder = tmp_path / "llava"
    folder.mkdir()
    made = adapter(tmp_path / "lora", weights, base_model_name_or_path=str(folder))
    with pytest.raises(FitPruneError, match=r"lora is an adapter of .*llava \(.*config\.json is not in this folder\).*--model-base"):
        fitprune.load(str(made))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava", "text_config": {}, "quantization_config": {"load_in_4bit": True}})
    )
    with pytest.raises(FitPruneError, match=r"llava: config\.json has a quantization_config.*whole precision"):
        fitprune.load(str(made))
    assert fitprune.load(str(made), model_base="embedded", device="cpu").name == str(made)


def test_an_adapter_that_was_saved_empty(base: VLM, tmp_path: Path) -> None:
    made = adapter(tmp_path / "lora", weights_of(base))
    file = made / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.zeros(0) for name in tensors}, file)
    with pytest.raises(FitPruneError, match=r"adapter_model\.safetensors was saved empty .*ZeRO-3"):
        fitprune.load(str(made), device="cpu")
    save_file({}, file)
    with pytest.raises(FitPruneError, match="holds no tensors, so it would change nothing"):
        fitprune.load(str(made), device="cpu")


def test_a_base_in_the_original_layout(tmp_path: Path) -> None:
    original = str(PARITY / "llava15" / "checkpoint")
    weights = weights_of(fitprune.load(original, device="cpu"))
    made = adapter(tmp_path / "lora", weights, base_model_name_or_path=original)
    assert_weights(fitprune.load(str(made), device="cpu"), by_hand(weights, made))


def test_what_is_no_adapter(tmp_path: Path) -> None:
    for path in (model_path(), PARITY / "llava15" / "checkpoint"):
        assert base_of(Source(path), None) is None
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"mm_vision_tower": "openai/clip"}')
    assert base_of(Source(tmp_path), None) is None  # LLaVA's own
    (tmp_path / "config.json").write_text('{"model_type": "llava", "text_config": {}}')
    assert base_of(Source(tmp_path), "embedded") == "embedded"  # a trainer may put the base's config there
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert base_of(Source(tmp_path), None) is None


def test_what_does_not_fit_is_said(base: VLM, tmp_path: Path) -> None:
    weights = weights_of(base)
    with pytest.raises(FitPruneError, match="names no base: give it with --model-base"):
        fitprune.load(str(adapter(tmp_path / "a", weights, base_model_name_or_path=None)))
    other = {name.replace("language_model", "another_model"): weight for name, weight in weights.items()}
    with pytest.raises(FitPruneError, match=r"27 parts of the adapter fit no weight of the base, such as model\.another_model"):
        fitprune.load(str(adapter(tmp_path / "b", other)), device="cpu")
    wide = {name: torch.zeros(weight.shape[0], 5) for name, weight in weights.items() if weight.ndim == 2}
    with pytest.raises(FitPruneError, match="give the base that it was trained on"):
        fitprune.load(str(adapter(tmp_path / "c", wide)), device="cpu")
    made = adapter(tmp_path / "d", weights, base_model_name_or_path=str(tmp_path / "a"))
    with pytest.raises(FitPruneError, match="which is an adapter itself"):
        fitprune.load(str(made))
    (made / "adapter_model.safetensors").unlink()
    with pytest.raises(FitPruneError, match=r"is incomplete: adapter_config\.json is there but no"):
        fitprune.load(str(made), model_base="embedded", device="cpu")
    with pytest.raises(FitPruneError, match="merge it with PEFT first to share it out"):
        fitprune.load(str(made), model_base="embedded", tensor_parallel=True)


def test_a_vocabulary_that_grew_is_refused(base: VLM, tmp_path: Path) -> None:
    made = adapter(tmp_path / "lora", weights_of(base))
    base.tokenizer.save_pretrained(made)
    assert fitprune.load(str(made), device="cpu").name == str(made)
    text = (made / "tokenizer.json").read_text()
    assert '"octagon"' not in text
    (made / "tokenizer.json").write_text(text.replace('"##z"', '"octagon"', 1))
    with pytest.raises(FitPruneError, match="1 tokens that its base has not, such as 'octagon'"):
        fitprune.load(str(made), device="cpu")


def test_other_kinds_without_peft_say_what_to_install(base: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    made = adapter(tmp_path / "lora", weights_of(base), use_dora=True)
    with pytest.raises(FitPruneError, match=r"use_dora True, which is not supported.*pip install 'fitprune\[peft\]'"):
        fitprune.load(str(made), device="cpu")


def test_the_command(base: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = adapter(tmp_path / "lora", weights_of(base), base_model_name_or_path="/gone/llava")
    command = [
        "fit",
        "--by",
        "mass",
        "--model-path",
        str(made),
        "--samples",
        "2",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "recipe.json"),
    ]
    assert main(command) == 2
    assert "--model-base" in capsys.readouterr().err
    assert main([*command, "--model-base", "embedded"]) == 0
    recipe = fitprune.Recipe.load(tmp_path / "recipe.json")
    assert (recipe.model, recipe.cost) == (str(made), base.cost)


# ---- with PEFT itself ---------------------------------------------------------------------------------------------------


def trained(base: VLM, folder: Path, **options: Any) -> Any:
    """An adapter that PEFT saves into a folder, and the model with it merged by PEFT."""
    peft = pytest.importorskip("peft")
    model = fitprune.load("embedded", device="cpu").model
    model.config._name_or_path = model.name_or_path = str(model_path())
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "o_proj", "up_proj"], **options}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, weight in wrapped.named_parameters():
        if weight.requires_grad:
            generator = torch.Generator().manual_seed(len(name))
            weight.data = weight.data + 0.1 * torch.randn(weight.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_what_peft_saves_is_what_peft_merges(options: dict[str, Any], base: VLM, tmp_path: Path) -> None:
    wanted = trained(base, tmp_path / "lora", **options)
    ours = fitprune.load(str(tmp_path / "lora"), device="cpu")
    picture = Image.open(embedded().picture)
    inputs = ours.encode([(ours.prompt(QUESTION), [picture])])
    recipe = fitprune.Recipe.step(layer=1, keep=0.4)
    with torch.no_grad():
        torch.testing.assert_close(ours.model(**inputs).logits, wanted(**inputs).logits, atol=1e-3, rtol=1e-3)
        assert (ours.model(**inputs).logits - base.model(**inputs).logits).abs().max() > 0.1
        with fitprune.prune(ours.model, recipe), fitprune.prune(wanted, recipe):
            torch.testing.assert_close(ours.model(**inputs).logits, wanted(**inputs).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "changed",
    [
        lambda name: name.replace("layers.3.", "layers.93."),
        lambda name: name.replace("layers.3.", "model.layers.3."),  # as some transformers might name it: PEFT does not know it
    ],
    ids=["a layer that is not there", "a level that is not there"],
)
def test_what_peft_would_lose_is_said(changed: Callable[[str], str], base: VLM, tmp_path: Path) -> None:
    trained(base, tmp_path / "lora", use_dora=True)
    file = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({changed(name): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(FitPruneError, match="parts of the adapter fit no part of the base"):
        fitprune.load(str(tmp_path / "lora"), device="cpu")


def test_an_adapter_before_the_prompt_is_refused(base: VLM, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = fitprune.load("embedded", device="cpu").model
    model.config._name_or_path = str(model_path())
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=192, num_layers=9, num_attention_heads=4)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(FitPruneError, match="tokens of its own before the prompt"):
        fitprune.load(str(tmp_path / "prompt"), device="cpu")
