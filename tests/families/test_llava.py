"""LLaVA-1.5 against the authors' code: a miniature checkpoint of the original layout, loaded by the product's own loader.

Expected values were recorded from the original implementation (tests/parity/llava15/README.md gives the tolerances).
"""

from __future__ import annotations

import pytest
import torch
from multimodal import Recorded
from PIL import Image

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families import llava as family
from fitprune.families.clip import pad_to_square
from fitprune.families.vlm import VLM

RECORDED = Recorded("llava15")
SINGLE = [name for name, case in RECORDED.cases.items() if len(case["images"]) == 1]
PIXELS = [name for name in SINGLE if name != "short_prompt"]


@pytest.fixture(scope="module", params=["original", "converted"])
def llava(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return RECORDED.vlm(request.param, tmp_path_factory.mktemp("llava15"))


@pytest.mark.parametrize("name", RECORDED.cases)
def test_token_ids_are_those_of_the_original(llava: VLM, name: str) -> None:
    RECORDED.check_ids(llava, name)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_those_of_the_original(llava: VLM, name: str) -> None:
    RECORDED.check_pixels(llava, name)


@pytest.mark.parametrize("name", RECORDED.cases)
def test_embeddings_logits_and_greedy_tokens(llava: VLM, name: str) -> None:
    RECORDED.check_forward(llava, name)
    RECORDED.check_greedy(llava, name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_same_logits(llava: VLM, side: str) -> None:
    RECORDED.check_batch(llava, side)


def test_the_default_template_is_vicuna_v1(llava: VLM) -> None:
    case = RECORDED.cases["wide"]
    question = case["prompt"].split("<image>\n")[1].removesuffix(" ASSISTANT:")
    assert llava.prompt(question) == case["prompt"]


def test_squaring_keeps_every_pixel_and_uses_the_mean_colour() -> None:
    image = Image.new("RGB", (5, 2), (1, 2, 3))
    square = pad_to_square(image, (122, 116, 104))
    assert square.size == (5, 5)
    assert [square.getpixel((0, y)) for y in range(5)] == [(122, 116, 104), (1, 2, 3), (1, 2, 3), *[(122, 116, 104)] * 2]
    assert pad_to_square(square, (0, 0, 0)) is square


def test_pruning_leaves_text_and_answers(llava: VLM) -> None:
    case = RECORDED.cases["two_images"]
    inputs = llava.encode([(case["prompt"], RECORDED.pictures("two_images"))])
    recipe = fitprune.Recipe.from_deletions([4, 4, 0], visual_tokens=16)
    with fitprune.prune(llava.model, recipe) as trace, torch.no_grad():
        llava.model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    spans = case["visual_spans_start_length"]
    kept = trace.alive[-1][0].tolist()
    assert [sum(start <= p < start + length for p in kept) for start, length in spans] == [8, 8]  # a budget per image
    visual = {p for start, length in spans for p in range(start, start + length)}
    assert [p for p in kept if p not in visual] == [p for p in range(case["sequence_length"]) if p not in visual]


def test_wrong_number_of_images_is_an_error(llava: VLM) -> None:
    with pytest.raises(FitPruneError, match="1 <image> but there are 0"):
        llava.token_ids(llava.prompt("what?"), [])


@pytest.mark.parametrize(
    ("field", "value"),
    [("mm_projector_type", "linear"), ("mm_use_im_start_end", True), ("mm_resampler_type", "qformer"), ("mm_vision_select_feature", "cls")],
)
def test_variants_that_are_not_supported_name_the_field(field: str, value: object) -> None:
    config = {"mm_projector_type": "mlp2x_gelu"}
    family.check_supported(config)
    with pytest.raises(FitPruneError, match=f"{field} {value!r}"):
        family.check_supported(config | {field: value})


def test_it_claims_neither_tiles_nor_two_towers() -> None:
    assert family.claims({"image_aspect_ratio": "pad"})
    assert not family.claims({"image_aspect_ratio": "anyres"})
    assert not family.claims({"mm_patch_merge_type": "spatial_unpad"})
    assert not family.claims({"is_multipath_encoder": True})
