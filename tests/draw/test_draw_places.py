"""Places: that boxes lie where the processor, the model's own packing and its vision tower put the tokens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import fitprune
from fitprune.draw.places import Places, laid_out, on_grid, places
from fitprune.embedded import MODELS, embedded
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.families.clip import CLIP_MEAN
from fitprune.families.protocols import Images, View

SIZES = [(168, 168), (420, 170), (170, 420), (333, 301), (60, 31)]
PADDING = tuple(int(255 * mean) for mean in CLIP_MEAN)


@pytest.fixture(scope="module", params=MODELS)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return fitprune.load(request.param, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(embedded().images / "5eed000000000006.jpg").convert("RGB")


def gradient(size: tuple[int, int]) -> Image.Image:
    """Red says how far to the right a pixel is, green how far down; blue is full, which no padding is."""
    x, y = np.meshgrid(*(np.linspace(0, 255, edge) for edge in size))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], 2).round().astype(np.uint8))


def contents(where: Places) -> list[np.ndarray | None]:
    """The pixels in each token's box, [height, width, 3]."""
    pixels = np.asarray(where.canvas).astype(float)
    return [None if box is None else pixels[box[1] : box[3], box[0] : box[2]] for box in where.boxes]


def features(vlm: VLM, image: Image.Image) -> Tensor:
    """[n, hidden] the model's own visual tokens of one picture."""
    pixels = vlm.encode([(vlm.prompt("?"), [image])])
    model: Any = vlm.model
    with torch.no_grad():
        made = model.get_image_features(**{k: v for k, v in pixels.items() if k not in ("input_ids", "attention_mask")})
    made = getattr(made, "pooler_output", made)
    made = made if isinstance(made, Tensor) else torch.cat(list(made))
    return made.reshape(-1, made.shape[-1])


