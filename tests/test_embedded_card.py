"""The shipped model card tells the truth: its table is its data, and the model does as well on a sample as the data says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

import fitprune
from embedded import card
from embedded.evaluate import asked, evaluate, methods, table
from embedded.questions import FAMILIES
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError

MODEL = embedded().model
FIGURES = json.loads((MODEL / card.FIGURES).read_text(encoding="utf-8"))
TEXT = (MODEL / "README.md").read_text(encoding="utf-8")
PICTURES, RATIO = 24, 0.5  # the sample


def test_the_table_is_the_data() -> None:
    for figures in (FIGURES, FIGURES["dense"]):
        assert table(figures) in TEXT
        assert f"{figures['pictures']} pictures" in TEXT


def test_a_sample_confirms_the_figures() -> None:
    """The share on a sample, and that on all pictures, differ by less than four standard errors of the sample's."""
    loaded = fitprune.load("embedded", device="cpu")
    tried = methods(loaded, [RATIO], ["fitprune", "random"], samples=128)
    names = [method.name for method in tried]
    assert set(names) < set(FIGURES["methods"])
    found = evaluate(loaded, asked("held-out", PICTURES), tried)
    for name in names:
        for group in ("all", "reading", "other"):
            told, n = FIGURES["methods"][name][group], found["counts"][group]
            error = math.sqrt(max(told * (1 - told), 1 / n) / n)
            assert abs(found["methods"][name][group] - told) < 4 * error, (name, group)


def test_every_family_is_worth_asking() -> None:
    """At least eight in ten right, and far above the commonest answer: a family at chance is not decoration."""
    figures = FIGURES["dense"]
    assert set(FAMILIES) < set(figures["counts"])
    for family in FAMILIES:
        dense, majority = figures["methods"]["dense"][family], figures["majority"][family]
        assert dense >= 0.8, family
        assert dense > majority + 0.2, family
    assert figures["methods"]["dense"]["all"] >= 0.9


def test_parameters_and_licence() -> None:
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        count = sum(weights.get_tensor(key).numel() for key in list(weights.keys()))
    (told,) = re.findall(r"of ([\d.]+) million parameters", TEXT)
    assert float(told) == pytest.approx(count / 1e6, abs=0.005)
    assert "license: apache-2.0" in TEXT


def test_a_card_needs_an_exported_model(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match="no checkpoint"):
        card.write(tmp_path, tmp_path, {"pictures": 1})
