"""LLaVA-NeXT: pixels and grids as the original's, counts as the model's, images of unlike sizes side by side."""

from __future__ import annotations

import inspect
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tiny import IMAGE_TOKEN, LAYERS, PAD, RECIPE, SIZES, dense_pruned, sharpen
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)

import fitprune
from fitprune.checkpoints.original import Original
from fitprune.errors import FitPruneError
from fitprune.families import llava_next
from fitprune.families.protocols import Images
from fitprune.images.anyres import AnyRes, read_pinpoints, turned

FOLDER = Path(__file__).parents[1] / "parity" / "llava_next"
ORIGINAL = json.loads((FOLDER / "checkpoint" / "config.json").read_text())
RECORDED = json.loads((FOLDER / "cases.json").read_text())["cases"]
SINGLE = [case for case in RECORDED if "pixel_values" in load_file(FOLDER / case["file"]) and len(case["images"]) == 1]
PINPOINTS = ORIGINAL["image_grid_pinpoints"]  # (width, height)
SIDE, PATCH = 56, 14
GRID = AnyRes(tuple(read_pinpoints(PINPOINTS)), SIDE, PATCH)
ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(LlavaNextForConditionalGeneration.forward).parameters


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
    )  # fmt: skip


def released(**values: Any) -> LlavaNextConfig:
    """A config as the released ones are: pinpoints (width, height), and nothing that says so."""
    config = LlavaNextConfig(
        vision_config=clip(),
        text_config=LlamaConfig(**SIZES),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        **values,
    )
    config.pad_token_id = PAD
    return config


@pytest.fixture(scope="module")
def model() -> Any:
    return sharpen(LlavaNextForConditionalGeneration(released()))


