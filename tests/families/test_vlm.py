"""Loading checkpoints and reading images: what works, and what bad input says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import fitprune
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM
from fitprune.images.reading import read_image


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


def test_the_embedded_model_reads_a_number(small: VLM) -> None:
    lines = map(json.loads, embedded().questions.read_text().splitlines())
    at, question = next((at, line) for at, line in enumerate(lines) if line["category"] == "number")
    truth = json.loads(embedded().annotations.read_text())["data"][at]
    assert question["text"].startswith(truth["question"])
    inputs = small.encode([(small.prompt(question["text"]), [read_image(embedded().images / question["image"])])])
    assert small.generate(inputs, max_new_tokens=8)[0] == truth["answers"][0]


def test_a_batch_answers_as_singles_do(small: VLM) -> None:
    lines = [json.loads(line) for line in embedded().questions.read_text().splitlines()[:6]]
    asked = [(small.prompt(q["text"]), [read_image(embedded().images / q["image"])]) for q in lines]
    together = small.generate(small.encode(asked), max_new_tokens=8)
    assert together == [small.generate(small.encode([one]), max_new_tokens=8)[0] for one in asked]


def test_padding_sides_hold_the_same_tokens(small: VLM) -> None:
    asked = [("USER: yes ASSISTANT:", []), ("USER: What number is written? ASSISTANT:", [])]
    left, right = small.encode(asked, "left"), small.encode(asked, "right")
    for row in range(2):
        pick = [batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() for batch in (left, right)]
        assert pick[0] == pick[1]
    assert left["attention_mask"][0, 0] == 0
    assert right["attention_mask"][0, 0] == 1
    assert "pixel_values" not in left


def test_sampling_uses_the_seed_and_beams_run(small: VLM) -> None:
    inputs = small.encode([(small.prompt("How many shapes are there?"), [Image.new("RGB", (9, 30), (9, 99, 9))])])
    torch.manual_seed(1)
    first = small.generate(inputs, temperature=1.5, max_new_tokens=5)
    torch.manual_seed(1)
    assert small.generate(inputs, temperature=1.5, max_new_tokens=5) == first
    assert len(small.generate(inputs, num_beams=3, max_new_tokens=5)) == 1


@pytest.mark.parametrize(("path", "message"), [("/no/such/folder", "no checkpoint at"), ("./nothing", "no checkpoint at")])
def test_a_missing_checkpoint_is_named(path: str, message: str) -> None:
    with pytest.raises(FitPruneError, match=message):
        fitprune.load(path)


def test_other_families_and_broken_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match=r"config\.json is not in this folder"):
        fitprune.load(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FitPruneError, match=r"'bert' model, no vision-language .* no family known here \(llava, llava_next, llava_hr\)"):
        fitprune.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{ torn")
    with pytest.raises(FitPruneError, match="cannot load"):
        fitprune.load(str(tmp_path))


def test_a_checkpoint_without_weights_is_one_line(tmp_path: Path) -> None:
    for file in embedded().model.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FitPruneError, match="has no weights") as error:
        fitprune.load(str(tmp_path))
    assert "\n" not in str(error.value)
    (tmp_path / "model.safetensors").write_bytes((embedded().model / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(FitPruneError, match=r"model\.safetensors is damaged or only partly downloaded"):
        fitprune.load(str(tmp_path))
    from safetensors.torch import load_file, save_file

    weights = load_file(embedded().model / "model.safetensors")
    weights.pop(next(key for key in weights if "multi_modal_projector" in key))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FitPruneError, match=r"lacks 1 weights, such as .*multi_modal_projector"):
        fitprune.load(str(tmp_path))


def test_bad_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match=r"no image .*gone\.png"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(FitPruneError, match=r"cannot read image .*text\.png"):
        read_image(tmp_path / "text.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(FitPruneError, match=r"cannot read image .*half\.png"):
        read_image(tmp_path / "half.png")
    Image.new("1", (20000, 9000)).save(tmp_path / "vast.png")
    for pixels in (True, False):
        with pytest.raises(FitPruneError, match=r"vast\.png has more than \d+ pixels: make it smaller"):
            read_image(tmp_path / "vast.png", pixels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (7, 5)).save(file)
    assert read_image(file).mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "I;16"])
def test_images_of_every_kind_can_be_asked_about(small: VLM, mode: str) -> None:
    assert isinstance(small.ask("What number is written?", Image.new(mode, (20, 9)), max_new_tokens=1), str)
