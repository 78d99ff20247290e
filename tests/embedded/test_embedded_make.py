"""One command makes everything and installs it where it is told; run again, it goes on from what is there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import fitprune
from embedded import benchmarks, make, network, train

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9's Muon")


def test_everything_is_made_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network.SIZES, "small", {"vision": (32, 2, 2, 48), "text": (32, 3, 2, 48)})
    monkeypatch.setattr(make, "SAMPLES", 4)
    monkeypatch.setattr(make.benchmarks, "write", partial(benchmarks.write, pictures=1))
    run, package = tmp_path / "run", tmp_path / "package"
    flags = [str(run), "--see-steps", "1", "--answer-steps", "1", "--batch", "2", "--ranks", "1", "--pictures", "2"]
    flags += ["--dense-pictures", "3", "--ratios", "0.5", "--scores", "random"]
    assert make.main([*flags, "--device", "cpu", "--workers", "0", "--install", str(package)]) == 0

    figures = json.loads((package / "model" / "figures.json").read_text())
    assert list(figures["methods"]) == ["dense", "50% random", "50% fastv"]
    assert (figures["pictures"], figures["dense"]["pictures"]) == (2, 3)
    assert {path.name for path in (package / "data").iterdir()} == set(benchmarks.BENCHMARKS)
    assert fitprune.load(str(package / "model"), device="cpu").cost.layers == 3
    card = (package / "model" / "README.md").read_text(encoding="utf-8")
    assert "1 steps of the vision tower" in card
    assert "{" not in card

    before = (run / train.CHECKPOINT).read_bytes()
    stale = package / "data" / "pope" / "stale.jpg"
    stale.touch()
    assert make.main([*flags, "--device", "cpu", "--workers", "0", "--install", str(package)]) == 0
    assert (run / train.CHECKPOINT).read_bytes() == before
    assert not stale.exists()


def test_a_missing_argument_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        make.main([])
    assert left.value.code == 2
    assert "folder" in capsys.readouterr().err