@pytest.mark.parametrize("size", SIZES)
def test_every_visual_token_has_its_place(vlm: VLM, size: tuple[int, int]) -> None:
    where = places(vlm, gradient(size))
    assert where.tokens == vlm.tokens_for(gradient(size)) == len(where.boxes) == len(where.marks)
    assert all((box is None) != (mark is None) for box, mark in zip(where.boxes, where.marks, strict=True))
    covered = np.zeros(where.canvas.size[::-1], dtype=int)
    for box in filter(None, (*where.boxes, *where.marks)):
        covered[box[1] : box[3], box[0] : box[2]] += 1
    assert covered.max() == 1  # no two on top of each other
    for left, top, right, bottom in where.views:
        assert (covered[top:bottom, left:right] == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_through_the_processor_comes_back_where_its_box_is(vlm: VLM, size: tuple[int, int]) -> None:
    """Each box shows the part of the original that its place within its view says, whatever padding lies around it."""
    where, longer = places(vlm, gradient(size)), max(size)
    native = "image_grid_thw" in vlm.prepare(gradient(size))
    whole = native or len(where.views) > 1  # LLaVA-NeXT's first view is the picture squashed, without padding
    for box, pixels in zip(where.boxes, contents(where), strict=True):
        if box is None or pixels is None:
            continue
        (view,) = [at for at in where.views if at[0] <= box[0] < at[2]]
        inside = pixels[..., 2] > 250
        if not inside.all():
            continue  # padding, or its edge
        for axis in (0, 1):
            centre = ((box[axis] + box[axis + 2]) / 2 - view[axis]) / (view[axis + 2] - view[axis])
            # LLaVA-NeXT's tiles are unpadded to the picture's own shape, but for less than a patch on either side
            expected = centre if whole else 0.5 + (centre - 0.5) * longer / size[axis]
            slack = 0.07 if whole and view != where.views[0] else 0.03
            assert pixels[..., axis].mean() / 255 == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("size", SIZES[:4])
def test_the_models_own_vision_says_the_same_token(vlm: VLM, photo: Image.Image, size: tuple[int, int]) -> None:
    """A dot on the original changes most, in every view, the token whose box shows it or one beside it; attention spreads it, so
    not always, but chance would be one in sixteen."""
    image, random = photo.resize(size), np.random.default_rng(0)
    before, plain = places(vlm, image), features(vlm, image)
    assert len(plain) == before.tokens
    agreed = []
    for _ in range(8):
        x, y = (int(random.integers(10, edge - 10)) for edge in size)
        reach = 3 * max(size) // 168
        dotted = image.copy()
        ImageDraw.Draw(dotted).rectangle((x - reach, y - reach, x + reach, y + reach), fill=(255, 0, 255))
        shown = [
            0.0 if old is None or new is None else np.abs(old - new).sum()
            for old, new in zip(contents(before), contents(places(vlm, dotted)), strict=True)
        ]
        felt = (features(vlm, dotted) - plain).norm(dim=1).tolist()
        for view in before.views:
            tokens = [at for at, box in enumerate(before.boxes) if box and view[0] <= box[0] < view[2]]
            seen, moved = (before.boxes[max(tokens, key=by.__getitem__)] for by in (shown, felt))
            assert seen is not None
            assert moved is not None
            agreed.append(all(abs(seen[axis] - moved[axis]) <= seen[axis + 2] - seen[axis] for axis in (0, 1)))
    assert sum(agreed) >= 0.8 * len(agreed)


@pytest.mark.parametrize("size", [*SIZES, (505, 100), (700, 30)])
def test_tiles_and_newlines_are_those_of_transformers_packing(size: tuple[int, int]) -> None:
    """transformers packs the mean colours of the vision tower's patches; boxes show the same colours in the same order."""
    vlm = fitprune.load("embedded-next", device="cpu", dtype="float32")
    model: Any = vlm.model
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    inputs, patch = vlm.prepare(image), model.config.vision_config.patch_size
    means = torch.nn.functional.avg_pool2d(inputs["pixel_values"][0], patch).flatten(2).transpose(1, 2)  # [views, n, 3]
    packed, _ = model.model.pack_image_features([means], inputs["image_sizes"], "default", image_newline=torch.full((3,), 1e6))
    expected = packed[0] if isinstance(packed, list | tuple) else packed
    where = places(vlm, image)
    assert where.tokens == len(expected)
    processor = vlm.images.views(image)[0].pixels  # only for its size
    assert processor.size == (model.config.vision_config.image_size,) * 2
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor((0.26862954, 0.26130258, 0.27577711))
    for pixels, colour in zip(contents(where), expected, strict=True):
        assert (pixels is None) == bool(colour[0] > 1e5)
        if pixels is not None:
            assert pixels.mean((0, 1)) == pytest.approx(((colour * std + mean) * 255).numpy(), abs=0.1)


def test_padding_is_on_the_canvas() -> None:
    for name in ("embedded", "embedded-hr"):
        where = places(fitprune.load(name, device="cpu"), Image.new("RGB", (100, 50), "white"))
        assert where.canvas.getpixel((3, 3)) == pytest.approx(PADDING, abs=1)
        assert where.canvas.getpixel((3, where.canvas.height // 2)) == (255, 255, 255)


def test_newlines_are_marked_beside_their_rows() -> None:
    where = places(fitprune.load("embedded-next", device="cpu"), Image.new("RGB", (300, 150)))
    ends = [at for at, mark in enumerate(where.marks) if mark]
    assert len(ends) == 12
    for at in ends:
        mark, last = where.marks[at], where.boxes[at - 1]
        assert mark is not None
        assert last is not None
        assert (mark[1], mark[3]) == (last[1], last[3])
        assert last[2] < mark[0] < mark[2] <= where.canvas.width
    assert {after - before for before, after in pairwise(ends)} == {25}


def test_a_class_token_has_no_place_and_a_sliver_only_newlines() -> None:
    with_class = laid_out([View(Image.new("RGB", (28, 28)), 2, 2, before=1)])
    assert (with_class.boxes[0], with_class.marks[0], with_class.boxes[1]) == (None, None, (0, 0, 14, 14))
    sliver = laid_out([View(Image.new("RGB", (28, 28)), 2, 2), View(Image.new("RGB", (0, 28)), 2, 0, newlines=True)])
    assert [box is None for box in sliver.boxes] == [False] * 4 + [True] * 2


def test_a_grid_without_a_checkpoint() -> None:
    image = Image.new("RGB", (40, 20), "red")
    square, flat = on_grid(image, 4, 4), on_grid(image, 2, 8)
    assert square.canvas.size == (40, 40)
    assert square.canvas.getpixel((0, 0)) == PADDING
    assert flat.canvas.size == (40, 20)
    assert (square.boxes[5], flat.boxes[-1]) == ((10, 10, 20, 20), (35, 10, 40, 20))


def test_a_family_whose_views_do_not_add_up_is_told_so() -> None:
    llava = fitprune.load("embedded", device="cpu")
    llava.images = Images(llava.images.prepare, llava.images.tokens_for, lambda image: [])
    with pytest.raises(FitPruneError, match=r"144 visual tokens .* views have 0"):
        places(llava, Image.new("RGB", (8, 8)))


def test_an_image_of_the_models_own_size_comes_back_to_the_byte(vlm: VLM) -> None:
    vision: Any = vlm.model.config.vision_config
    side = getattr(vision, "image_size", None) or 12 * vision.patch_size  # at native resolution any number of patches is one
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    where = places(vlm, Image.fromarray(noise))
    assert (np.asarray(where.canvas.crop(where.views[0])) == noise).all()
