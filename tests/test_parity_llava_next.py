"""LLaVA-NeXT against its authors' code, end to end: a miniature checkpoint of the original layout, loaded by the product.

Expected values were recorded from the original implementation (tests/parity/llava_next/README.md gives the tolerances).
The weights of `clip_tower` differ on purpose from the checkpoint's own, which must win. The case `single_view` is one
that no preprocessing makes (a picture always has tiles): its features are packed by hand.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from multimodal import Recorded, close, forward
from safetensors.torch import load_file

from fitprune.families.vlm import VLM

RECORDED = Recorded("llava_next")
TILED = [name for name in RECORDED.cases if name != "single_view"]
PIXELS = [name for name in TILED if "pixel_values" in RECORDED.values(name)]


@pytest.fixture(scope="module", params=["original", "converted"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return RECORDED.vlm(request.param, tmp_path_factory.mktemp("llava_next"))


def test_every_case_is_here() -> None:
    assert len(TILED) == 10
    assert len(PIXELS) == 8


@pytest.mark.parametrize("name", TILED)
def test_ids_logits_and_greedy_tokens(llava: VLM, name: str) -> None:
    RECORDED.check_ids(llava, name)
    RECORDED.check_forward(llava, name)
    RECORDED.check_greedy(llava, name)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_and_the_packed_sequence(llava: VLM, name: str) -> None:
    RECORDED.check_pixels(llava, name)
    case, values = RECORDED.cases[name], RECORDED.values(name)
    _, embeds = forward(llava, llava.encode([(case["prompt"], RECORDED.pictures(name))]))
    start, length = case["visual_spans_start_length"][0]
    packed, newline = embeds[0, start : start + length], llava.model.model.image_newline
    assert (packed - values["visual_sequence"]).abs().max() <= 1e-4 * values["visual_sequence"].abs().max()
    ends = [at for at in range(len(packed)) if torch.equal(packed[at], newline)]
    assert ends == [at - start for at in case["newline_positions"][0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unlike_pictures_gives_the_same_logits(llava: VLM, side: str) -> None:
    RECORDED.check_batch(llava, side)


def test_embeddings_of_the_right_padded_batch(llava: VLM) -> None:
    assert RECORDED.batch is not None
    recorded = load_file(RECORDED.folder / RECORDED.batch["file"])
    asked = [
        (prompt, [picture])
        for prompt, name in zip(RECORDED.batch["prompts"], ("wide", "tiny"), strict=True)
        for picture in RECORDED.pictures(name)
    ]
    inputs = llava.encode(asked, "right")
    _, embeds = forward(llava, inputs)
    real = inputs["attention_mask"].bool()
    assert torch.equal(real, recorded["attention_mask"].bool())
    assert (embeds - recorded["inputs_embeds"])[real].abs().max() <= 1e-4 * recorded["inputs_embeds"].abs().max()


def test_a_view_alone_is_followed_by_one_newline(llava: VLM) -> None:
    model: Any = llava.model
    case, values = RECORDED.cases["single_view"], RECORDED.values("single_view")
    view = llava.prepare(RECORDED.pictures("single_view")[0])["pixel_values"][:, 0]
    with torch.no_grad():
        seen = model.model.vision_tower(view, output_hidden_states=True).hidden_states
        features = model.model.multi_modal_projector(seen[model.config.vision_feature_layer][:, 1:])
        packed, _ = model.model.pack_image_features(
            [features], torch.tensor([[120, 120]]), "default", image_newline=model.model.image_newline
        )
        assert (packed[0] - values["visual_sequence"]).abs().max() <= 1e-4 * values["visual_sequence"].abs().max()
        ids = torch.tensor([[max(token, 0) for token in case["input_ids"]]])
        text = model.get_input_embeddings()(ids)[0]
        at = case["input_ids"].index(-200)
        embeds = torch.cat([text[:at], packed[0], text[at + 1 :]])[None]
        close(model(inputs_embeds=embeds).logits[0, -1, :400], values["last_logits"])
