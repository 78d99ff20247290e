"""Models that do not ship, as tiny random checkpoints: what a deletion needs is found in the class that vLLM has for each.

The oracle's processor is the one that vLLM uses: another implementation of the same resizing moves pixels by a thousandth, and random
weights make different survivors of that.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm.version")  # the folder of these tests has its name

import processors
from transformers import AutoModelForImageTextToText
from vllm_engine import answer, compare, engine, mixed, watched

import fitprune
from fitprune.families.convert import save

HEAD = 32  # the smallest that vLLM's attention has on a CPU
RECIPE = fitprune.Recipe.from_deletions([60, 0, 25, 0], visual_tokens=100)


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = 4 * HEAD
    monkeypatch.setattr(processors, "HIDDEN", wide)
    monkeypatch.setitem(processors.TEXT, "hidden_size", wide)
    monkeypatch.setitem(processors.MROPE, "mrope_section", [HEAD // 4, HEAD // 8, HEAD // 8])


@pytest.mark.parametrize(("name", "score"), [("Qwen2_5_VL", "last"), ("InternVL", "fitprune"), ("LlavaOnevision", "spread")])
def test_answers_and_survivors_are_those_of_prune(name: str, score: str, wide_heads: None, tmp_path: Path) -> None:
    folder = processors.saved(name, tmp_path)
    if name == "LlavaOnevision":  # this transformers writes its tower under names that vLLM does not know
        save(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32), folder)
    with engine(RECIPE, score, model=str(folder), max_model_len=2048) as llm:
        asked, seen = mixed(24, seed=7, images=2), watched(llm)
        for number, one in enumerate(asked):
            one.images = [image.resize((20 + number, 40)) for image in one.images]
        answer(llm, asked, str(folder))
    found = compare(asked, RECIPE, score, str(folder), seen=seen)
    assert (found.answers, found.survivors) == ([], {})
    assert found.as_dense < found.images / 2
