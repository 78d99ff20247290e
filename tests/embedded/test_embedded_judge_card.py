"""The judge's card tells the truth: what it says is data, and the judge does as well on a sample as the data says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import embedded
import fitprune
from embedded import attention_facts, card
from embedded.clutter import scene
from embedded.evaluate import Method, asked, evaluate, table
from embedded.questions import FAMILIES
from fitprune.embedded import MODEL_NAME

FOLDER = Path(embedded.__file__).parent / "judge"
NAME = "embedded/judge"
PICTURES = 10  # the sample
DENSE, FAMILY = 0.85, 1.3  # of all questions; how many times a family's commonest answer, or halfway to certainty, is beaten


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / card.FIGURES).read_text(encoding="utf-8"))
    return found


def test_the_tables_are_the_data(told: dict[str, Any]) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for figures in (told, told["dense"]):
        assert table(figures) in text
        assert f"{figures['pictures']} pictures" in text
    assert attention_facts.table(told["attention"], layers=False) in text
    assert attention_facts.table({NAME: told["attention"][NAME]}) in text
    assert (FOLDER / "model.safetensors").stat().st_size < 17e6


def test_it_answers_every_family_far_better_than_by_its_commonest_answer(told: dict[str, Any]) -> None:
    dense = told["dense"]
    assert dense["methods"]["dense"]["all"] >= DENSE
    for family in FAMILIES:
        majority = dense["majority"][family]
        assert dense["methods"]["dense"][family] > min(FAMILY * majority, (1 + majority) / 2), family


def test_nothing_keeps_its_visual_tokens_to_themselves(told: dict[str, Any]) -> None:
    own, known = (told["attention"][name] for name in (NAME, MODEL_NAME))
    assert len(own["others"]) >= 12
    assert sum(own["others"]) / len(own["others"]) > 5 * sum(known["others"]) / len(known["others"])


def test_a_sample_confirms_the_figures(told: dict[str, Any]) -> None:
    """The share on a sample, and that on all pictures, differ by less than four standard errors of the sample's."""
    vlm = fitprune.load(str(FOLDER), device="cpu")
    found = evaluate(vlm, asked("held-out", PICTURES, draw=scene), [Method("dense", None)])
    for group in ("all", "reading", "other"):
        share, n = told["dense"]["methods"]["dense"][group], found["counts"][group]
        error = math.sqrt(max(share * (1 - share), 1 / n) / n)
        assert abs(found["methods"]["dense"][group] - share) < 4 * error, group
    facts = attention_facts.facts(vlm, attention_facts.in_turn(PICTURES, scene))
    for name, values in facts.items():
        assert values == pytest.approx(told["attention"][NAME][name], abs=0.1), name
