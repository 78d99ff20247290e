"""Grids and token counts: against the original's tables, and against what transformers makes of the same sizes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaNextConfig
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from fitprune.errors import FitPruneError
from fitprune.images.anyres import AnyRes, of_config, read_pinpoints, turned

FOLDER = Path(__file__).parents[1] / "parity" / "llava_next"
RELEASED = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
NEXT = AnyRes(RELEASED, 336, 14)
PINPOINTS = json.loads((FOLDER / "checkpoint" / "config.json").read_text())["image_grid_pinpoints"]
SMALL = AnyRes(tuple(read_pinpoints(PINPOINTS)), 56, 14)
RECORDED = json.loads((FOLDER / "cases.json").read_text())["cases"]
CASES = [case for case in RECORDED if case["name"] != "single_view"]  # the whole view alone, which no evaluation makes

edges = st.one_of(st.integers(1, 40), st.integers(1, 3000))
sizes = st.tuples(edges, edges)
grids = st.tuples(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 5)
).map(lambda t: AnyRes(tuple((w * t[1] * t[2], h * t[1] * t[2]) for w, h in t[0]), t[1] * t[2], t[2]))  # fmt: skip


def test_the_originals_choice_of_the_pinpoint() -> None:
    table = load_file(FOLDER / "pinpoint_choice.safetensors")["table"].tolist()
    assert len(table) > 800
    assert [list(SMALL.resolution((w, h))) for w, h, _, _ in table] == [row[2:] for row in table]


def test_the_originals_kept_rows_columns_and_tokens() -> None:
    table = load_file(FOLDER / "unpad_counts.safetensors")["table"].tolist()
    assert len(table) > 200
    assert [[*SMALL.kept((w, h)), SMALL.tokens((w, h))] for w, h, *_ in table] == [row[2:] for row in table]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_originals_cases(case: dict) -> None:
    for at, size in enumerate(map(tuple, case["image_sizes_wh"])):
        assert SMALL.tokens(size) == case["num_visual_tokens"][at]
        assert list(SMALL.resolution(size)) == case["best_resolution_wh"][at]
        assert list(SMALL.tiles(size)) == case["tile_grid_cols_rows"][at]
        assert list(SMALL.kept(size)) == case["kept_rows_cols"][at]
        assert 1 + math.prod(SMALL.tiles(size)) == case["num_views"][at]


@pytest.mark.parametrize(
    ("size", "tiles", "kept", "tokens"),
    [
        ((336, 336), (1, 2), (24, 24), 1176),
        ((500, 333), (2, 1), (24, 36), 1464),
        ((640, 480), (2, 2), (36, 48), 2340),
        ((480, 640), (2, 2), (48, 36), 2352),
        ((1024, 683), (2, 2), (32, 48), 2144),
        ((427, 640), (2, 2), (48, 32), 2160),
        ((1920, 1080), (2, 2), (28, 48), 1948),
        ((1024, 899), (2, 2), (42, 48), 2634),
        ((500, 500), (2, 2), (48, 48), 2928),
        ((672, 336), (2, 1), (24, 48), 1752),
        ((1008, 336), (3, 1), (24, 72), 2328),
        ((1000, 300), (3, 1), (22, 72), 2182),
        ((300, 1000), (1, 3), (72, 22), 2232),
        ((2000, 400), (3, 1), (14, 72), 1598),
        ((200, 100), (1, 2), (12, 24), 876),  # a tie: the original takes the first pinpoint
    ],
)
def test_known_sizes(size: tuple[int, int], tiles: tuple[int, int], kept: tuple[int, int], tokens: int) -> None:
    assert (NEXT.tiles(size), NEXT.kept(size), NEXT.tokens(size)) == (tiles, kept, tokens)


@given(sizes, grids)
def test_transformers_chooses_alike_if_its_list_is_turned(size: tuple[int, int], grid: AnyRes) -> None:
    assert select_best_resolution(size[::-1], turned(grid.pinpoints)) == grid.resolution(size)[::-1]


def untouched(config: LlavaNextConfig) -> LlavaNextModel:
    """A model without weights: packing needs none."""
    model = LlavaNextModel.__new__(LlavaNextModel)
    torch.nn.Module.__init__(model)
    model.config = config
    return model


def config_of(grid: AnyRes) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=grid.side, patch_size=grid.patch),
        text_config=LlamaConfig(),
        image_grid_pinpoints=turned(grid.pinpoints),
    )


def packed(grid: AnyRes, size: tuple[int, int]) -> int:
    """Features that transformers makes of one image of this size."""
    config, told = config_of(grid), torch.tensor([size[::-1]])
    views = image_size_to_num_patches(told[0], config.image_grid_pinpoints, grid.side)
    features = [torch.zeros(views, grid.patches**2, 1)]
    result, lengths = untouched(config).pack_image_features(features, told, "default", torch.zeros(1))
    assert views == 1 + math.prod(grid.tiles(size))
    assert len(result[0]) == int(lengths[0])
    return len(result[0])


class Count(LlavaNextProcessor):
    """The processor's arithmetic without its parts."""

    def __init__(self, grid: AnyRes) -> None:
        self.patch_size, self.num_additional_image_tokens = grid.patch, 1
        self.image_processor = type("Pinpoints", (), {"image_grid_pinpoints": turned(grid.pinpoints)})()


