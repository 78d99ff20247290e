"""Recorded runs of the original LLaVA code on miniature checkpoints, and how the product is compared with them.

Each folder of tests/parity/ that came from the original code has a README with its tolerances: ids and tokens exactly,
pixels within 1e-6, features within 1e-4 of the largest value, logits within 3e-4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import fitprune
from fitprune.checkpoints.source import Source
from fitprune.checkpoints.weights import Weights
from fitprune.families.convert import convert
from fitprune.families.vlm import VLM
from fitprune.images.reading import read_image

PARITY = Path(__file__).parents[1] / "parity"


class Recorded:
    """The cases of one folder."""

    def __init__(self, name: str) -> None:
        self.folder = PARITY / name
        self.checkpoint = self.folder / "checkpoint"
        known = json.loads((self.folder / "cases.json").read_text())
        self.cases: dict[str, dict[str, Any]] = {case["name"]: case for case in known["cases"]}
        self.batch: dict[str, Any] | None = known.get("batch")

    def pictures(self, name: str) -> list[Image.Image]:
        return [read_image(self.folder / image) for image in self.cases[name]["images"]]

    def values(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / self.cases[name]["file"])

    def vlm(self, layout: str, folder: Path) -> VLM:
        """The checkpoint in its original layout, or "converted" into a new folder."""
        path = convert(self.checkpoint, folder / "hf") if layout == "converted" else self.checkpoint
        return fitprune.load(str(path), device="cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Every weight of the checkpoint, by its original name."""
        weights = Weights.find(Source(self.checkpoint))
        assert weights is not None
        return {key: value.clone() for key, value in weights.tensors()}

    def rewritten(self, path: Path, tensors: dict[str, Tensor], **fields: Any) -> Path:
        """A copy of the checkpoint with these weights, in one file of safetensors, and other fields in its config.json."""
        shutil.copytree(self.checkpoint, path, ignore=shutil.ignore_patterns("pytorch_model*.bin*", "model*.safetensors*"))
        for file in (self.checkpoint / "clip_tower").glob("pytorch_model.bin"):
            shutil.copy(file, path / "clip_tower")
        save_file(tensors, path / "model.safetensors")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | fields))
        return path

    def check_ids(self, vlm: VLM, name: str) -> None:
        """Token ids, with one image token per visual token where the original keeps one -200 per image."""
        case, expected, counts = self.cases[name], [], iter(self.cases[name]["num_visual_tokens"])
        for token in case["input_ids"]:
            expected += [vlm.image_token] * next(counts) if token == -200 else [token]
        assert vlm.token_ids(case["prompt"], self.pictures(name)) == expected
        assert len(expected) == case["sequence_length"]
        for start, length in case["visual_spans_start_length"]:
            assert set(expected[start : start + length]) == {vlm.image_token}

    def check_pixels(self, vlm: VLM, name: str) -> None:
        values = self.values(name)
        for number, image in enumerate(self.pictures(name)):
            pixels = vlm.prepare(image)["pixel_values"][0]
            if "pixel_values_every4" in values:
                pixels, expected = pixels[..., ::4, ::4], values["pixel_values_every4"][number]
            else:
                expected = values["pixel_values"]
            torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)

    def check_forward(self, vlm: VLM, name: str) -> None:
        """Embeddings of the whole sequence, logits of the last token (and of every eighth, where recorded)."""
        case, values = self.cases[name], self.values(name)
        inputs = vlm.encode([(case["prompt"], self.pictures(name))])
        logits, embeds = forward(vlm, inputs)
        if "inputs_embeds" in values:
            largest = values["inputs_embeds"].abs().max()
            assert (embeds - values["inputs_embeds"]).abs().max() <= 1e-4 * largest
        if "projected_features" in values and case["num_visual_tokens"][0] == values["projected_features"].shape[1]:
            start, length = case["visual_spans_start_length"][0]
            expected = values["projected_features"][0]
            assert (embeds[0, start : start + length] - expected).abs().max() <= 1e-4 * expected.abs().max()
        vocabulary = values["last_logits"].shape[0]
        close(logits[0, -1, :vocabulary], values["last_logits"])
        if "all_logits_every8" in values:
            close(logits[0, ::8, :vocabulary], values["all_logits_every8"])

    def check_greedy(self, vlm: VLM, name: str) -> None:
        case, values = self.cases[name], self.values(name)
        inputs = vlm.encode([(case["prompt"], self.pictures(name))])
        check_greedy(vlm, inputs, case["generated_ids"], values["step_logits"])

    def check_batch(self, vlm: VLM, side: str) -> None:
        """Two prompts of different length, padded on either side: the logits of their last tokens."""
        assert self.batch is not None
        expected = load_file(self.folder / self.batch["file"])["last_logits"]
        images = [read_image(self.folder / image) for image in self.batch["images"]]
        inputs = vlm.encode([(text, [image]) for text, image in zip(self.batch["prompts"], images, strict=True)], side)
        logits, _ = forward(vlm, inputs)
        mask = inputs["attention_mask"]
        assert mask.sum(1).tolist() == self.batch["row_lengths"]
        last = torch.stack([row[real.nonzero().max()] for row, real in zip(logits, mask, strict=True)])
        close(last[:, : expected.shape[1]], expected)


def forward(vlm: VLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [B, S, vocabulary], and the embeddings [B, S, hidden] that the decoder was given."""
    taken: dict[str, Tensor] = {}
    model: Any = vlm.model
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: taken.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        handle.remove()
    return logits, taken["embeds"]


def check_greedy(vlm: VLM, inputs: dict[str, Tensor], tokens: list[int], step_logits: Tensor) -> None:
    """Greedy tokens exactly, and the logits of every step."""
    model: Any = vlm.model
    with torch.no_grad():
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=len(tokens), min_new_tokens=len(tokens), eos_token_id=None,
            pad_token_id=0, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert output.sequences[0, -len(tokens) :].tolist() == tokens
    close(torch.stack(output.logits)[:, 0, : step_logits.shape[1]], step_logits)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0)