@pytest.fixture(scope="module")
def images(model: Any) -> Images:
    return llava_next.images(model.config, llava_next.image_processor(model.config, None))


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng((width, height)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


# ---- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case["name"])
def test_pixels_are_those_of_the_original(images: Images, case: dict) -> None:
    expected = load_file(FOLDER / case["file"])["pixel_values"]
    with Image.open(FOLDER / case["images"][0]) as file:
        image = file.convert("RGB")
    made = images.prepare(image)
    views = made["pixel_values"][0]
    assert torch.equal(views[: len(expected)], expected)  # single_view has the first one only
    assert len(views) == 1 + math.prod(GRID.tiles(image.size)) == (case["num_views"][0] if case["name"] != "single_view" else 5)
    assert made["image_sizes"].tolist() == [[image.height, image.width]]


def views_by_hand(image: Image.Image) -> np.ndarray:
    """The original's description, with Pillow alone: fit and paste on black, cut, and put the squashed whole first."""
    wide, high = GRID.resolution(image.size)
    across, down = wide / image.width, high / image.height
    if across < down:
        fitted = image.resize((wide, min(int(np.ceil(image.height * across)), high)))
    else:
        fitted = image.resize((min(int(np.ceil(image.width * down)), wide), high))
    canvas = Image.new("RGB", (wide, high))
    canvas.paste(fitted, ((wide - fitted.width) // 2, (high - fitted.height) // 2))
    boxes = [(x, y, x + SIDE, y + SIDE) for y in range(0, high, SIDE) for x in range(0, wide, SIDE)]
    views = [image.resize((SIDE, SIDE)), *(canvas.crop(box) for box in boxes)]
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return ((np.stack([np.asarray(view) for view in views]) / 255 - mean) / deviation).transpose(0, 3, 1, 2)


ODD = [(1, 1), (1, 500), (500, 1), (3, 7), (7, 3), (3, 3), (4, 1), (1, 4), (200, 100), (100, 200), (57, 55), (113, 169)]


@pytest.mark.parametrize("size", ODD)
def test_pixels_of_odd_sizes(images: Images, size: tuple[int, int]) -> None:
    """Slivers too, whose array could be taken for one with the colours first."""
    image = noise(*size)
    views = images.prepare(image)["pixel_values"][0].double().numpy()
    np.testing.assert_allclose(views, views_by_hand(image), atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_image_becomes_rgb(images: Images, mode: str) -> None:
    image = noise(40, 3).convert(mode)
    assert torch.equal(images.prepare(image)["pixel_values"], images.prepare(image.convert("RGB"))["pixel_values"])


# ---- counts ---------------------------------------------------------------------------------------------------------


def features(model: Any, images: Images, image: Image.Image) -> int:
    with torch.no_grad():
        made = model.get_image_features(**images.prepare(image))
    return len(getattr(made, "pooler_output", made)[0])


@pytest.mark.parametrize("size", ODD)
def test_as_many_tokens_as_the_model_makes(model: Any, images: Images, size: tuple[int, int]) -> None:
    assert features(model, images, noise(*size)) == images.tokens_for(noise(*size)) == GRID.tokens(size)


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_as_many_tokens_as_the_model_makes_of_any_size(model: Any, images: Images, size: tuple[int, int]) -> None:
    assert features(model, images, noise(*size)) == images.tokens_for(noise(*size)) == GRID.tokens(size)


def test_a_tie_goes_to_the_originals_first_pinpoint(model: Any, images: Images) -> None:
    """Without turning, transformers would lay this image into another grid."""
    assert AnyRes(tuple((h, w) for w, h in PINPOINTS), SIDE, PATCH).tokens((20, 12)) != GRID.tokens((20, 12)) == 26
    assert features(model, images, noise(20, 12)) == 26


# ---- the order of the pinpoints -------------------------------------------------------------------------------------


def test_pinpoints_are_turned_once_and_stay_so(tmp_path: Path) -> None:
    config = released()
    processor = llava_next.image_processor(config, None)
    for _ in range(2):
        llava_next.images(config, processor)
        assert config.image_grid_pinpoints == processor.image_grid_pinpoints == turned(read_pinpoints(PINPOINTS))
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    vlm = llava_next.image_processor(again, str(tmp_path))
    made = llava_next.images(again, vlm)
    assert again.image_grid_pinpoints == vlm.image_grid_pinpoints == config.image_grid_pinpoints
    assert made.tokens_for(noise(20, 12)) == 26


@pytest.mark.parametrize("marked", [False, True])
def test_pinpoints_may_be_text(marked: bool) -> None:
    order = turned(read_pinpoints(PINPOINTS))
    config = SimpleNamespace(image_grid_pinpoints=str(order if marked else PINPOINTS))
    if marked:
        config.image_grid_order = llava_next.TURNED
    processor = SimpleNamespace()
    for _ in range(2):
        llava_next.turn(config, processor)
        assert config.image_grid_pinpoints == processor.image_grid_pinpoints == order


def test_the_towers_size_rules(tmp_path: Path) -> None:
    config = released()
    kind = type(llava_next.image_processor(config, None))
    kind().save_pretrained(tmp_path)  # transformers' default size is another
    for source in (None, str(tmp_path)):
        processor = llava_next.image_processor(config, source)
        views = llava_next.images(config, processor).prepare(noise(30, 90))["pixel_values"]
        assert views.shape == (1, 1 + math.prod(GRID.tiles((30, 90))), 3, SIDE, SIDE)


def test_the_class_token_is_refused() -> None:
    config = released(vision_feature_select_strategy="full")
    with pytest.raises(FitPruneError, match="vision_feature_select_strategy 'full'"):
        llava_next.images(config, llava_next.image_processor(config, None))


def test_the_processor_that_is_saved_counts_alike(tmp_path: Path) -> None:
    """What transformers' users of a converted folder get."""
    tokenizer = LlamaTokenizer.from_pretrained(FOLDER / "checkpoint")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = released()
    image_processor = llava_next.image_processor(config, None)
    llava_next.processor(config, image_processor, tokenizer).save_pretrained(tmp_path)
    images = llava_next.images(config, image_processor)
    processor = LlavaNextProcessor.from_pretrained(tmp_path, **({"backend": "pil"} if ENCODES_FIRST else {"use_fast": False}))  # fmt: skip
    token = tokenizer.convert_tokens_to_ids("<image>")
    for size in [(20, 12), (200, 60), (70, 190), (120, 120)]:  # thinner ones it may take for colours first
        image = noise(*size)
        made = processor(images=[image], text=["USER: <image>\nWhy?"], return_tensors="pt")
        assert int((made["input_ids"] == token).sum()) == images.tokens_for(image)
        assert made["image_sizes"].tolist() == [[image.height, image.width]]
        assert torch.equal(made["pixel_values"], images.prepare(image)["pixel_values"])


# ---- the original's config ------------------------------------------------------------------------------------------


def original(**changes: Any) -> Original:
    fields = {key: value for key, value in (ORIGINAL | changes).items() if value != "absent"}
    return Original(fields, LlamaConfig(**SIZES), clip(), IMAGE_TOKEN, {})


def test_an_original_config_becomes_one_of_transformers(tmp_path: Path) -> None:
    config = llava_next.configure(original())
    assert config.image_grid_pinpoints == turned(read_pinpoints(PINPOINTS))
    assert config.image_token_id == IMAGE_TOKEN
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.image_seq_length == GRID.patches**2
    assert config.text_config.hidden_size == SIZES["hidden_size"]
    assert config.vision_config.image_size == SIDE
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    images = llava_next.images(again, llava_next.image_processor(again, None))
    assert again.image_grid_pinpoints == config.image_grid_pinpoints  # not turned back
    assert images.tokens_for(noise(20, 12)) == 26
    assert llava_next.configure(original(image_grid_pinpoints=str(PINPOINTS))).to_dict() == config.to_dict()
    assert llava_next.configure(original(mm_vision_select_layer=-1)).vision_feature_layer == -1
    tied = Original(ORIGINAL, LlamaConfig(**{**SIZES, "tie_word_embeddings": True}), clip(), IMAGE_TOKEN, {})
    assert (config.tie_word_embeddings, llava_next.configure(tied).tie_word_embeddings) == (False, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_patch_merge_type", "spatial"),
        ("mm_patch_merge_type", "flat"),
        ("mm_patch_merge_type", "absent"),
        ("image_aspect_ratio", "pad"),
        ("image_aspect_ratio", "anyres_max_9"),
        ("image_aspect_ratio", None),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_projector_type", "linear"),
        ("image_grid_pinpoints", None),
        ("image_grid_pinpoints", "absent"),
        ("image_grid_pinpoints", "(1x1),...,(6x6)"),
        ("image_grid_pinpoints", [[336, 670]]),
        ("image_grid_pinpoints", [[56, 60]]),
    ],
)
def test_variants_are_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(FitPruneError, match=field) as error:
        llava_next.configure(original(**{field: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "claimed"),
    [
        ({"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}, True),
        ({"image_aspect_ratio": "anyres"}, True),
        ({"image_aspect_ratio": "anyres_max_9"}, True),
        ({"mm_patch_merge_type": "spatial"}, True),
        ({"mm_patch_merge_type": "flat", "image_aspect_ratio": "pad"}, False),
        ({"mm_patch_merge_type": None, "image_aspect_ratio": None}, False),
        ({}, False),
        ({"image_aspect_ratio": "anyres", "is_multipath_encoder": True}, False),
        ({"image_aspect_ratio": "anyres", "is_multipath_encoder": False}, True),
    ],
)
def test_which_configs_are_of_this_family(fields: dict, claimed: bool) -> None:
    assert llava_next.claims(fields) is claimed


def test_the_newline_vector_keeps_its_name(model: Any) -> None:
    (pattern, name), *others = llava_next.RULES
    assert not others
    assert re.match(pattern, "model.image_newline")
    assert name in model.state_dict()


# ---- images of unlike sizes -----------------------------------------------------------------------------------------

A, B, C = (70, 20), (20, 70), (120, 120)


def row(images: Images, *parts: int | tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Inputs of one row: numbers are that many text tokens, pairs an image of that size."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    made = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(2, IMAGE_TOKEN, (part,), generator=generator).tolist()
        else:
            made.append(images.prepare(noise(*part)))
            ids += [IMAGE_TOKEN] * images.tokens_for(noise(*part))
    return {"input_ids": torch.tensor([ids]), "images": made}


def inputs(*rows: dict[str, Any], side: str = "left") -> dict[str, torch.Tensor]:
    """Several rows as a batch: ids padded on one side, views filled up with zeros."""
    width = max(row["input_ids"].shape[1] for row in rows)
    pads = [(width - row["input_ids"].shape[1]) for row in rows]
    pads_lr = [(pad, 0) if side == "left" else (0, pad) for pad in pads]
    ids = [torch.nn.functional.pad(row["input_ids"], pad, value=PAD) for row, pad in zip(rows, pads_lr, strict=True)]
    mask = [torch.nn.functional.pad(torch.ones_like(row["input_ids"]), pad) for row, pad in zip(rows, pads_lr, strict=True)]  # fmt: skip
    made = [image for row in rows for image in row["images"]]
    most = max(image["pixel_values"].shape[1] for image in made)
    views = [torch.nn.functional.pad(p["pixel_values"], (0, 0) * 3 + (0, most - p["pixel_values"].shape[1])) for p in made]  # fmt: skip
    return {
        "input_ids": torch.cat(ids),
        "attention_mask": torch.cat(mask),
        "pixel_values": torch.cat(views),
        "image_sizes": torch.cat([image["image_sizes"] for image in made]),
    }


def spans(*parts: int | tuple[int, int]) -> list[tuple[int, int]]:
    lengths = [part if isinstance(part, int) else GRID.tokens(part) for part in parts]
    ends = np.cumsum([0, *lengths]).tolist()
    return [pair for pair, part in zip(pairwise(ends), parts, strict=True) if not isinstance(part, int)]


@pytest.mark.parametrize("parts", [(3, A, 5), (3, A, B, 5), (2, B, A, 1, C, 4), (3, C, C, A, 2)])
def test_each_image_is_pruned_for_itself(model: Any, images: Images, parts: tuple) -> None:
    """Against the slow reference, which is told the images: adjacent ones have their own budgets and scores."""
    one = inputs(row(images, *parts))
    del one["attention_mask"]
    expected = dense_pruned(model, one, spans(*parts), RECIPE)
    with fitprune.prune(model, RECIPE) as trace, torch.no_grad():
        logits = model(**one).logits
    assert trace.images == [spans(*parts)]
    for layer in range(LAYERS):
        assert trace.alive[layer][0].tolist() == expected.alive(layer)
    torch.testing.assert_close(logits[0, -1], expected.logits[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unlike_rows(model: Any, images: Images, side: str) -> None:
    parts = [(3, A, B, 5), (6, C, 2), (4, B, 3)]
    rows = [row(images, *each, seed=at) for at, each in enumerate(parts)]
    with fitprune.prune(model, RECIPE) as trace, torch.no_grad():
        batch = inputs(*rows, side=side)
        model(**batch)
        together = [[alive.tolist() for alive in layer] for layer in trace.alive]
    for at, each in enumerate(rows):
        with fitprune.prune(model, RECIPE) as trace, torch.no_grad():
            model(**inputs(each))
        shift = int((batch["attention_mask"][at] == 0).sum()) if side == "left" else 0
        for layer, alone in zip(together, trace.alive, strict=True):
            assert layer[at] == [position + shift for position in alone[0].tolist()]


def answers(model: Any, batch: dict[str, torch.Tensor], beams: int) -> list[list[int]]:
    output = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, num_beams=beams, pad_token_id=PAD)
    return output[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_one_image_a_row(model: Any, images: Images, beams: int) -> None:
    rows = [row(images, 3, A, 5), row(images, 6, C, 2, seed=1), row(images, 4, B, 3, seed=2)]
    with fitprune.prune(model, RECIPE):
        together = answers(model, inputs(*rows), beams)
        assert together == [answers(model, inputs(each), beams)[0] for each in rows]


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_several_images_a_row(model: Any, images: Images, beams: int) -> None:
    rows = [row(images, 3, A, B, 5), row(images, 6, C, 2, seed=1), row(images, 4, B, A, C, 3, seed=2)]
    if beams > 1 and not ENCODES_FIRST:  # older transformers mix the images of a row up; pruning says so
        with fitprune.prune(model, RECIPE), pytest.raises(FitPruneError, match="num_beams=1"):
            answers(model, inputs(rows[0]), beams)
        return
    with fitprune.prune(model, RECIPE):
        together = answers(model, inputs(*rows), beams)
        assert together == [answers(model, inputs(each), beams)[0] for each in rows]
    with fitprune.prune(model, RECIPE) as trace:
        answers(model, inputs(rows[2]), beams)
    assert trace.images == [spans(4, B, A, C, 3)] * beams


def test_counts_that_do_not_fit_are_an_error_before_the_model_runs(model: Any, images: Images) -> None:
    batch = inputs(row(images, 3, A, 2, B, 5))
    batch["image_sizes"] = batch["image_sizes"].flip(0)
    with fitprune.prune(model, RECIPE), torch.no_grad(), pytest.raises(FitPruneError, match="by image_sizes"):
        model(**batch)


def test_a_list_written_for_transformers_is_left_as_it_is() -> None:
    """Released lists hold every size both ways round; one that does not cannot be the original's, turned by mistake."""
    config = released()
    config.image_grid_pinpoints = [[56, 168], [112, 112]]  # (height, width)
    processor = llava_next.image_processor(config, None)
    made = llava_next.images(config, processor)
    assert config.image_grid_pinpoints == processor.image_grid_pinpoints == [[56, 168], [112, 112]]
    assert made.tokens_for(noise(168, 56)) == 16 + 4 * (12 + 1)
    assert made.prepare(noise(168, 56))["pixel_values"].shape[1] == 4
