"""Where the images are, against a loop over positions."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import spans_of

from fitprune.errors import FitPruneError
from fitprune.locate import ByMask, ByTokenId, find_spans, groups, without_padding

rows = st.integers(1, 20).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(rows)
def test_spans_are_runs(mask):
    mask = torch.tensor(mask)
    assert find_spans(mask) == [spans_of(row) for row in mask]


@given(rows, st.integers(1, 6))
def test_runs_are_split_into_images_of_one_size(mask, size):
    mask = torch.tensor(mask)
    for row, found in zip(mask, find_spans(mask, size), strict=True):
        wanted = []
        for start, end in spans_of(row):
            step = size if (end - start) % size == 0 else end - start
            wanted += [(at, at + step) for at in range(start, end, step)]
        assert found == wanted


@given(rows)
def test_groups_number_the_images(mask):
    mask = torch.tensor(mask)
    spans = find_spans(mask)
    group = groups(spans, mask.shape[1])
    assert torch.equal(group > 0, mask)
    for row, images in zip(group, spans, strict=True):
        for number, (start, end) in enumerate(images, 1):
            assert (row[start:end] == number).all()


@given(rows, st.integers(0, 10**6))
def test_padding_is_taken_out_of_images(mask, seed):
    mask = torch.tensor(mask)
    real = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    assert without_padding(find_spans(mask), real) == find_spans(mask & real)


def config(**values):
    return SimpleNamespace(**values)


def test_image_tokens_by_either_name():
    ids = torch.tensor([[5, 9, 9, 9, 9, 2], [9, 9, 1, 9, 9, 1]])
    for name in ("image_token_id", "image_token_index"):
        assert ByTokenId(config(**{name: 9}))({"input_ids": ids}) == [[(1, 5)], [(0, 2), (3, 5)]]
    assert ByTokenId(config(image_token_id=9, image_seq_length=2))({"input_ids": ids})[0] == [(1, 3), (3, 5)]
    tiled = config(image_token_id=9, image_seq_length=2, image_grid_pinpoints=[[1, 2]])  # sizes differ: no guess
    assert ByTokenId(tiled)({"input_ids": ids})[0] == [(1, 5)]
    with pytest.raises(FitPruneError, match="visual_mask"):
        ByTokenId(config())


def test_decoding_steps_have_no_images():
    locate = ByTokenId(config(image_token_id=9))
    assert locate({"input_ids": torch.tensor([[9], [3]])}) == [[], []]
    assert locate({"inputs_embeds": torch.zeros(3, 1, 4)}) == [[], [], []]
    with pytest.raises(FitPruneError, match="inputs_embeds"):
        locate({"inputs_embeds": torch.zeros(3, 2, 4)})


def test_a_mask_is_read_from_where_the_cache_ends():
    mask = ByMask(torch.tensor([[False, True, True, False, True, False]]))
    assert mask.window(1, 0, 6) == [[(1, 3), (4, 5)]]
    assert mask.window(2, 0, 6) == [[(1, 3), (4, 5)]] * 2  # beams
    assert mask.window(1, 2, 4) == [[(0, 1), (2, 3)]]  # prefilled in chunks
    assert mask.window(1, 4, 9) == [[(0, 1)]]
    assert mask.window(3, 6, 1) == [[], [], []]


def test_beams_repeat_rows_next_to_each_other():
    mask = ByMask(torch.tensor([[True, False], [False, True]]))
    assert mask.window(4, 0, 2) == [[(0, 1)], [(0, 1)], [(1, 2)], [(1, 2)]]
    with pytest.raises(FitPruneError, match="2 rows but the batch has 3"):
        mask.window(3, 0, 2)
    with pytest.raises(FitPruneError, match="covers 2 tokens but the prompt has 3"):
        mask.window(2, 0, 3)
    for wrong in (torch.zeros(2, 2), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(FitPruneError, match="bool"):
            ByMask(wrong)


def test_the_vision_tower_says_how_many_tokens_an_image_has():
    """Adjacent images make one run; a config whose image_seq_length was left at its default must not merge them."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from fitprune.locate import ByTokenId

    vision = CLIPVisionConfig(image_size=32, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(), image_token_index=9)
    ids = torch.tensor([[1, *[9] * 32, 2]])
    assert ByTokenId(config)({"input_ids": ids}) == [[(1, 17), (17, 33)]]
    config.vision_feature_select_strategy = "full"
    assert ByTokenId(config)({"input_ids": torch.tensor([[1, *[9] * 34, 2]])}) == [[(1, 18), (18, 35)]]
