"""ZeRO-3 inference through accelerate: every process has a share of each weight, and the answers are those of one process."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from processes import ZERO3, together

import fitprune
from fitprune.calibrate import observe_questions
from fitprune.distributed.launch import joined
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answer import answer
from fitprune.questions import Calibration, read_questions

ORIGINAL = Path(__file__).parents[1] / "parity" / "llava15" / "checkpoint"
QUESTIONS = read_questions(embedded().questions)[:5]


def ask(folder: Path, workers: Any) -> dict[str, Any]:
    """Statistics, then answers in the folder, dense and pruned."""
    llava = fitprune.load("embedded", device="cpu")
    found: dict[str, Any] = {"parameters": sum(weight.numel() for weight in llava.model.parameters())}
    calibration = Calibration(embedded().questions, embedded().images, batch_size=2, read=lambda path: QUESTIONS)
    stats = observe_questions(llava, calibration, progress=False, workers=workers)
    found["recipe"] = recipe = fitprune.fit(stats, reduction_ratio=0.6)
    for name, used in (("dense", None), ("pruned", recipe)):
        run = answer(
            llava, QUESTIONS, embedded().images, folder / name, recipe=used, batch_size=2, progress=False, workers=workers, max_new_tokens=5
        )  # fmt: skip
        found[name] = run.answered, run.alive
    return found


def texts(folder: Path) -> list[list[Any]]:
    keys = ("question_id", "text", "metadata")
    return [[[json.loads(line)[key] for key in keys] for line in (folder / name).read_text().splitlines()] for name in ("dense", "pruned")]


@pytest.mark.rest
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed: pip install 'fitprune[deepspeed]'")
def test_zero3_answers_as_one_process(tmp_path: Path) -> None:
    def shared(rank: int) -> dict[str, Any]:
        with joined() as workers:
            assert workers.lockstep
            return ask(tmp_path / "two", workers)

    whole = ask(tmp_path / "one", fitprune.distributed.workers.SINGLE)
    one, other = together(2, shared, **ZERO3)
    assert one["parameters"] == other["parameters"] < whole["parameters"] / 2  # what is not in use is not there
    for found in (one, other):
        assert found["recipe"] == whole["recipe"]
        assert found["recipe"].fingerprint == whole["recipe"].fingerprint
        assert (found["dense"], found["pruned"]) == (whole["dense"], whole["pruned"])
    assert texts(tmp_path / "two") == texts(tmp_path / "one")


def test_the_original_layout_is_converted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ZERO3.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FitPruneError, match="fitprune convert"):
        fitprune.load(str(ORIGINAL))


def test_without_deepspeed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.accelerator.is_deepspeed_available", lambda: False)

    def run(rank: int) -> str:
        with joined(), pytest.raises(FitPruneError) as error:
            fitprune.load("embedded", device="cpu")
        return str(error.value)

    (said,) = together(1, run, **ZERO3)
    assert said.endswith("pip install 'fitprune[deepspeed]', and look at its config")