@given(sizes, grids)
def test_transformers_counts_alike(size: tuple[int, int], grid: AnyRes) -> None:
    width, height = size
    tokens = grid.tokens(size)
    assert packed(grid, size) == tokens
    assert Count(grid)._get_number_of_features(height, width, grid.side, grid.side) - 1 == tokens


@given(sizes)
def test_transformers_counts_alike_with_the_released_grid(size: tuple[int, int]) -> None:
    assert packed(NEXT, size) == NEXT.tokens(size)


def kept_by_the_original(grid: AnyRes, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns), with its truncated floating-point product."""
    (width, height), (columns, rows) = size, (count * grid.patches for count in grid.tiles(size))
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(height * (columns / width))) // 2), columns
    return rows, columns - 2 * ((columns - int(width * (rows / height))) // 2)


@pytest.mark.parametrize("size", [(704, 396), (1408, 792), (88, 55), (1128, 47), (352, 748), (2352, 1225), (94, 2256)])
def test_where_the_original_loses_two_rows_transformers_is_told_another_size(size: tuple[int, int]) -> None:
    assert sum(NEXT.kept(size)) == sum(kept_by_the_original(NEXT, size)) + 2
    told = NEXT.reported(size)
    assert sorted(a - b for a, b in zip(size, told, strict=True)) == [0, 1]
    assert NEXT.kept(told) == kept_by_the_original(NEXT, size)
    assert NEXT.tiles(told) == NEXT.tiles(size)
    assert packed(NEXT, told) == NEXT.tokens(told)


@given(sizes)
def test_the_reported_size_keeps_what_the_original_keeps(size: tuple[int, int]) -> None:
    assert NEXT.kept(NEXT.reported(size)) == kept_by_the_original(NEXT, size)


def test_a_sliver_may_keep_no_patch_of_its_tiles() -> None:
    assert NEXT.kept((1, 500))[1] == 0
    assert NEXT.tokens((1, 500)) == 24 * 24 + NEXT.kept((1, 500))[0]  # newlines alone


@pytest.mark.parametrize(
    "value", [[[336, 672], [672, 336]], ((336, 672), (672, 336)), "[[336, 672], [672, 336]]", "[(336, 672), (672, 336)]"]
)
def test_pinpoints_as_lists_or_text(value: object) -> None:
    assert read_pinpoints(value) == [(336, 672), (672, 336)]
    assert turned(turned(read_pinpoints(value))) == [[336, 672], [672, 336]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [None, [], 7, "", "(1x1),...,(6x6)", "print(1)", "[336", [[336]], [[336, "672"]], [336, 672], [[1.5, 2]], {"a": 1}]
)
def test_other_pinpoints_are_refused(value: object) -> None:
    with pytest.raises(FitPruneError, match="image_grid_pinpoints") as error:
        read_pinpoints(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pinpoint", [(100, 336), (336, 0), (-336, 336)])
def test_pinpoints_are_whole_tiles(pinpoint: tuple[int, int]) -> None:
    with pytest.raises(FitPruneError, match="image_grid_pinpoints must be sizes in whole tiles of 336"):
        AnyRes((*RELEASED, pinpoint), 336, 14)


def test_a_config_is_read_as_transformers_reads_it() -> None:
    config = config_of(SMALL)
    assert of_config(config) == SMALL
    config.vision_feature_select_strategy = "full"  # its model cannot put such tiles together
    assert of_config(config) is None
    assert of_config(LlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig())) is None


def test_the_order_of_the_list_decides_only_ties() -> None:
    """Every order of the pinpoints keeps as many pixels and wastes as few."""
    for size in itertools.product(range(10, 1300, 97), repeat=2):
        areas = {NEXT.resolution(size)[0] * NEXT.resolution(size)[1]}
        for order in itertools.permutations(RELEASED):
            wide, high = AnyRes(order, 336, 14).resolution(size)
            areas.add(wide * high)
        assert len(areas) == 1
