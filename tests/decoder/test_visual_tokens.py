"""Where the images are, against a loop over positions; images of several runs, tiles, videos."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import found_by as located_by
from tiny import spans_of

from fitprune.decoder.visual_tokens import ByMask, find_spans, groups, positions_of, runs_of, split, tokens_of, without_padding
from fitprune.errors import FitPruneError


def whole(spans):
    """Images of one run each, as runs."""
    assert all(len(image) == 1 for images in spans for image in images)
    return [[image[0] for image in images] for images in spans]


def given_images(config):
    """As `located_by`, for calls that are shown without what brings their images."""
    locate = located_by(config)
    return lambda call: locate({"image_features": torch.zeros(1), **call})


def found_by(config):
    locate = given_images(config)
    return lambda call: whole(locate(call).spans())


rows = st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4))


@given(rows)
def test_spans_are_runs(mask):
    mask = torch.tensor(mask)
    assert runs_of(mask) == whole(find_spans(mask)) == [spans_of(row) for row in mask]


@given(rows, st.integers(1, 6))
def test_runs_are_split_into_images_of_one_size(mask, size):
    mask = torch.tensor(mask)
    for row, found in zip(mask, whole(find_spans(mask, size)), strict=True):
        wanted = []
        for start, end in spans_of(row):
            step = size if (end - start) % size == 0 else end - start
            wanted += [(at, at + step) for at in range(start, end, step)]
        assert found == wanted


@given(rows)
def test_groups_number_the_images(mask):
    mask = torch.tensor(mask)
    spans = find_spans(mask)
    group, between = groups(spans, mask.shape[1])
    assert torch.equal(group > 0, mask)
    assert not between.any()
    for row, images in zip(group, whole(spans), strict=True):
        for number, (start, end) in enumerate(images, 1):
            assert (row[start:end] == number).all()


@given(rows, st.integers(0, 10**6))
def test_padding_is_taken_out_of_images(mask, seed):
    mask = torch.tensor(mask)
    real = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    for images, before, kept, row in zip(without_padding(find_spans(mask), real), find_spans(mask), mask & real, real, strict=True):
        left = [[at for at in positions_of(image).tolist() if row[at]] for image in before]
        assert [positions_of(image).tolist() for image in images] == [places for places in left if places]
        assert [run for image in images for run in image] == spans_of(kept)


def config(**values):
    return SimpleNamespace(**values)


def test_image_tokens_by_either_name():
    ids = torch.tensor([[5, 9, 9, 9, 9, 2], [9, 9, 1, 9, 9, 1]])
    for name in ("image_token_id", "image_token_index"):
        assert found_by(config(**{name: 9}))({"input_ids": ids}) == [[(1, 5)], [(0, 2), (3, 5)]]
    assert found_by(config(image_token_id=9, image_seq_length=2))({"input_ids": ids})[0] == [(1, 3), (3, 5)]
    tiled = config(image_token_id=9, image_seq_length=2, image_grid_pinpoints=[[1, 2]])  # sizes differ: no guess
    assert found_by(tiled)({"input_ids": ids})[0] == [(1, 5)]
    with pytest.raises(FitPruneError, match="visual_mask"):
        found_by(config())


def test_decoding_steps_have_no_images():
    locate = found_by(config(image_token_id=9))
    assert locate({"input_ids": torch.tensor([[9], [3]])}) == [[], []]
    assert locate({"inputs_embeds": torch.zeros(3, 1, 4)}) == [[], [], []]
    with pytest.raises(FitPruneError, match="inputs_embeds"):
        locate({"inputs_embeds": torch.zeros(3, 2, 4)})


def test_a_mask_is_read_from_where_the_cache_ends():
    mask = ByMask(torch.tensor([[False, True, True, False, True, False]]))
    assert whole(mask.window(1, 0, 6)) == [[(1, 3), (4, 5)]]
    assert whole(mask.window(2, 0, 6)) == [[(1, 3), (4, 5)]] * 2  # beams
    assert whole(mask.window(1, 2, 4)) == [[(0, 1), (2, 3)]]  # prefilled in chunks
    assert whole(mask.window(1, 4, 9)) == [[(0, 1)]]
    assert whole(mask.window(3, 6, 1)) == [[], [], []]


def test_beams_repeat_rows_next_to_each_other():
    mask = ByMask(torch.tensor([[True, False], [False, True]]))
    assert whole(mask.window(4, 0, 2)) == [[(0, 1)], [(0, 1)], [(1, 2)], [(1, 2)]]
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

    vision = CLIPVisionConfig(image_size=32, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(), image_token_index=9)
    ids = torch.tensor([[1, *[9] * 32, 2]])
    assert found_by(config)({"input_ids": ids}) == [[(1, 17), (17, 33)]]
    config.vision_feature_select_strategy = "full"
    assert found_by(config)({"input_ids": torch.tensor([[1, *[9] * 34, 2]])}) == [[(1, 18), (18, 35)]]


lengths_by_row = st.lists(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=3), min_size=1, max_size=4)


@given(lengths_by_row)
def test_runs_are_split_into_images_of_unlike_sizes(rows):
    """Per row, runs; per run, the lengths of its images: written down position by position."""
    runs, wanted = [], []
    for row in rows:
        at, spans, images = 0, [], []
        for run in row:
            at += 2
            spans.append((at, at + sum(run)))
            for length in run:
                images.append((at, at + length))
                at += length
        runs.append(spans)
        wanted.append(images)
    lengths = [length for row in rows for run in row for length in run]
    assert whole(split(runs, lengths)) == wanted
    assert split(runs, [*lengths, 1]) is None
    if lengths:
        assert split(runs, lengths[:-1]) is None
        assert split(runs, [*lengths[:-1], lengths[-1] + 1]) is None
        assert split(runs, [*lengths, 0]) is None


def next_config():
    """Views of 2 × 2 patches; two tiles beside or above each other."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=56, patch_size=28),
        text_config=LlamaConfig(),
        image_token_index=9,
        image_grid_pinpoints=[[56, 112], [112, 56]],
    )


