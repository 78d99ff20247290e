"""Loading into an empty model: every key accounted for, the added rows, precision and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from multimodal import PARITY, Recorded, forward
from safetensors.torch import load_file, save_file
from torch import Tensor

import fitprune
from fitprune.checkpoints.fill import kept_whole
from fitprune.errors import FitPruneError

RECORDED = Recorded("llava15")
ORIGINAL = RECORDED.checkpoint


def altered(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    """A copy of the recorded checkpoint, in one file of safetensors, with changed weights."""
    tensors = RECORDED.tensors()
    change(tensors)
    return str(RECORDED.rewritten(folder / "altered", tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"it lacks 1 weights \(model\.language_model\.norm\.weight\)"),
        (lambda t: t.update({"model.extra": torch.ones(2)}), r"it has unexpected 1 weights \(model\.extra\)"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(63)}),
            r"model\.safetensors: model\.norm\.weight is \[63\] but the model needs \[64\]",
        ),
        (lambda t: t.update({"lm_head.weight": torch.ones(390, 64)}), r"lm_head\.weight is \[390, 64\] but the model needs \[400, 64\]"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}),
            r"model\.norm\.weight holds torch\.int8, not real numbers: quantised",
        ),
        (lambda t: t.pop("model.embed_tokens.weight"), r"lacks model\.embed_tokens\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises(FitPruneError, match=message) as error:
        fitprune.load(altered(tmp_path, change), device="cpu")
    assert "\n" not in str(error.value)


def test_missing_and_unexpected_are_told_together_and_long_lists_are_cut(tmp_path: Path) -> None:
    def strip(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if ".layers.2." in key]:
            tensors[key.replace("layers.2", "layers.5")] = tensors.pop(key)

    with pytest.raises(FitPruneError, match=r"it lacks 9 weights \(.*, …\); it has unexpected 9 weights \(.*layers\.5.*, …\)"):
        fitprune.load(altered(tmp_path, strip), device="cpu")


def test_added_rows_are_the_mean_and_can_never_be_answered() -> None:
    llava = fitprune.load(str(ORIGINAL), device="cpu")
    rows = json.loads((ORIGINAL / "config.json").read_text())["vocab_size"]
    for weight in (llava.model.get_input_embeddings().weight, llava.model.get_output_embeddings().weight):
        assert weight.shape[0] > rows
        torch.testing.assert_close(weight[rows:], weight[:rows].mean(0).expand(weight.shape[0] - rows, -1))
    case = Recorded("llava15").cases["tiny"]
    inputs = llava.encode([(case["prompt"], Recorded("llava15").pictures("tiny"))])
    logits, _ = forward(llava, inputs)
    torch.testing.assert_close(logits[..., rows:].amax(-1), logits[..., :rows].mean(-1), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    sampled = llava.model.generate(**inputs, do_sample=True, temperature=50.0, max_new_tokens=200, pad_token_id=0)
    assert sampled[0, inputs["input_ids"].shape[1] :].max() < rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "auto"])
def test_precision_is_the_one_asked_for(tmp_path: Path, dtype: str) -> None:
    def half(tensors: dict[str, Tensor]) -> None:
        tensors.update({key: value.half() for key, value in tensors.items()})

    llava = fitprune.load(altered(tmp_path, half), device="cpu", dtype=dtype)
    expected = torch.float16 if dtype == "auto" else getattr(torch, dtype)
    assert {weight.dtype for weight in llava.model.parameters()} == {expected}  # the tower's float32 included
    assert llava.model.config.dtype == expected
    assert {b.dtype for n, b in llava.model.named_buffers() if "inv_freq" in n} == {torch.float32}
    assert llava.ask("What is it?", Recorded("llava15").pictures("tiny")[0], max_new_tokens=2) is not None


@pytest.mark.parametrize("device_map", ["auto", "sequential", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_device_map_places_every_part(device_map: object) -> None:
    llava = fitprune.load(str(ORIGINAL), device_map=device_map, dtype="float32")
    Recorded("llava15").check_forward(llava, "square")


@pytest.mark.parametrize("name", ["llava15", "llava_next", "llava_hr"])
def test_layers_are_never_spread_over_devices(name: str) -> None:
    model = fitprune.load(str(PARITY / name / "checkpoint"), device="cpu").model
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(kept_whole(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "cannot use device"),
        ({"device_map": {"model": "cpu"}}, "the device_map leaves out"),
        ({"device_map": {"": "disk"}}, "would go to disk"),
        ({"dtype": "float23", "device": "cpu"}, "unknown precision 'float23'"),
        ({"attn": "no_such_attention", "device": "cpu"}, "cannot make the model"),
    ],
)
def test_places_and_precisions_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(FitPruneError, match=message) as error:
        fitprune.load(str(ORIGINAL), **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_attention_asked_for_is_used_everywhere(attn: str) -> None:
    llava = fitprune.load(str(ORIGINAL), device="cpu", attn=attn)
    assert llava.model.get_decoder().config._attn_implementation == attn
    Recorded("llava15").check_forward(llava, "tall")


def test_tied_embeddings_are_tied(tmp_path: Path) -> None:
    path = Path(altered(tmp_path, lambda t: t.pop("lm_head.weight")))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    llava = fitprune.load(str(path), device="cpu")
    assert llava.model.get_output_embeddings().weight is llava.model.get_input_embeddings().weight
    assert not any(weight.is_meta for weight in llava.model.parameters())
    save_file(load_file(path / "model.safetensors") | {"lm_head.weight": torch.ones(400, 64)}, path / "model.safetensors")
    assert fitprune.load(str(path), device="cpu").model.get_output_embeddings().weight.std() > 0
