"""LLaVA-HR against its authors' code, end to end: a miniature checkpoint of the original layout, loaded by the product.

Expected values were recorded from the original implementation (tests/parity/llava_hr/README.md gives the tolerances);
the vision tower alone is in test_llava_hr_vision.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from multimodal import Recorded
from safetensors.torch import load_file, save_file

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM

RECORDED = Recorded("llava_hr")


@pytest.fixture(scope="module", params=["original", "converted"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return RECORDED.vlm(request.param, tmp_path_factory.mktemp("llava_hr"))


@pytest.mark.parametrize("name", RECORDED.cases)
def test_ids_pixels_logits_and_greedy_tokens(llava: VLM, name: str) -> None:
    RECORDED.check_ids(llava, name)
    RECORDED.check_pixels(llava, name)
    RECORDED.check_forward(llava, name)
    RECORDED.check_greedy(llava, name)


def test_the_image_matters(llava: VLM) -> None:
    """Grey images move the last logits by 0.75 and more, as in the original."""
    case, values = RECORDED.cases["wide"], RECORDED.values("wide")
    inputs = llava.encode([(case["prompt"], RECORDED.pictures("wide"))])
    with torch.no_grad():
        logits = llava.model(**{**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}).logits
    assert (logits[0, -1, : values["last_logits"].shape[0]] - values["last_logits"]).abs().max() > 0.7


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("align_stages_latent.2.gate.2.bias", r"it lacks 1 weights \(model\.vision_tower\.adapters\.2\.gate\.2\.bias\)"),
        ("stages.2.blocks.1.weight", r"it lacks 1 weights \(model\.vision_tower\.high_res\.stages\.2\.layers\.1\.layer_scale"),
    ],
)  # fmt: skip
def test_every_weight_of_the_towers_is_accounted_for(tmp_path: Path, part: str, message: str) -> None:
    tensors = RECORDED.tensors()
    (key,) = (key for key in tensors if key.endswith(part))
    path = RECORDED.rewritten(tmp_path / "copy", {k: v for k, v in tensors.items() if k != key})
    with pytest.raises(FitPruneError, match=message):
        fitprune.load(str(path), device="cpu")
    save_file(tensors | {key.replace(part, "align_stages.7.extra"): torch.ones(1)}, path / "model.safetensors")
    with pytest.raises(FitPruneError, match=r"it has unexpected 1 weights \(.*align_stages\.7\.extra\)"):
        fitprune.load(str(path), device="cpu")
    assert load_file(path / "model.safetensors").keys() > tensors.keys()
