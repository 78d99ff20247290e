"""Load on vLLM: what is promised by FLOPs, the table and plot of measured servers, what is refused; a real load is in tests/vllm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import fitprune
from fitprune.bench import serving
from fitprune.bench.serving_plot import plot
from fitprune.bench.serving_shape import DELETIONS, SHAPE, random_llava
from fitprune.cost import CostModel
from fitprune.decoder.upstream import cache_in, pass_cache


def row(concurrency: int, rate: float) -> dict[str, Any]:
    return {
        "concurrency": concurrency, "completed": 10, "failed": 0, "mean_ttft_ms": 1000 / rate, "p99_ttft_ms": 1500 / rate,
        "output_throughput": 16 * rate, "request_throughput": rate, "total_input_tokens": 5880, "total_output_tokens": 160,
    }  # fmt: skip


RESULTS = {
    "ideal": {"request": 2.5, "prefill": 3.0},
    "servers": {"dense": [row(1, 1.0), row(8, 2.0)], "spread": [row(1, 2.0), row(8, 5.0)]},
}


def test_flops_of_a_request_are_those_that_pytorch_counts() -> None:
    """Matrix products of a dense model that prefills 20 tokens and decodes 4 more; attention as the full square."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=50
    )
    config._attn_implementation = "eager"
    model, counter, cache = LlamaForCausalLM(config).eval(), FlopCounterMode(display=False), None
    with counter, torch.no_grad():
        for length in (20, 1, 1, 1, 1):
            cache = cache_in(model(torch.zeros(1, length, dtype=torch.long), **pass_cache(model, cache), logits_to_keep=1))
    found = serving.request_flops(CostModel.from_config(config), [16] * 3, 16, 4, 5)
    rotary = sum(2 * 4 * length for length in (20, 1, 1, 1, 1))  # the outer product of positions and frequencies
    assert abs(found - counter.get_total_flops()) <= rotary


def test_the_promise_of_the_shape_that_the_docs_tell_of(tmp_path: Path) -> None:
    """16 layers of 1024: 2.91 for the prompt less for a request that also decodes."""
    recipe = fitprune.Recipe.from_deletions(DELETIONS, visual_tokens=SHAPE.visual)
    folder = random_llava(tmp_path)
    ideal = serving.ideal(folder, recipe, row(1, 1.0), SHAPE.visual)
    assert ideal["text"] == 12
    assert ideal["prefill"] == pytest.approx(2.91, abs=0.005)
    assert 2.7 < ideal["request"] < ideal["prefill"]
    assert random_llava(folder) == folder


def test_table_and_plot() -> None:
    lines = serving.table(RESULTS)
    assert lines[2] == "| dense | 1 | 0 | 1 | 1.5 | 16 | 1 |  |  |"
    assert lines[-1] == "| spread | 8 | 0 | 0.2 | 0.3 | 80 | 5 | 2.50 | 100% |"
    rate, first = plot(RESULTS).axes
    assert [list(line.get_ydata()) for line in rate.lines] == [[1.0, 2.0], [2.0, 5.0], [2.5, 5.0]]
    assert [list(line.get_ydata()) for line in first.lines] == [[1.0, 0.5], [0.5, 0.2]]


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--servers", "nonsense"], "no server nonsense: use dense, or a score"), (["--model", "here"], "give both --model and --recipe")],
)
def test_what_is_wrong_is_said_before_anything_starts(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "installed", lambda: True)
    assert serving.main(["--output", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_vllm_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "installed", lambda: False)
    assert serving.main(["--output", str(tmp_path / "out")]) == 2
    assert "pip install 'fitprune[vllm]'" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(fitprune.FitPruneError, match=r"did not start: see .*log"),
        serving.server(tmp_path / "nowhere", None, [], tmp_path / "log"),
    ):
        pass
