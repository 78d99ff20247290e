"""What a trace says: before, during and after, across turns."""

import tiny
import torch
from tiny import LAYERS, RECIPE, batch, embedded, prompt

import fitprune
from fitprune.kernels.select import ALIVE, DELETED, PADDING
from fitprune.trace import Trace


def test_empty_before_the_first_prefill():
    trace = Trace()
    assert len(trace) == 0
    assert trace.alive == []
    assert trace.visual == []
    assert trace.visual_tokens == []
    assert trace.positions.numel() == 0
    assert "no prefill" in str(trace)


def test_by_hand():
    trace = Trace()
    status = torch.tensor([[ALIVE] * 5, [PADDING] + [ALIVE] * 4])
    group = torch.tensor([[-1, 1, 1, 1, -1], [0, -1, 1, 1, -1]])
    steps = trace.clear(10, status, group)
    steps.append((None, None))
    columns = torch.tensor([[0, 2, 4], [1, 3, 4]])
    steps.append((columns, torch.tensor([[ALIVE, ALIVE, ALIVE], [ALIVE, DELETED, ALIVE]])))
    assert [[row.tolist() for row in rows] for rows in trace.alive] == [[[10, 11, 12, 13, 14], [11, 12, 13, 14]], [[10, 12, 14], [11, 14]]]
    assert [[row.tolist() for row in rows] for rows in trace.visual] == [[[11, 12, 13], [12, 13]], [[12], []]]
    assert trace.visual_tokens == [3, 2]
    assert trace.images == [[(11, 14)], [(12, 14)]]
    assert trace.positions.tolist() == [[10, 12, 14], [11, -1, 14]]
    assert "after layer   1: 1, 0" in str(trace)
    again = trace.clear(0, status, group)
    again.append((None, None))
    steps.append((None, None))  # an earlier forward that is still running does not disturb
    assert len(trace) == 1


def test_of_a_model(llava):
    rows = [prompt(3, "image", 5, seed=1), prompt(2, "image", 1, "image", 4, seed=2), prompt(6, seed=3)]
    inputs = batch(rows, "right")
    width = inputs["input_ids"].shape[1]
    with torch.no_grad(), fitprune.prune(llava, RECIPE) as trace:
        output = llava(**inputs)
        assert len(trace) == LAYERS
    assert trace.visual_tokens == [16, 32, 0]
    assert [len(row) for row in trace.visual[-1]] == [6, 12, 0]
    for layer in range(LAYERS):
        for row, ids in enumerate(inputs["input_ids"]):
            real = inputs["attention_mask"][row].bool()
            alive, visual = trace.alive[layer][row], trace.visual[layer][row]
            assert alive.tolist() == sorted(set(alive.tolist()))
            text = (real & (ids != tiny.IMAGE_TOKEN)).nonzero().flatten()
            assert sorted(text.tolist() + visual.tolist()) == alive.tolist()  # text is always alive, padding never
            assert (ids[visual] == tiny.IMAGE_TOKEN).all()
    assert trace.positions.shape == output.logits.shape[:2]
    last = trace.positions.argmax(1)  # the column of each row's last token
    for row, inputs_row in enumerate(rows):
        assert trace.positions[row, last[row]] == inputs_row["input_ids"].shape[1] - 1 < width


def test_after_a_text_only_prompt_the_last_prefill_with_images_stays(llava):
    with torch.no_grad(), fitprune.prune(llava, RECIPE) as trace:
        llava(**prompt(3, "image", 5))
        kept = trace.positions
        llava(**prompt(7))
        assert torch.equal(trace.positions, kept)


def test_reading_it_during_a_forward(llama):
    embeds, mask = embedded(24, (3, 19))
    lengths = []

    def watching(seen):
        lengths.append(len(trace))
        return seen.received[0]

    with torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask, score=watching) as trace:
        llama(inputs_embeds=embeds)
    assert lengths == [0, 2, 3]
