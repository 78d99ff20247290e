"""Two-way tensor parallelism prunes as the whole model does: statistics, survivors of every score, logits, tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from processes import together
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

import fitprune
from fitprune.distributed.heads import HeadGroup, check_complete, heads_of
from fitprune.distributed.launch import joined
from fitprune.errors import FitPruneError, UnsupportedError
from fitprune.families.sharding import tensor_parallel
from fitprune.kernels import received_attention, reference
from fitprune.kernels.attended import Attended
from fitprune.scores import SCORES, last

SIDES = ("left", "right")
IMPLEMENTATIONS = ("sdpa", "eager")
ROWS = [tiny.prompt(3, "image", 5), tiny.prompt(1, "image", 9, seed=1), tiny.prompt(4, "image", 2, "image", 3, seed=2)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny.llava().save_pretrained(folder)
    return folder


def local_heads_only(seen: Attended) -> Tensor:
    """A score that knows nothing of other processes."""
    return seen.query.float().square().sum((1, 3))


def everything(model: Any) -> dict[str, Any]:
    """What pruning makes of a model, in all ways that look at heads."""
    found: dict[str, Any] = {}
    with torch.inference_mode():
        stats = fitprune.observe(model, [tiny.batch(ROWS, "right")], progress=False)
        found["statistics"] = torch.stack([stats.cross, stats.intra])
        found["recipe"] = fitprune.fit(stats, reduction_ratio=0.5).counts
        for implementation in IMPLEMENTATIONS:
            model.set_attn_implementation(implementation)
            for side in SIDES:
                inputs = tiny.batch(ROWS, side)
                for score in [*SCORES, local_heads_only]:
                    name = score if isinstance(score, str) else "own"
                    with fitprune.prune(model, tiny.RECIPE, score=score) as trace:
                        output = model(**inputs)
                        alive = [[row.tolist() for row in layer] for layer in trace.alive]
                        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False) if side == "left" else None
                    found[implementation, side, name] = alive, output.logits[0, -1], tokens
    return found


def test_two_processes_prune_as_one(checkpoint: Path) -> None:
    def shared(rank: int) -> dict[str, Any]:
        with joined(one_model=True):
            config = LlavaForConditionalGeneration.config_class.from_pretrained(checkpoint)
            model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32, **tensor_parallel(config, "it")).eval()
            heads = heads_of(model.model.language_model.layers[0].self_attn)
            assert heads is not None
            assert heads.size == 2
            with pytest.raises(UnsupportedError, match="recorded prefills"):
                fitprune.attach(model, tiny.RECIPE, graphs=1)
            with fitprune.prune(model, tiny.RECIPE):  # it let go of the model
                pass
            return everything(model)

    whole = everything(LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval())
    one, other = together(2, shared)
    assert torch.equal(one["statistics"], other["statistics"])
    torch.testing.assert_close(one["statistics"], whole["statistics"], atol=1e-6, rtol=1e-4)
    assert one["recipe"] == other["recipe"] == whole["recipe"]
    assert len(whole) == 2 + len(IMPLEMENTATIONS) * len(SIDES) * (len(SCORES) + 1)
    for key in [key for key in whole if isinstance(key, tuple)]:
        alive, logits, tokens = whole[key]
        if key[2] == "own":  # ranked by the first process's heads, in both
            assert one[key][0] == other[key][0]
            assert torch.equal(one[key][1], other[key][1])
            continue
        assert one[key][0] == other[key][0] == alive, key
        for found in (one, other):
            torch.testing.assert_close(found[key][1], logits, atol=2e-4, rtol=1e-3)
            assert tokens is None or torch.equal(found[key][2], tokens)


def test_the_maximum_is_over_all_heads() -> None:
    """Against the formula, on heads dealt out to three processes, grouped keys, with and without the log-sum-exp."""
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 6, 11, 8, generator=generator), torch.randn(2, 3, 13, 8, generator=generator)
    queries = torch.tensor([[-1, 1, 1, 1, 0, 2, 2, 2, -1, -1, -1], [1, 1, 1, 1, 2, 2, 2, -1, -1, -1, -1]])
    keys = nn.functional.pad(queries.clamp(min=0), (2, 0))
    expected = reference(query, key, 0.4, None, queries, keys)

    def part(rank: int) -> tuple[Tensor, Tensor]:
        with joined() as met:
            heads = HeadGroup(torch.distributed.group.WORLD)
            mine = query[:, 2 * rank : 2 * rank + 2], key[:, rank : rank + 1]
            found = received_attention(*mine, 0.4, None, queries, keys, images=2, heads=heads)
            gathered = heads.gather(mine[0])
            agreed = heads.broadcast_from_first(torch.full((3,), float(met.rank)))
            assert torch.equal(gathered, query)
            assert agreed.tolist() == [0, 0, 0]
            return found

    found = together(3, part)
    for cross, intra in found:
        torch.testing.assert_close(cross, expected[0])
        torch.testing.assert_close(intra, expected[1])
        assert torch.equal(cross, found[0][0])


def test_values_are_of_all_heads() -> None:
    """`unlikeness` and attention from others on heads dealt out to two processes, against one that has them all."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, heads, 40, 8, generator=generator) for heads in (8, 4, 4))
    group = torch.tensor([[-1] * 3 + [1] * 20 + [2] * 10 + [-1] * 7, [0] * 5 + [-1] + [1] * 25 + [2] * 5 + [-1] * 4])

    def scores(ours: slice, heads: HeadGroup | None) -> tuple[Tensor, Tensor]:
        pairs = slice(2 * ours.start, 2 * ours.stop)
        seen = Attended(query[:, pairs], key[:, ours], value[:, ours], 0.4, None, group, 2, (3, 36), layer=0, heads=heads, sizes=(25, 10))
        return seen.others, seen.unlikeness(last(seen) * seen.others)

    def part(rank: int) -> tuple[Tensor, Tensor]:
        with joined():
            return scores(slice(2 * rank, 2 * rank + 2), HeadGroup(torch.distributed.group.WORLD))

    whole = scores(slice(0, 4), None)
    for found in together(2, part):
        for ours, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_a_model_that_nobody_shares_has_all_heads() -> None:
    assert heads_of(tiny.llama().model.layers[0].self_attn) is None

    def with_company(rank: int) -> bool:
        with joined():
            return heads_of(tiny.llama().model.layers[0].self_attn) is None

    assert together(2, with_company) == [True, True]


def test_a_part_of_the_heads_is_refused() -> None:
    check_complete(None, 4, SimpleNamespace(num_attention_heads=4))
    check_complete(None, 4, SimpleNamespace())
    with pytest.raises(UnsupportedError, match="2 of 4 heads"):
        check_complete(None, 2, SimpleNamespace(num_attention_heads=4))


def test_heads_that_do_not_divide(checkpoint: Path) -> None:
    config = LlavaForConditionalGeneration.config_class.from_pretrained(checkpoint)
    with pytest.raises(FitPruneError, match="torchrun"):
        tensor_parallel(config, "it")

    def three(rank: int) -> str:
        with joined(one_model=True), pytest.raises(FitPruneError) as error:
            tensor_parallel(config, "it")
        return str(error.value)

    assert all("3 processes cannot share evenly" in said for said in together(3, three))
