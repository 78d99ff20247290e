"""Lengths and slots of a stage, against the obvious loop over requests and tokens; no vLLM is needed here."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fitprune.errors import UnsupportedError
from fitprune.recipe import Recipe
from fitprune.vllm.batch import Batch, Plan, Row
from fitprune.vllm.requests import PrunedRequest, Stages

BLOCK, STAGES = 4, 3


@dataclass
class Common:
    """The fields of vLLM's `CommonAttentionMetadata` that are touched."""

    query_start_loc: Tensor
    query_start_loc_cpu: Tensor
    seq_lens: Tensor
    seq_lens_cpu_upper_bound: Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: Tensor
    slot_mapping: Tensor
    positions: Tensor | None = None
    _num_computed_tokens_cache: Any = None
    _token_to_req_indices_cache: Any = None

    def replace(self, **changed: Any) -> Common:
        return replace(self, **changed)


def pruned(prompt: int, lost: tuple[int, ...]) -> PrunedRequest:
    return PrunedRequest(torch.ones(prompt, dtype=torch.long), (), lost, 1, (0, prompt))


def step(seed: int) -> tuple[Batch, Common, list[tuple[int, int]]]:
    """A batch of requests that arrive, decode, decode several tokens, or have no image: (cached, new) tokens each."""
    draw = random.Random(seed)
    rows, sizes = [], []
    for number in range(draw.randrange(1, 6)):
        first = draw.randrange(8)
        one = pruned(20, (0, first, first + draw.randrange(8))) if draw.random() < 0.7 else None
        arrives = one is not None and draw.random() < 0.5
        cached, new = (0, 20 + draw.randrange(3)) if arrives else (20 + draw.randrange(9), draw.choice([1, 1, 3]))
        rows.append(Row(str(number), new, one, arrives))
        sizes.append((cached, new))
    starts = torch.tensor([0, *(new for _, new in sizes)]).cumsum(0).int()
    lengths = torch.tensor([cached + new for cached, new in sizes], dtype=torch.int32)
    table = torch.randperm(len(rows) * 16).view(len(rows), 16).int()
    total = int(starts[-1])
    longest = max(new for _, new in sizes)
    common = Common(
        starts, starts.clone(), lengths, lengths.clone(), len(rows), total, longest, int(lengths.max()), table, torch.arange(total)
    )
    return Batch(rows, STAGES), common, sizes


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("stage", range(STAGES))
def test_a_stage_sees_what_is_left(seed: int, stage: int) -> None:
    batch, common, sizes = step(seed)
    narrowed = batch.narrowed(common, stage, BLOCK)
    lost = [row.pruned.lost[stage] if row.pruned else 0 for row in batch.rows]
    if not any(lost):
        assert narrowed is common
        return
    slots, queries, lengths = [], [], []
    for number, ((cached, new), row) in enumerate(zip(sizes, batch.rows, strict=True)):
        first = 0 if row.arrives else cached - lost[number]
        queries.append(new - lost[number] if row.arrives else new)
        lengths.append(first + queries[-1])
        slots += [int(common.block_table_tensor[number, at // BLOCK]) * BLOCK + at % BLOCK for at in range(first, lengths[-1])]
    assert narrowed.slot_mapping.tolist() == slots
    assert narrowed.query_start_loc.diff().tolist() == queries == narrowed.query_start_loc_cpu.diff().tolist()
    assert narrowed.seq_lens.tolist() == lengths == narrowed.seq_lens_cpu_upper_bound.tolist()
    assert (narrowed.num_actual_tokens, narrowed.max_query_len, narrowed.max_seq_len) == (len(slots), max(queries), max(lengths))


def plan(features: int, prompt: int, computed: int, groups: bool) -> Plan:
    image = SimpleNamespace(modality="image", mm_position=SimpleNamespace(extract_embeds_range=lambda: [(2, 11)]))
    request = SimpleNamespace(mm_features=[image] * features, num_prompt_tokens=prompt, num_computed_tokens=computed, sampling_params=None)
    runner = SimpleNamespace(requests={"a": request}, input_batch=SimpleNamespace(req_ids=["a"]))
    return Plan(Stages(Recipe.from_deletions([0, 5, 0], visual_tokens=10), 3), runner, groups)


def test_nothing_happens_outside_of_a_step() -> None:
    made = plan(1, 20, 0, True)
    assert made.batch is None
    made.begin({"a": 20})
    assert made.batch is not None
    assert made.batch.prunes
    made.end()
    assert made.batch is None


def test_a_request_that_is_computed_again_brings_its_images_again() -> None:
    made = plan(1, 20, 0, True)
    made.begin({"a": 27})
    assert made.batch is not None
    assert made.batch.rows[0].arrives
    made.runner.requests["a"].num_computed_tokens = 27
    made.begin({"a": 1})
    assert made.batch is not None
    assert not made.batch.prunes
    assert made.batch.lost.tolist() == [[0, 5]]


def test_text_alone_loses_nothing() -> None:
    made = plan(0, 20, 0, True)
    made.begin({"a": 20})
    assert made.batch is None


def test_prompts_in_pieces() -> None:
    made = plan(1, 20, 0, True)
    made.begin({"a": 12})
    with pytest.raises(UnsupportedError, match="in pieces"):
        _ = made.batch
    made = plan(1, 20, 0, False)  # where memory is not saved they are answered densely
    for computed, tokens in ((0, 12), (12, 8), (20, 1)):
        made.runner.requests["a"].num_computed_tokens = computed
        made.begin({"a": tokens})
        assert made.batch is None
    made.runner.requests["a"].num_computed_tokens = 0
    made.begin({"a": 21})
    assert made.batch is not None
