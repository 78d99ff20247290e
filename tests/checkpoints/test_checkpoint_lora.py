"""LoRA and projector-only checkpoints, merged into their base: against the formula written out, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from multimodal import PARITY, Recorded, forward
from safetensors.torch import load_file, save_file
from torch import Tensor

import fitprune
from fitprune.checkpoints.lora import find_adapter, plain_name
from fitprune.checkpoints.source import Source
from fitprune.errors import FitPruneError

ORIGINAL = PARITY / "llava15" / "checkpoint"
RANK, ALPHA = 4, 8
PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def base_and_projector(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A plain language model as a folder, and the projector's weights."""
    base, weights = folder / "vicuna", Recorded("llava15").tensors()
    base.mkdir()
    projector = {key: weights.pop(key) for key in list(weights) if "mm_projector" in key}
    save_file({k: v for k, v in weights.items() if "inv_freq" not in k}, base / "model.safetensors")
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(ORIGINAL / file, base)
    (base / "config.json").write_text('{"model_type": "llama"}')
    return base, projector


def adapter(folder: Path, projector: dict[str, Tensor], prefix: str = "base_model.model.", **config: object) -> Path:
    """A LoRA checkpoint as LLaVA's training writes it."""
    path = folder / "llava-lora"
    path.mkdir()
    torch.manual_seed(0)
    tensors = {}
    for key, weight in Recorded("llava15").tensors().items():
        if any(part in key for part in PROJECTIONS):
            name = prefix + key.removesuffix(".weight")
            tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(RANK, weight.shape[1])
            tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(weight.shape[0], RANK)
    torch.save(tensors, path / "adapter_model.bin")
    torch.save({f"{prefix}{key}": value for key, value in projector.items()}, path / "non_lora_trainables.bin")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    shutil.copy(ORIGINAL / "config.json", path)
    return path


def merged(lora: Path, scale: float) -> dict[str, Tensor]:
    """The whole checkpoint with W + scale · B A, by hand."""
    tensors, weights = torch.load(lora / "adapter_model.bin", weights_only=True), Recorded("llava15").tensors()
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[name] += scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return weights


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, rslora: bool, scale: float) -> None:
    base, projector = base_and_projector(tmp_path)
    lora = adapter(tmp_path, projector, use_rslora=rslora)
    tower = str(ORIGINAL / "clip_tower")
    vlm = fitprune.load(str(lora), model_base=str(base), vision_tower=tower, device="cpu")
    whole = Recorded("llava15").rewritten(tmp_path / "whole", merged(lora, scale))
    expected = fitprune.load(str(whole), device="cpu")
    for (name, ours), theirs in zip(vlm.model.named_parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)
    unmerged = fitprune.load(str(ORIGINAL), device="cpu")
    case = Recorded("llava15").cases["square"]
    inputs = vlm.encode([(case["prompt"], Recorded("llava15").pictures("square"))])
    assert (forward(vlm, inputs)[0] - forward(unmerged, inputs)[0]).abs().max() > 0.01
    assert (forward(vlm, inputs)[0] - forward(expected, inputs)[0]).abs().max() < 1e-4


def test_a_projector_and_its_base_are_the_whole(tmp_path: Path) -> None:
    base, projector = base_and_projector(tmp_path)
    path = tmp_path / "projector-only"
    path.mkdir()
    torch.save(projector, path / "mm_projector.bin")
    shutil.copy(ORIGINAL / "config.json", path)
    with pytest.raises(FitPruneError, match="holds a projector only: give its language model with --model-base"):
        fitprune.load(str(path), device="cpu")
    shutil.copytree(ORIGINAL / "clip_tower", path / "clip")
    vlm = fitprune.load(str(path), model_base=str(base), device="cpu")
    Recorded("llava15").check_forward(vlm, "wide")