def ids_of(*rows):
    """Rows of numbers: positive are text tokens, negative that many image tokens; padded on the left."""
    flat = [[token for n in row for token in ([9] * -n if n < 0 else [1] * n)] for row in rows]
    width = max(map(len, flat))
    return torch.tensor([[0] * (width - len(row)) + row for row in flat])


WIDE, TALL = (56, 112), (112, 56)  # (height, width): 4 + 2 × (4 + 1) = 14 tokens, 4 + 4 × (2 + 1) = 16


def test_image_sizes_split_adjacent_images():
    locate = found_by(next_config())
    call = {"input_ids": ids_of([3, -30, 2]), "image_sizes": torch.tensor([WIDE, TALL]), "pixel_values": torch.zeros(2)}
    assert locate(call) == [[(3, 17), (17, 33)]]
    call["image_sizes"] = call["image_sizes"].flip(0)
    assert locate(call) == [[(3, 19), (19, 33)]]


def test_image_sizes_go_row_by_row_past_padding():
    locate = found_by(next_config())
    ids = ids_of([1, -14, 1], [2, -30, 1, -16, 2], [4])
    call = {"input_ids": ids, "pixel_values": torch.zeros(4), "image_sizes": torch.tensor([WIDE, TALL, WIDE, TALL])}
    assert locate(call) == [[(36, 50)], [(2, 18), (18, 32), (33, 49)], []]
    beams = {
        "input_ids": ids.repeat_interleave(2, dim=0),
        "pixel_values": torch.zeros(8),
        "image_sizes": torch.tensor([WIDE, WIDE, *[TALL, WIDE, TALL] * 2]),
    }
    assert locate(beams) == [row for row in locate(call) for _ in range(2)]


def test_image_sizes_that_do_not_fit_are_an_error():
    locate = found_by(next_config())
    pixels = {"pixel_values": torch.zeros(2)}
    for ids, sizes in ((ids_of([3, -29, 2]), [WIDE, TALL]), (ids_of([3, -30, 2]), [WIDE]), (ids_of([3, -14, 2]), [WIDE, TALL])):
        with pytest.raises(FitPruneError, match="by image_sizes the images take") as error:
            locate({"input_ids": ids, "image_sizes": torch.tensor(sizes), **pixels})
        assert "beams" not in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(FitPruneError, match="num_beams=1"):  # A A B B for two rows of A B
        locate({"input_ids": ids_of([1, -30], [1, -30]), "image_sizes": torch.tensor([WIDE, WIDE, TALL, TALL]), **pixels})


def test_image_sizes_without_pixels_say_nothing():
    """A later turn: the images are in the cache already."""
    locate = found_by(next_config())
    assert locate({"input_ids": ids_of([5]), "image_sizes": torch.tensor([WIDE]), "pixel_values": None}) == [[]]


def encoded(*lengths):
    return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=[torch.zeros(n, 2) for n in lengths])}}


