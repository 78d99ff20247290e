"""Smaller pictures make as many tokens as they may, by the model's own doing; a model that cannot says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.images.video import Video
from fitprune.studies.before import Before
from fitprune.studies.downsample import SmallerPictures, downsampled

QUESTION = "What number is written?"


def share(part: float) -> Any:
    return lambda tokens: max(1, int(part * tokens))


def noise(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width * height)
    levels = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def made(vlm: VLM, *pictures: Image.Image) -> tuple[int, int]:
    """Visual tokens in the prompt, and features that the model puts there."""
    inputs = vlm.encode([(vlm.prompt(QUESTION), [picture]) for picture in pictures])
    rows = {key: value for key, value in inputs.items() if key.startswith(("pixel", "image"))}
    with torch.no_grad():
        found: Any = vlm.model.get_image_features(**rows)  # type: ignore[operator]
        found = getattr(found, "pooler_output", found)
        vlm.generate(inputs, max_new_tokens=1)  # which checks that they fit
    return vlm.count_visual(inputs["input_ids"]), sum(len(one) for one in found)


@pytest.fixture(scope="module", params=["embedded", "embedded-qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return fitprune.load(request.param, device="cpu")


@pytest.mark.parametrize("part", [0.9, 0.5, 0.3, 0.1])
def test_a_square_makes_the_largest_square_that_is_allowed(vlm: VLM, part: float) -> None:
    side = math.isqrt(int(144 * part))
    with downsampled(vlm, share(part)) as smaller:
        assert smaller.tokens_for(noise(168, 168)) == side**2
        assert made(smaller, noise(168, 168), noise(168, 168)) == (2 * side**2, 2 * side**2)
        ids = smaller.token_ids(smaller.prompt(QUESTION), [noise(168, 168)])
        assert ids == smaller.encode([(smaller.prompt(QUESTION), [noise(168, 168)])])["input_ids"][0].tolist()
    assert made(vlm, noise(168, 168)) == (144, 144)  # as ever


def test_pictures_of_any_size_and_shape_come_near_and_never_over() -> None:
    vlm = fitprune.load("embedded-qwen", device="cpu")
    for size in [(168, 168), (300, 120), (90, 250), (640, 480), (20, 30)]:
        for ratio in (0.3, 0.6, 0.9):
            before = Before("downsample", ratio)
            dense = vlm.tokens_for(noise(*size))
            most = before.keep(dense, vlm.cost)
            with before.applied(vlm) as smaller:
                assert isinstance(smaller, SmallerPictures)
                tokens, features = made(smaller, noise(*size))
                shown = smaller.shrunk(noise(*size))
            assert most - 4 * math.sqrt(most) <= tokens == features <= most < dense
            assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.2)
            assert vlm.cost.dense_macs(tokens) <= (1 - ratio) * vlm.cost.dense_macs(dense)


def test_positions_are_interpolated_inside_the_block_only() -> None:
    vlm = fitprune.load("embedded", device="cpu")
    with downsampled(vlm, share(0.5)) as smaller:
        inputs = smaller.encode([(smaller.prompt(QUESTION), [noise(168, 168)])])
        tower: Any = vlm.model.base_model.vision_tower  # type: ignore[union-attr]
        with torch.no_grad():
            here = tower(pixel_values=inputs["pixel_values"]).last_hidden_state
            asked = tower.__class__.forward(tower, pixel_values=inputs["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
        assert torch.equal(here, asked)
        assert here.shape[1] == 1 + 64
    with pytest.raises(ValueError, match="doesn't match model"):
        tower(pixel_values=inputs["pixel_values"])


def test_a_smaller_picture_is_the_picture() -> None:
    """Pictures in one colour stay so, and keep their halves."""
    for name in ("embedded", "embedded-qwen"):
        vlm = fitprune.load(name, device="cpu")
        picture = Image.new("RGB", (168, 168), (200, 30, 30))
        picture.paste((30, 30, 200), (84, 0, 168, 168))
        with downsampled(vlm, share(0.25)) as smaller:
            shown = smaller.views(picture)
        pixels = shown[0].pixels
        assert pixels.size == (84, 84)
        assert pixels.getpixel((5, 40))[0] > 180 < pixels.getpixel((78, 40))[2]  # type: ignore[index]


@pytest.mark.parametrize(("name", "said"), [("embedded-hr", "sees one size only"), ("embedded-next", "would make 300 visual tokens")])
def test_towers_and_tiles_that_cannot_are_refused_by_name(name: str, said: str) -> None:
    vlm = fitprune.load(name, device="cpu")
    with pytest.raises(FitPruneError, match=f"{name}: downsample .*{said}"), downsampled(vlm, share(0.5)) as smaller:
        smaller.tokens_for(noise(168, 168))


def test_videos_are_not_shrunk() -> None:
    vlm = fitprune.load("embedded-qwen", device="cpu")
    with downsampled(vlm, share(0.5)) as smaller, pytest.raises(FitPruneError, match="not videos"):
        smaller.token_ids("x", [Video([noise(168, 168)], [0], 1, 1.0)])
