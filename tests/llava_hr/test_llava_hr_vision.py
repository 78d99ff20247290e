"""LLaVA-HR's vision tower against the authors' code: recorded outputs and intermediate values of small random towers.

tests/parity/llava_hr_vision/README.md says how they were made, and how far typical mistakes are above the tolerance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from fitprune.checkpoints.original import Original
from fitprune.errors import FitPruneError
from fitprune.families.llava_hr import RULES, configure
from fitprune.llava_hr import LlavaHrForConditionalGeneration, LlavaHrVisionConfig, LlavaHrVisionModel
from fitprune.llava_hr.vision import Adapter, Fusion, align, resize_positions

FOLDER = Path(__file__).parents[1] / "parity" / "llava_hr_vision"
CASES = json.loads((FOLDER / "cases.json").read_text())
MODULES = load_file(FOLDER / "modules.safetensors")
TOLERANCE = 1e-4  # of the largest reference value
RELEASED = {384: 576, 768: 576, 1024: 1024, 1536: 2304}  # image's side → visual tokens, CLIP ViT-L/14-336


def rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key, count=1) if replacement else ""
    return key


def recorded(case: str) -> Any:
    """The recorded model of a case, as the product configures it."""
    folder, size = FOLDER / case.split("/")[0], CASES[case]["image_size"]
    weights = load_file(folder / "weights.safetensors")
    fields = json.loads((folder / "config.json").read_text()) | {"input_image_size": size}
    text = LlamaConfig(vocab_size=8, hidden_size=fields["hidden_size"], intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    config = configure(Original(fields, text, CLIPVisionConfig(**fields["clip"]), 7, shapes))
    model = LlavaHrForConditionalGeneration(config).eval()
    projector = (
        (r"model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
        (r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    )
    renamed = {rename(name, [*RULES, *projector]): weight for name, weight in weights.items()}
    renamed.pop("", None)
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in missing)
    return model


def pixels(case: str) -> Tensor:
    images = [np.asarray(Image.open(FOLDER / name).convert("RGB"), dtype=np.float32) for name in CASES[case]["images"]]
    return (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) - 128) / 64


def check(found: Tensor, expected: Tensor, what: str = "") -> None:
    assert found.shape == expected.shape, what
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_tower_and_every_intermediate_value(case: str) -> None:
    expected = load_file(FOLDER / f"{case}.safetensors")
    model = recorded(case)
    tower, seen = model.model.vision_tower, {}

    def enters(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0])

    def leaves(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    tower.low_res.patch_embedding.register_forward_pre_hook(enters("lowres_input_sample"))
    tower.low_res.pre_layrnorm.register_forward_pre_hook(enters("clip_embeddings_every4"))
    tower.low_res.pre_layrnorm.register_forward_hook(leaves("after_pre_layrnorm_every4"))
    tower.high_res.register_forward_hook(leaves("slow_map"))
    tower.fusion.register_forward_pre_hook(enters("before_fusion_every4"))
    tower.fusion.register_forward_hook(leaves("features"))
    for number, adapter in enumerate(tower.adapters):
        adapter.register_forward_hook(leaves(f"after_adapter_{number}_every4"))
    with torch.no_grad():
        output = model.get_image_features(pixel_values=pixels(case))
    seen["projected"] = torch.stack(output.pooler_output)
    assert seen.keys() == expected.keys()
    assert seen["features"].shape[1] == CASES[case]["image_tokens"] == model.config.image_seq_length

    for name, value in seen.items():
        if name == "lowres_input_sample":
            value = value[:, :, ::8, ::8]
        elif name == "clip_embeddings_every4":  # recorded with a class token in front, which is not made here
            value, expected[name] = value[:, 3::4], expected[name][:, 1:]
        elif name.endswith("_every4"):
            value = value[:, ::4]
        check(value, expected[name], name)


@pytest.mark.parametrize("branch", ["upsample", "equal", "pool"])
@pytest.mark.parametrize(("kind", "name"), [(Adapter, "adapter"), (Fusion, "fusion")])
def test_modules_at_every_ratio_of_grids(branch: str, kind: Any, name: str) -> None:
    module = kind(low=16, high=24)
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in MODULES.items() if key.startswith(prefix)}
    module.load_state_dict({key.replace("slow_", "high_").replace("fast_", "low_"): value for key, value in own.items()})
    with torch.no_grad():
        found = module(MODULES[f"{branch}.tokens"], MODULES[f"{branch}.slow_map"])
    check(found, MODULES[f"{branch}.{name}_out"])


@pytest.mark.parametrize("side", [16, 32, 36])
def test_position_embeddings_are_resized_with_antialiasing(side: int) -> None:
    table = MODULES["posembed.in"][0, 1:]
    expected = MODULES[f"posembed.out_{side}"][0, 1:]
    check(resize_positions(table, side), expected)
    half = resize_positions(table.bfloat16(), side)  # resized in float32, rounded once
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, resize_positions(table.bfloat16().float(), side).bfloat16())


def test_position_embeddings_of_the_own_grid_are_left_alone() -> None:
    table = MODULES["posembed.in"][0, 1:]
    assert resize_positions(table, 24) is table


def test_a_map_that_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(FitPruneError, match="7x7 map cannot be averaged to 4x4"):
        align(torch.zeros(1, 1, 7, 7), 4)


def tiny(**changes: Any) -> LlavaHrVisionConfig:
    """CLIP 24×24 patches of 14 as released, few channels."""
    clip = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2, image_size=336, patch_size=14)
    return LlavaHrVisionConfig(**{"clip": clip, "depths": [1, 1, 1, 1], "hidden_sizes": [2, 4, 4, 6], **changes})


@pytest.mark.parametrize(("side", "tokens"), RELEASED.items())
def test_token_counts_are_those_of_the_released_models(side: int, tokens: int) -> None:
    assert LlavaHrVisionConfig(image_size=side).num_image_tokens == tokens


@pytest.mark.parametrize("side", [32, 512, 784, 1000, 1536])
def test_as_many_tokens_as_configured_come_out(side: int) -> None:
    config = tiny(image_size=side)
    with torch.no_grad():
        output = LlavaHrVisionModel(config).eval()(torch.zeros(1, 3, side, side))
    assert output.last_hidden_state.shape == (1, config.num_image_tokens, 8)
    assert config.num_image_tokens == max(side // 32, 24) ** 2


def test_smaller_patches_and_fewer_stages_follow_the_same_rule() -> None:
    clip = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=8, num_attention_heads=2, image_size=16, patch_size=4)
    config = LlavaHrVisionConfig(clip=clip, depths=[1, 2], hidden_sizes=[4, 6], image_size=48)
    assert (config.stride, config.low_res_side, config.num_image_tokens) == (8, 24, 36)
    with torch.no_grad():
        output = LlavaHrVisionModel(config).eval()(torch.zeros(2, 3, 48, 48))
    assert output.last_hidden_state.shape == (2, 36, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype: torch.dtype) -> None:
    case = "large/s384_b2"
    model = recorded(case).to(dtype).model.vision_tower
    with torch.no_grad():
        features = model(pixels(case)).last_hidden_state
    expected = load_file(FOLDER / f"{case}.safetensors")["features"]
    assert features.dtype == dtype
    error = (features.float() - expected).norm() / expected.norm()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_the_small_copy_is_made_in_float32() -> None:
    tower = LlavaHrVisionModel(tiny(image_size=384)).bfloat16().eval()
    seen: list[Tensor] = []
    tower.low_res.patch_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0)).bfloat16()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with one, torch interpolates bfloat16 in float32 by itself
    try:
        with torch.no_grad():
            tower(image)
        exact = torch.nn.functional.interpolate(image.float(), size=(336, 336), mode="bilinear", align_corners=True)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(seen[0], exact.bfloat16())  # rounded once


@pytest.mark.parametrize("outer", [False, True])
def test_attention_follows_the_model_and_changes_nothing_else(outer: bool) -> None:
    """Every switch reaches CLIP's layers, also the second one and also from the model around the tower."""
    model = recorded("frozen/s384")
    tower = model.model.vision_tower
    calls: list[str] = []
    attention = tower.low_res.layers[-1].self_attn
    attention.register_forward_hook(lambda module, args, output: calls.append(module.config._attn_implementation))
    results = []
    for implementation in ("eager", "sdpa", "eager"):
        (model if outer else tower).set_attn_implementation(implementation)
        with torch.no_grad():
            results.append(tower(pixels("frozen/s384")).last_hidden_state)
    assert calls == ["eager", "sdpa", "eager"]
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_config_makes_the_round_trip(tmp_path: Path) -> None:
    config = tiny(image_size=512, layer_norm_eps=1e-5, adapters=False)
    config.save_pretrained(tmp_path)
    again: PreTrainedConfig = LlavaHrVisionConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.clip, CLIPVisionConfig)
    assert (again.clip.num_hidden_layers, again.num_image_tokens) == (4, 576)


def test_tower_makes_the_round_trip_through_auto_classes(tmp_path: Path) -> None:
    tower = LlavaHrVisionModel(tiny(image_size=64)).eval()
    tower.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is LlavaHrVisionModel
    assert {m.eps for m in again.high_res.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    assert again.state_dict().keys() == tower.state_dict().keys()
    for name, weight in tower.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_what_does_not_fit_is_refused() -> None:
    clip = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=6, num_attention_heads=2)
    with pytest.raises(FitPruneError, match=r"clip\.num_hidden_layers is 6"):
        LlavaHrVisionModel(tiny(clip=clip))
    with pytest.raises(FitPruneError, match="image_size 16 is too small"):
        LlavaHrVisionModel(tiny(image_size=16))
    tower = LlavaHrVisionModel(tiny(image_size=64))
    with pytest.raises(FitPruneError, match=r"\(1, 3, 32, 32\), this model takes \[images, channels, 64, 64\]"):
        tower(torch.zeros(1, 3, 32, 32))
