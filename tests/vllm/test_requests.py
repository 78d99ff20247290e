"""Where images are and what goes, from what vLLM says of a request; no vLLM is needed here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fitprune
from fitprune.kernels import TEXT
from fitprune.vllm.requests import Stages, _say, read_request

RECIPE = fitprune.Recipe.from_deletions([0, 4, 0, 3, 1], visual_tokens=10)


class Range:
    """vLLM's `PlaceholderRange`."""

    def __init__(self, offset: int, embeds: str) -> None:
        self.offset, self.embeds = offset, embeds

    def extract_embeds_range(self) -> list[tuple[int, int]]:
        runs, start = [], None
        for place, mark in enumerate([*self.embeds, "."]):
            if mark == "x" and start is None:
                start = place
            elif mark != "x" and start is not None:
                runs.append((self.offset + start, self.offset + place - 1))
                start = None
        return runs


def image(offset: int, embeds: str, modality: str = "image") -> Any:
    return SimpleNamespace(modality=modality, mm_position=Range(offset, embeds))


def test_stages_end_with_the_layer_that_deletes() -> None:
    stages = Stages(RECIPE, 5)
    assert stages.of == [0, 0, 1, 1, 2]
    assert (stages.count, stages.deleting) == (3, (1, 3, 4))
    assert Stages(fitprune.Recipe.none(4), 4).count == 1


def test_each_image_has_a_budget_of_its_own() -> None:
    pruned = read_request(Stages(RECIPE, 5), [image(3, "x" * 10), image(15, ".xxxx.xxxxxx.")], 30)
    assert pruned is not None
    assert pruned.counts == ((0, 0), (4, 4), (0, 0), (3, 3), (1, 1))
    assert pruned.lost == (0, 8, 14)
    assert (pruned.images, pruned.visual, pruned.prompt) == (2, (3, 27), 30)
    expected = torch.full((30,), TEXT)
    expected[3:13], expected[16:20], expected[20], expected[21:27] = 1, 2, 0, 2
    assert pruned.group.tolist() == expected.tolist()


@pytest.mark.parametrize("features", [[], [image(2, "..")], [image(2, "x" * 10, "audio")], [image(2, "x")]])
def test_what_loses_nothing(features: list[Any]) -> None:
    assert read_request(Stages(RECIPE, 5), features, 20) is None


def test_what_is_not_pruned_is_said(caplog: pytest.LogCaptureFixture) -> None:
    _say.cache_clear()  # an engine of another test may have said it
    stages, features = Stages(RECIPE, 5), [image(3, "x" * 10)]
    for _ in range(2):
        assert read_request(stages, features, 13) is None
        assert read_request(stages, features, 20, SimpleNamespace(prompt_logprobs=1)) is None
    assert read_request(stages, features, 20, SimpleNamespace(prompt_logprobs=None)) is not None
    assert sorted(record.args[0].split()[0] for record in caplog.records) == ["prompts", "requests"]  # type: ignore[index, union-attr]
