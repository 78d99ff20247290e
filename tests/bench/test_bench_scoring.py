"""The scoring of one layer alone: what it is said to do, that the kernel that ran is named, the table. Not speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fitprune import kernels
from fitprune.bench import scoring
from fitprune.bench.shapes import SHAPES, Shape
from fitprune.cost import CostModel

SHAPE = Shape(
    CostModel(layers=3, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8), before=4, visual=30, after=6, recipes="none"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.SIDE, "cpu", 16)
    monkeypatch.setitem(SHAPES, "small", SHAPE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flops_and_bytes_are_counted_by_hand(dtype: str) -> None:
    found = scoring.measure(SHAPE, batches=[2], dtype=dtype, device="cpu", repeats=2)
    (row,) = found["rows"]
    pairs = sum(1 for key in range(4, 34) for query in range(40) if query >= key)
    assert row["flops"] == 2 * 2 * 4 * 8 * pairs  # two for each number; two rows; four heads of eight
    width = torch.empty(0, dtype=getattr(torch, dtype)).itemsize
    queries, keys, norms, sums = 2 * 4 * 36 * 8, 2 * 2 * 30 * 8, 2 * 4 * 36, 2 * 2 * 40
    assert row["bytes"] == (queries + keys) * width + (norms + sums) * 4
    assert row["kernel"] == "chunked"
    assert all(row[name]["median"] > 0 for name in ("attention", "scoring_alone"))
    assert min(found["ceilings"].values()) > 0


def test_scoring_is_asked_for_what_a_layer_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums that are timed are those of all visual tokens, from the queries that count."""
    seen = []
    real = kernels.received_attention

    def watched(query, key, scaling, mask, *groups, **hints):  # type: ignore[no-untyped-def]
        sums = real(query, key, scaling, mask, *groups, **hints)
        seen.append((sums, kernels.reference(query, key, scaling, mask, *groups)))
        return sums

    monkeypatch.setattr(kernels, "received_attention", watched)
    scoring.measure(SHAPE, batches=[1], device="cpu", repeats=1)
    assert len(seen) >= 2
    for sums, wanted in seen:
        for ours, theirs in zip(sums, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_table_divides_by_the_ceilings() -> None:
    spread = {"median": 0.002, "low": 0.002, "high": 0.002}
    row = {"batch": 8, "kernel": "triton", "attention": spread, "scoring": spread, "scoring_alone": spread, "flops": 4e11, "bytes": 2e9}
    found = {"tokens": [1, 2, 3], "ceilings": {"flops_per_second": 8e14, "bytes_per_second": 4e12}, "rows": [row, {**row, "scoring": None}]}
    head, first, other = scoring.table(found)
    assert len(head) == len(first) == len(other)
    assert first[-4:] == ["200.000", "25.0%", "1000.0", "25.0%"]
    assert other[head.index("scoring")] == ""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--repeats", "1", "--batch-size", "1", "2", "--json", str(tmp_path / "s.json")]
    assert scoring.main(flags) == 0
    figures = json.loads((tmp_path / "s.json").read_text())
    assert [row["batch"] for row in figures["rows"]] == [1, 2]
    assert scoring.report(figures) in capsys.readouterr().out
    assert scoring.main(["--device", "cuda:99"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
