"""Fitting takes the calibration questions it says, in whatever batches."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import fitprune
from fitprune.calibrate import Calibration, observe_questions
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.vlm import VLM


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture
def few() -> Calibration:
    return Calibration(embedded().calibration, embedded().calibration_images, samples=4, batch_size=4)


def test_questions_are_spread_over_the_file() -> None:
    questions = Calibration(embedded().calibration, embedded().calibration_images, samples=5).questions()
    assert len({q.image for q in questions}) == 5
    whole = Calibration(embedded().calibration, embedded().calibration_images, samples=10_000).questions()
    assert len(whole) == len(embedded().calibration.read_text().splitlines())


def test_batch_size_does_not_change_statistics(small: VLM, few: Calibration) -> None:
    together = observe_questions(small, few, progress=False)
    alone = observe_questions(small, dataclasses.replace(few, batch_size=1), progress=False)
    assert (together.cross - alone.cross).abs().max() < 1e-5
    assert (together.intra - alone.intra).abs().max() < 1e-5
    assert together.text_tokens.tolist() == alone.text_tokens.tolist()


def test_nothing_to_fit_on(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question_id": 1, "text": "why?"}) + "\n")
    with pytest.raises(FitPruneError, match="no question with an image"):
        Calibration(file, tmp_path).questions()
