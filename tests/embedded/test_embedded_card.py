"""The shipped model cards tell the truth: a table is its data, and a model does as well on a sample as the data says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import fitprune
from embedded import card
from embedded.evaluate import Method, asked, evaluate, methods, table
from embedded.questions import FAMILIES
from embedded.render import render
from embedded.scene import draw
from fitprune.embedded import MODEL_NAME, MODELS, model_path
from fitprune.errors import FitPruneError

PICTURES, RATIO = 24, 0.5  # the sample
FEW = 6  # pictures of the sample for the other families, whose figures are of fewer pictures as well
DENSE = {
    "embedded": (0.9, 0.8),
    "embedded-next": (0.9, 0.75),
    "embedded-hr": (0.9, 0.8),
    "embedded-qwen": (0.9, 0.7),
}  # all questions, every family


@dataclass(frozen=True)
class Card:
    name: str
    figures: dict[str, Any]
    text: str

    @property
    def folder(self) -> Path:
        return model_path(self.name)


@pytest.fixture(params=list(MODELS))
def of(request: pytest.FixtureRequest) -> Card:
    folder = model_path(request.param)
    return Card(
        request.param, json.loads((folder / card.FIGURES).read_text(encoding="utf-8")), (folder / "README.md").read_text(encoding="utf-8")
    )


def tables(of: Card) -> list[dict[str, Any]]:
    return [of.figures, *(of.figures[part] for part in ("dense", "canvas") if part in of.figures)]


def test_the_table_is_the_data(of: Card) -> None:
    for figures in tables(of):
        assert table(figures) in of.text
        assert f"{figures['pictures']} pictures" in of.text


def test_a_sample_confirms_the_figures(of: Card) -> None:
    """The share on a sample, and that on all pictures, differ by less than four standard errors of the sample's."""
    vlm = fitprune.load(of.name, device="cpu")
    whole = of.name == MODEL_NAME
    tried = methods(vlm, [RATIO], ["fitprune", "random"] if whole else ["fitprune"], samples=128 if whole else 32)
    names = [method.name for method in tried]
    assert set(names) <= set(of.figures["methods"])
    found = evaluate(vlm, asked("held-out", PICTURES if whole else FEW), tried)
    confirmed(found, of.figures, names)
    assert f" {vlm.tokens_for(render(draw('held-out', 0)))} visual tokens for a picture" in of.text


def confirmed(found: dict[str, Any], told: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        for group in ("all", "reading", "other"):
            share, n = told["methods"][name][group], found["counts"][group]
            error = math.sqrt(max(share * (1 - share), 1 / n) / n)
            assert abs(found["methods"][name][group] - share) < 4 * error, (name, group)


@pytest.mark.parametrize("name", ["embedded-next", "embedded-qwen"])
def test_a_sample_confirms_the_figures_of_canvases(name: str) -> None:
    figures = json.loads((model_path(name) / card.FIGURES).read_text(encoding="utf-8"))["canvas"]
    vlm = fitprune.load(name, device="cpu")
    found = evaluate(vlm, asked("held-out", FEW, size=tuple(figures["size"])), [Method("dense", None)])
    confirmed(found, figures, ["dense"])


def test_every_family_is_worth_asking(of: Card) -> None:
    """Most are right, and far more than by the commonest answer: a family at chance is not decoration."""
    figures = of.figures["dense"]
    least, least_of_family = DENSE[of.name]
    assert set(FAMILIES) < set(figures["counts"])
    for family in FAMILIES:
        dense, majority = figures["methods"]["dense"][family], figures["majority"][family]
        assert dense >= least_of_family, family
        assert dense > majority + 0.2, family
    assert figures["methods"]["dense"]["all"] >= least


def test_parameters_and_licence(of: Card) -> None:
    with safe_open(of.folder / "model.safetensors", "pt") as weights:
        count = sum(weights.get_tensor(key).numel() for key in list(weights.keys()))
    (told,) = re.findall(r"of ([\d.]+) million parameters", of.text)
    assert float(told) == pytest.approx(count / 1e6, abs=0.005)
    assert "license: apache-2.0" in of.text


def test_a_card_needs_an_exported_model(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match="no checkpoint"):
        card.write(tmp_path, tmp_path, {"pictures": 1})
