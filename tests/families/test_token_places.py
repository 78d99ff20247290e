"""Where the tokens of models without a module lie: each class's true places, and refusal where the order is another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from PIL import Image
from torch import Tensor

import fitprune
from fitprune.draw.places import places
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.families.token_places import features, without_attention

PLACED = ("Qwen2_5_VL", "Qwen3VL", "InternVL", "SmolVLM", "Idefics3", "Gemma3", "LlavaSiglip", "AyaVision", "Pixtral")
FIRST = ("Qwen2_5_VL", "InternVL", "Gemma3")
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.rest) for name in PLACED]
IMAGE = Image.fromarray(np.random.default_rng(0).integers(60, 190, (30, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


def loaded(name: str, folder: Path) -> VLM:
    if why := processors.missing(name):
        pytest.skip(why)
    return fitprune.load(str(processors.saved(name, folder / "checkpoint")), device="cpu")


TILED = {"InternVL": (3, 2), "AyaVision": (3, 2), "SmolVLM": (2, 2), "Idefics3": (2, 2)}  # columns and rows of tiles of the image below


def test_a_patch_of_the_picture_changes_the_token_that_is_drawn_there(vlm: VLM, request: pytest.FixtureRequest) -> None:
    """From the picture itself: where a small square of it is painted over, the token changes in whose box it lies, and most of all.

    In the whole picture, and in the one that its tiles make together.
    """
    where, plain, views = places(vlm, IMAGE), seen(vlm, IMAGE), vlm.views(IMAGE)
    assert where.tokens == vlm.tokens_for(IMAGE) == len(plain)
    tiles = [box for box, view in zip(where.views, views, strict=True) if view.at is not None]
    columns, rows = TILED.get(request.node.callspec.params["vlm"], (0, 0))
    assert len(tiles) == columns * rows == len(views) - 1 or not tiles
    pictures = [where.views[-1]]
    if tiles:
        pictures.append((tiles[0][0], tiles[0][1], tiles[-1][2], tiles[-1][3]))
        assert pictures[1][2] - pictures[1][0] == columns * views[0].pixels.width
        assert pictures[1][3] - pictures[1][1] == rows * views[0].pixels.height
    for left, top, right, bottom in pictures:
        of_view = [number for number, box in enumerate(where.boxes) if box and left <= box[0] < right]
        for x, y in ((5, 4), (45, 3), (25, 15), (8, 26), (40, 22)):
            painted = IMAGE.copy()
            painted.paste((255, 255, 255), (x - 2, y - 2, x + 3, y + 3))
            change = (seen(vlm, painted) - plain).abs().amax(-1)
            across, down = left + (x + 0.5) / IMAGE.width * (right - left), top + (y + 0.5) / IMAGE.height * (bottom - top)
            (inside,) = [n for n in of_view if (box := where.boxes[n]) and box[0] <= across < box[2] and box[1] <= down < box[3]]
            assert float(change[inside]) > 0
            strongest = where.boxes[max(of_view, key=lambda number: float(change[number]))]
            assert strongest is not None
            assert abs((strongest[0] + strongest[2]) / 2 - across) <= 1.01 * (strongest[2] - strongest[0])  # the square may lie on a border
            assert abs((strongest[1] + strongest[3]) / 2 - down) <= 1.01 * (strongest[3] - strongest[1])


def seen(vlm: VLM, image: Image.Image) -> Tensor:
    with torch.inference_mode(), without_attention(vlm.model):
        return features(vlm, vlm.prepare(image))


@pytest.fixture(params=["reversed", "rolled", "two swapped", "transposed"])
def shuffle(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    def swapped(rows: Tensor) -> Tensor:
        order = list(range(len(rows)))
        order[1], order[2] = 2, 1
        return rows[order]

    return {
        "reversed": lambda rows: rows.flip(0),
        "rolled": lambda rows: rows.roll(1, 0),
        "two swapped": swapped,
        "transposed": lambda rows: rows[torch.arange(len(rows)).view(4, 6).T.flatten()],
    }[request.param]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return loaded("Qwen2_5_VL", tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def shuffled(qwen: VLM, shuffle: Callable[[Tensor], Tensor]) -> Iterator[VLM]:
    """The same model, had it another order of tokens."""
    base: Any = qwen.model.base_model
    original = base.get_image_features

    def other(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        if hasattr(made, "pooler_output"):
            made.pooler_output = [shuffle(torch.cat(list(made.pooler_output)))]
            return made
        return [shuffle(torch.cat(list(made)))]

    base.get_image_features = other
    qwen.placed.clear()
    yield qwen
    del base.get_image_features
    qwen.placed.clear()


def test_tokens_in_another_order_are_refused(shuffled: VLM) -> None:
    with pytest.raises(FitPruneError, match="not in the order of the picture's rows"):
        shuffled.views(IMAGE)


def test_a_tower_that_mixes_its_patches_is_refused(qwen: VLM) -> None:
    """Where tokens depend on all patches even without attention, nothing can be said."""
    handle = qwen.model.model.visual.merger.register_forward_hook(lambda module, args, output: output + output.mean(0, keepdim=True) * 9)  # type: ignore[union-attr]
    qwen.placed.clear()
    try:
        with pytest.raises(FitPruneError, match="not in the order"):
            qwen.views(IMAGE)
    finally:
        handle.remove()
        qwen.placed.clear()


def test_the_model_is_asked_once_per_grid_and_left_as_it_was(qwen: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = qwen.encode([(qwen.prompt("Why?"), [IMAGE])])
    with torch.no_grad():
        before = qwen.model(**inputs).logits
        assert [(view.rows, view.columns) for view in qwen.views(IMAGE)] == [(4, 6)]
        assert torch.equal(qwen.model(**inputs).logits, before)
    monkeypatch.setattr("fitprune.families.token_places.features", lambda *_: pytest.fail("asked again"))
    assert len(qwen.views(IMAGE)) == 1


def test_inputs_that_tell_no_places_are_refused(tmp_path: Path) -> None:
    vlm = loaded("LlavaOnevision", tmp_path)
    with pytest.raises(FitPruneError, match=r"do not tell where in the picture its \d+ visual tokens lie"):
        vlm.views(IMAGE)
