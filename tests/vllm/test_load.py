"""A real load: vLLM's server and vLLM's client, dense and pruned in turn, as `fitprune.bench.serving` measures it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm.version")  # the folder of these tests has its name

from vllm_engine import HARSH, TOKENS

from fitprune.bench import serving
from fitprune.embedded import model_path


def test_dense_and_pruned_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HARSH.save(tmp_path / "harsh.json")
    command = [
        "--output", str(tmp_path / "out"), "--model", str(model_path()), "--recipe", str(tmp_path / "harsh.json"), "--visual", str(TOKENS),
        "--side", "100", "--servers", "dense", "spread", "--concurrency", "1", "3", "--fewest", "4", "--rounds", "2",
        "--vllm", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 28),
        "--gpu-memory-utilization", "0.2", "--generation-config", "vllm",
    ]  # fmt: skip
    assert serving.main(command) == 0
    found = json.loads((tmp_path / "out" / "serving.json").read_text())
    assert {name: [(row["concurrency"], row["completed"], row["failed"]) for row in rows] for name, rows in found["servers"].items()} == {
        "dense": [(1, 4, 0), (3, 6, 0)], "spread": [(1, 4, 0), (3, 6, 0)],
    }  # fmt: skip
    assert all(row["total_output_tokens"] == 16 * row["completed"] for rows in found["servers"].values() for row in rows)
    assert (tmp_path / "out" / "serving.png").stat().st_size > 10_000
    assert "visual tokens are pruned" in (tmp_path / "out" / "spread" / "server.log").read_text()
    assert "| spread | 3 | 0 |" in capsys.readouterr().out