def test_the_base_is_asked_for_and_not_asked_for_in_vain(tmp_path: Path) -> None:
    base, projector = base_and_projector(tmp_path)
    lora = adapter(tmp_path, projector, base_model_name_or_path="lmsys/vicuna-7b-v1.5")
    with pytest.raises(FitPruneError, match=r"--model-base \(adapter_config\.json names lmsys/vicuna-7b-v1\.5"):
        fitprune.load(str(lora), device="cpu")
    with pytest.raises(FitPruneError, match="leave out --model-base"):
        fitprune.load(str(ORIGINAL), model_base=str(base), device="cpu")
    with pytest.raises(FitPruneError, match="leave out --model-base"):
        fitprune.load("embedded", model_base=str(base), device="cpu")
    (lora / "non_lora_trainables.bin").unlink()
    with pytest.raises(FitPruneError, match=r"non_lora_trainables\.bin is missing"):
        fitprune.load(str(lora), model_base=str(base), device="cpu")
    (lora / "adapter_model.bin").unlink()
    with pytest.raises(FitPruneError, match=r"is incomplete: adapter_config\.json is there but no"):
        fitprune.load(str(lora), model_base=str(base), device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 8}), ("modules_to_save", ["lm_head"]), ("peft_type", "IA3")],
)  # fmt: skip
def test_other_kinds_of_adapters_name_the_field(tmp_path: Path, field: str, value: object) -> None:
    lora = adapter(tmp_path, {}, **{field: value})
    with pytest.raises(FitPruneError, match=f"{field} .* is not supported: merge it with PEFT first"):
        find_adapter(Source(lora))


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    base, projector = base_and_projector(tmp_path)
    lora = adapter(tmp_path, projector)
    tower = str(ORIGINAL / "clip_tower")
    tensors = torch.load(lora / "adapter_model.bin", weights_only=True)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    torch.save(tensors | {key: torch.zeros(RANK, 99)}, lora / "adapter_model.bin")
    with pytest.raises(FitPruneError, match=r"the adapter of model\.layers\.0\.self_attn\.q_proj\.weight is for a weight \[64, 99\]"):
        fitprune.load(str(lora), model_base=str(base), vision_tower=tower, device="cpu")
    far = {k.replace("layers.0", "layers.77"): v for k, v in tensors.items()}
    torch.save(far, lora / "adapter_model.bin")
    with pytest.raises(FitPruneError, match=r"3 parts of the adapter fit no weight of the base, such as model\.layers\.77"):
        fitprune.load(str(lora), model_base=str(base), vision_tower=tower, device="cpu")
    torch.save({k: v for k, v in tensors.items() if k != key}, lora / "adapter_model.bin")
    with pytest.raises(FitPruneError, match="only one of its two matrices"):
        find_adapter(Source(lora))
    torch.save({"score.weight": torch.ones(1)}, lora / "adapter_model.bin")
    with pytest.raises(FitPruneError, match=r"score\.weight is not part of a LoRA adapter"):
        find_adapter(Source(lora))


@pytest.mark.parametrize(
    "key", ["model.mm_projector.0.bias", "base_model.model.mm_projector.0.bias", "base_model.model.model.mm_projector.0.bias"]
)
def test_prefixes_that_peft_left_are_taken_off(key: str) -> None:
    assert plain_name(key) == "model.mm_projector.0.bias"


QLORA = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def set_field(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_how_an_adapter_was_trained_does_not_matter_but_how_its_base_is_saved(tmp_path: Path) -> None:
    """LLaVA issue 1266: training with --bits 4 leaves its quantization_config in the adapter's config.json."""
    base, projector = base_and_projector(tmp_path)
    lora, tower = adapter(tmp_path, projector), str(ORIGINAL / "clip_tower")

    def loaded() -> dict[str, Tensor]:
        return dict(fitprune.load(str(lora), model_base=str(base), vision_tower=tower, device="cpu").model.named_parameters())

    wanted = loaded()
    set_field(lora, quantization_config=QLORA)
    for name, weight in loaded().items():
        assert torch.equal(weight, wanted[name]), name
    with pytest.raises(FitPruneError, match="is a LoRA adapter: give its base"):
        fitprune.load(str(lora), device="cpu")
    set_field(base, quantization_config=QLORA)
    with pytest.raises(FitPruneError, match=r"vicuna: config\.json has a quantization_config: quantised .* whole precision"):
        loaded()
    set_field(base, quantization_config=None)
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({**tensors, name: torch.zeros(512, 1, dtype=torch.uint8), f"{name}.absmax": torch.zeros(16)}, base / "model.safetensors")
    with pytest.raises(FitPruneError, match=r"model\.safetensors has .*q_proj\.weight\.absmax: quantised checkpoints are not supported"):
        loaded()


@pytest.mark.parametrize("file", ["adapter_model.bin", "non_lora_trainables.bin"])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_files_that_zero_3_saved_empty_are_named(file: str, all_of_them: bool, tmp_path: Path) -> None:
    base, projector = base_and_projector(tmp_path)
    lora = adapter(tmp_path, projector)
    tensors = torch.load(lora / file, weights_only=True)
    lost = list(tensors) if all_of_them else [max(tensors)]
    torch.save(tensors | {name: torch.zeros(0) for name in lost}, lora / file)
    with pytest.raises(FitPruneError, match=rf"{file} was saved empty .*{len(lost)} of {len(tensors)} tensors.*DeepSpeed ZeRO-3"):
        fitprune.load(str(lora), model_base=str(base), device="cpu")


def test_an_adapter_without_a_tensor_is_no_adapter(tmp_path: Path) -> None:
    _, projector = base_and_projector(tmp_path)
    lora = adapter(tmp_path, projector)
    torch.save({}, lora / "adapter_model.bin")
    with pytest.raises(FitPruneError, match="holds no tensors, so it would change nothing"):
        find_adapter(Source(lora))
