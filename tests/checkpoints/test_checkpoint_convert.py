"""`fitprune convert`: an original checkpoint in transformers layout, once, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from multimodal import PARITY, Recorded
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration

import fitprune
from fitprune.cli import main
from fitprune.errors import FitPruneError
from fitprune.families.convert import convert

ORIGINAL = PARITY / "llava15" / "checkpoint"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(ORIGINAL, tmp_path_factory.mktemp("convert") / "deep" / "llava-hf")


def test_transformers_alone_answers_the_same(folder: Path) -> None:
    """Its own model and processor, no code of ours: tokens, pixels and the next tokens of the recorded run."""
    recorded = Recorded("llava15")
    case = recorded.cases["exact"]
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(images=recorded.pictures("exact"), text=case["prompt"], return_tensors="pt")
    steps = len(case["generated_ids"])
    ours = fitprune.load(str(folder), device="cpu")
    torch.testing.assert_close(inputs["pixel_values"], ours.prepare(recorded.pictures("exact")[0])["pixel_values"], atol=1e-6, rtol=0)
    ids = torch.tensor([ours.token_ids(case["prompt"], recorded.pictures("exact"))])
    output = model.generate(input_ids=ids, pixel_values=inputs["pixel_values"], do_sample=False, max_new_tokens=steps, min_new_tokens=steps)
    assert output[0, -steps:].tolist() == case["generated_ids"]
    assert model.config.image_token_id == 400
    assert model.generation_config.suppress_tokens == list(range(400, 448))


def test_weights_and_precision_are_those_of_the_source(folder: Path) -> None:
    source = fitprune.load(str(ORIGINAL), device="cpu").model
    copied = LlavaForConditionalGeneration.from_pretrained(folder)
    for (name, ours), theirs in zip(source.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.dtype == theirs.dtype


def test_weights_have_the_names_of_the_hub(folder: Path) -> None:
    """transformers 5.0 to 5.24 write CLIP in two ways, of which 5.0 and vLLM read one: with the other the tower would be random."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.partition(".")[0] for name in names} == {"language_model", "multi_modal_projector", "vision_tower"}
    assert {"language_model.model.norm.weight", "language_model.lm_head.weight", "vision_tower.vision_model.pre_layrnorm.bias"} <= names
    _, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_what_the_original_config_says_besides_sizes_is_kept(tmp_path: Path) -> None:
    shutil.copytree(ORIGINAL, tmp_path / "source")
    text = (tmp_path / "source" / "config.json").read_text()
    text = text.replace('"image_aspect_ratio": "pad"', '"image_aspect_ratio": "square", "tokenizer_model_max_length": 90')
    (tmp_path / "source" / "config.json").write_text(text)
    recorded = Recorded("llava15")
    wide, before = recorded.pictures("wide")[0], fitprune.load(str(tmp_path / "source"), device="cpu")
    after = fitprune.load(str(convert(tmp_path / "source", tmp_path / "target")), device="cpu")
    assert torch.equal(before.prepare(wide)["pixel_values"], after.prepare(wide)["pixel_values"])
    for vlm in (before, after):
        with pytest.warns(UserWarning, match="cut to the checkpoint's 90"):
            assert len(vlm.token_ids(recorded.cases["wide"]["prompt"], [wide])) == 90
        with pytest.raises(FitPruneError, match="the end of an image would be cut"):
            vlm.token_ids(recorded.cases["two_images"]["prompt"], [wide, wide])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    target.mkdir()  # an empty folder may be there
    assert main(["convert", str(ORIGINAL), str(target), "--vision-tower", str(ORIGINAL / "clip_tower")]) == 0
    assert "written in transformers layout" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {p.name for p in target.iterdir()}
    assert main(["convert", str(ORIGINAL), str(target)]) == 2
    assert "exists already: name a new folder" in capsys.readouterr().err
    assert main(["convert", str(target), str(tmp_path / "again")]) == 2
    assert "nothing to convert" in capsys.readouterr().err


def test_nothing_is_left_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(weights: object, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fitprune.families.convert.save_torch_state_dict", full)
    with pytest.raises(FitPruneError, match=r"cannot write .*target: No space left on device"):
        convert(ORIGINAL, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FitPruneError, match="cannot write"):
        convert(ORIGINAL, tmp_path / "file" / "target")
