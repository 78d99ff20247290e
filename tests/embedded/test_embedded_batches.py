"""Batches: a pure function of (phase, step, rank); no picture twice; ids that read as the questions they hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from embedded import batches
from embedded.batches import OTHERS, READ, SLOTS, answering, pixels, questions, seeing, stream_of
from embedded.questions import FAMILIES, READING
from embedded.render import render
from embedded.scene import SIDE, draw
from embedded.targets import HEADS, IGNORE, targets
from embedded.tokens import EOS, INSTRUCTION, PAD, answer_ids, question_ids, tokenizer


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_slot_reads_as_its_question_and_answer() -> None:
    first, count = 40, 3
    batch = answering(first, count)
    for row in range(count):
        asked = questions(draw("train", first + row))
        assert len(asked) == SLOTS
        assert [list(FAMILIES)[number] for number in batch["family"][row].tolist()] == [q.family for q in asked]
        ids, slot, answer = (batch[name][row] for name in ("ids", "slot", "answer"))
        assert slot[slot > 0].tolist() == sorted(slot[slot > 0].tolist())
        for number, question in enumerate(asked, start=1):
            text, reply = ids[(slot == number) & ~answer].tolist(), ids[(slot == number) & answer].tolist()
            assert reply == answer_ids(question.answer)
            assert reply[-1] == EOS
            assert tokenizer().decode(reply) == question.answer
            assert text in (question_ids(question.text, True), question_ids(question.text, False))
            assert answer[slot == number].tolist() == [False] * len(text) + [True] * len(reply)
        assert (ids[slot == 0] == PAD).all()
        assert not answer[slot == 0].any()
        assert not (ids[slot > 0] == PAD).any()
    assert batch["answer"].dtype == torch.bool


def test_half_of_the_questions_carry_the_instruction() -> None:
    batch = answering(0, 12)
    instruction = tokenizer().token_to_id(INSTRUCTION)
    share = (batch["ids"] == instruction).sum().item() / (12 * SLOTS)
    assert 0.38 < share < 0.62


def test_pictures_and_targets_are_those_of_the_scenes() -> None:
    for make, split in ((seeing, "dense"), (answering, "train")):
        batch = make(7, 2)
        for row in range(2):
            scene = draw(split, 7 + row)  # type: ignore[arg-type]
            grid = round(batch["targets"].shape[2] ** 0.5)
            assert np.array_equal(batch["targets"][row].numpy(), targets(scene, grid))
            back = batch["pixels"][row].permute(1, 2, 0) * torch.tensor(OPENAI_CLIP_STD) + torch.tensor(OPENAI_CLIP_MEAN)  # fmt: skip
            assert np.array_equal((back * 255).round().to(torch.uint8).numpy(), np.asarray(render(scene)))
        assert batch["targets"].shape[:2] == (2, len(HEADS))
        assert (batch["targets"] == IGNORE).any()


def test_pixels_are_those_of_transformers_image_processor() -> None:
    """What a trained model will be fed with when `fitprune` runs it."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:  # before the implementations were renamed
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor as Processor
    size = {"shortest_edge": SIDE}
    process = Processor(size=size, crop_size={"height": SIDE, "width": SIDE})
    picture = render(draw("held-out", 2))
    theirs = process(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(np.array(picture)[None]), theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pixels(np.array(Image.new("RGB", (SIDE, SIDE)))[None]), theirs)


def test_families_are_asked_as_often_as_the_table_says() -> None:
    assert {*READING, *OTHERS} == set(FAMILIES)
    assert not set(READING) & set(OTHERS)
    drawn = Counter(question.family for index in range(150) for question in questions(draw("train", index)))
    assert set(drawn) == set(FAMILIES)
    assert sum(drawn[family] for family in READING) == 150 * READ
    always = [family for family in OTHERS if family in ("count", "count-yn", "ocr-yn", "string-yn", "exist", "existence-yn")]
    for family in always:  # the families that every scene has something for keep their proportions
        share = drawn[family] / sum(drawn[other] for other in always)
        assert share == pytest.approx(OTHERS[family] / sum(OTHERS[other] for other in always), abs=0.05)


def test_reading_comes_first_in_a_row() -> None:
    for index in range(20):
        families = [question.family for question in questions(draw("train", index))]
        assert all((family in READING) == (at < READ) for at, family in enumerate(families))


@pytest.mark.parametrize("make", [seeing, answering])
def test_a_batch_is_the_same_every_time(make: object) -> None:
    first = make(3, 2)  # type: ignore[operator]
    make(4, 1)  # type: ignore[operator]
    assert same(make(3, 2), first)  # type: ignore[operator]
    assert not torch.equal(make(5, 2)["pixels"], first["pixels"])  # type: ignore[operator]


@given(
    first=st.integers(0, 50), steps=st.integers(1, 6), count=st.integers(1, 4), ranks=st.integers(1, 4)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_ranks_share_the_pictures_of_a_step_and_none_comes_twice(first: int, steps: int, count: int, ranks: int) -> None:
    seen: list[list[int]] = [[] for _ in range(steps)]

    def note(start: int, number: int, **options: object) -> dict[str, torch.Tensor]:
        return {"pictures": torch.arange(start, start + number)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "answering", note)
        for rank in range(ranks):
            for step, batch in enumerate(stream_of("answer", first, first + steps, count, rank, ranks, 0)):
                seen[step] += batch["pictures"].tolist()
    total = count * ranks  # pictures per step, whatever the number of ranks
    for step, pictures in enumerate(seen, start=first):
        assert pictures == list(range(step * total, (step + 1) * total))


def test_a_stream_can_be_entered_anywhere() -> None:
    whole = list(stream_of("answer", 0, 4, 1, 0, 1, 0))
    later = list(stream_of("answer", 2, 4, 1, 0, 1, 0))
    assert len(whole) == 4
    assert all(same(one, other) for one, other in zip(whole[2:], later, strict=True))
    assert all(same(one, other) for one, other in zip(whole, (answering(at, 1) for at in range(4)), strict=True))
    assert same(next(iter(stream_of("see", 3, 4, 2, 1, 2, 0))), seeing((3 * 2 + 1) * 2, 2))


def test_other_processes_draw_the_same_batches() -> None:
    assert all(same(one, other) for one, other in zip(stream_of("see", 0, 3, 1, 0, 1, 2), stream_of("see", 0, 3, 1, 0, 1, 0), strict=True))