def test_images_that_come_encoded_split_their_runs():
    locate = found_by(config(image_token_id=9))
    ids = ids_of([3, -7, 2], [1, -2, 1, -5])
    assert locate({"input_ids": ids, **encoded(4, 3, 2, 1, 4)}) == [[(3, 7), (7, 10)], [(4, 6), (7, 8), (8, 12)]]
    one_each = [[(3, 10)], [(4, 6), (7, 12)]]
    assert locate({"input_ids": ids, **encoded(14)}) == one_each  # a chunk of a prefill: parts of images in one tensor
    assert locate({"input_ids": ids, "mm_encoder_outputs": {}}) == one_each
    assert locate({"input_ids": ids, "mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=None)}}) == one_each
    flat = SimpleNamespace(pooler_output=torch.zeros(14, 1))  # all images in one: its rows are not images
    assert locate({"input_ids": ids, "mm_encoder_outputs": {"image": flat}}) == one_each
    alike = SimpleNamespace(pooler_output=torch.zeros(2, 7, 4))
    assert locate({"input_ids": ids_of([1, -14]), "mm_encoder_outputs": {"image": alike}}) == [[(1, 8), (8, 15)]]
    sized = found_by(config(image_token_id=9, image_seq_length=2))  # what is at hand goes before what the config says
    assert sized({"input_ids": ids_of([1, -4]), **encoded(1, 3)}) == [[(1, 2), (2, 5)]]
    assert sized({"input_ids": ids_of([1, -4])}) == [[(1, 3), (3, 5)]]


@given(st.lists(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3), min_size=1, max_size=3))
def test_an_image_of_several_runs(rows):
    """Per row, images; per image, the lengths of its runs, a token of its frame between them and text between images."""
    runs, lengths, wanted, frame = [], [], [], []
    for row in rows:
        at, places, inside = 1, [], []
        runs.append([])
        for image in row:
            start = at
            for length in image:
                runs[-1].append((at, at + length))
                at += length + 1
            lengths.append(sum(image))
            places.append([at for a, b in runs[-1][-len(image) :] for at in range(a, b)])
            inside += [at for at in range(start, at - 1) if at not in places[-1]]
            at += 1
        wanted.append(places)
        frame.append(inside)
    spans = split(runs, lengths, across=True)
    assert [[positions_of(image).tolist() for image in images] for images in spans] == wanted
    assert [[tokens_of(image) for image in images] for images in spans] == [list(map(sum, row)) for row in rows]
    group, between = groups(spans, 1 + max(row[-1][1] for row in runs))
    assert [row.nonzero().flatten().tolist() for row in between] == frame
    assert [(row > 0).nonzero().flatten().tolist() for row in group] == [[at for image in places for at in image] for places in wanted]
    assert split(runs, [*lengths, 1], across=True) is None
    assert (split(runs, lengths) is None) == any(len(image) > 1 for row in rows for image in row)


def test_an_image_over_several_runs_has_whole_ones():
    """Lengths in another order than the images: a part of one run and the next would be an image of nobody's."""
    assert split([[(0, 5), (6, 9)]], [3, 5], across=True) is None
    assert split([[(0, 5), (6, 9)]], [5, 3], across=True) == [[((0, 5),), ((6, 9),)]]
    assert split([[(0, 5), (6, 9)]], [8], across=True) == [[((0, 5), (6, 9))]]
    assert split([[(0, 5)], [(6, 9)]], [8], across=True) is None  # never into the next row


def test_videos_are_visual_and_the_models_lengths_count():
    locate = given_images(config(image_token_id=9, video_token_id=8))
    ids = torch.tensor([[1, 9, 9, 1, 8, 8, 2, 8, 8, 1, 9, 9, 9, 1]])
    found = locate({"input_ids": ids})
    assert found.spans() == [[((1, 3),), ((4, 6),), ((7, 9),), ((10, 13),)]]
    found.made["video"], found.made["image"] = [4], [2, 3]  # noted while the model makes the features
    assert found.spans() == [[((1, 3),), ((4, 6), (7, 9)), ((10, 13),)]]


@pytest.mark.parametrize(("kind", "marks"), [("internvl", [5, 5]), ("smolvlm", [30, 31, 32, 32]), ("ovis2", [5, 30, 31, 5])])
def test_tiles_are_one_image(kind, marks):
    """Two images of tiles: the token ahead of the last (or first) one is the same for every image."""
    ids = [[1, *[token for mark in marks for token in (mark, 9, 9)], 1, 1]]
    images = given_images(config(model_type=kind, image_token_id=9))({"input_ids": torch.tensor(ids)}).spans()[0]
    sizes = {"internvl": [1, 1], "smolvlm": [3, 1], "ovis2": [3, 1]}[kind]
    assert [len(image) for image in images] == sizes


def test_pixels_without_a_visual_token_are_an_error():
    with pytest.raises(FitPruneError, match="brings pixel_values_videos, but none of its tokens is 9"):
        located_by(config(image_token_id=9))({"input_ids": ids_of([4]), "pixel_values_videos": torch.zeros(2)})
