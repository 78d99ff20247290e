"""An exported checkpoint is the trained model, in transformers' layout, as fitprune and transformers load it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor

import fitprune
from embedded import network, train
from embedded.batches import answering
from embedded.export import export
from embedded.render import render
from embedded.scene import draw
from embedded.tokens import INSTRUCTION
from fitprune.checkpoints.names import HUB
from fitprune.errors import FitPruneError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run at a small size, as its checkpoint says, and its export."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(network.SIZES, "tiny", {"vision": (32, 2, 2, 48), "text": (32, 2, 2, 48)})
        state = {"plan": asdict(train.Plan("tiny")), "step": 0, "model": network.Embedded("tiny").state_dict()}
        torch.save(state, folder / train.CHECKPOINT)
        return folder, export(folder, folder / "model")


def test_it_answers_as_the_trained_weights_do(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exported = made
    monkeypatch.setitem(network.SIZES, "tiny", {"vision": (32, 2, 2, 48), "text": (32, 2, 2, 48)})
    trained = network.Embedded("tiny")
    trained.load_state_dict(train.load_checkpoint(folder / train.CHECKPOINT)["model"])
    for weights in trained.parameters():  # shipped weights are rounded once
        weights.data = weights.data.bfloat16().float()
    vlm = fitprune.load(str(exported), device="cpu")
    picture = render(draw("held-out", 0))
    inputs = vlm.encode([(vlm.prompt(f"What number is written?\n{INSTRUCTION}"), [picture])])
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**inputs).logits, trained.llava(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_pictures_are_prepared_as_in_training(made: tuple[Path, Path]) -> None:
    vlm = fitprune.load(str(made[1]), device="cpu")
    trained_on = answering(0, 1)["pixels"]
    torch.testing.assert_close(vlm.prepare(render(draw("train", 0)))["pixel_values"], trained_on, rtol=0, atol=1e-5)


def test_weights_are_bf16_under_the_hubs_names(made: tuple[Path, Path]) -> None:
    with safe_open(made[1] / "model.safetensors", "pt") as file:
        keys = list(file.keys())
        assert {file.get_tensor(key).dtype for key in keys} == {torch.bfloat16}
    assert all(key.startswith(tuple(HUB.values())) for key in keys)
    assert not any("heads" in key for key in keys)
    assert json.loads((made[1] / "config.json").read_text())["dtype"] == "bfloat16"


def test_messages_are_asked_in_the_trained_form(made: tuple[Path, Path]) -> None:
    vlm = fitprune.load(str(made[1]), device="cpu")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    assert AutoProcessor.from_pretrained(made[1]).apply_chat_template(messages, add_generation_prompt=True) == vlm.prompt("Why?")


def test_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match=r"no checkpoint .*train first"):
        export(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
