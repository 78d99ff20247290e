"""The figures of docs/how_it_works.md show what the code computes today, and can be read on any page."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="pip install 'fitprune[draw]' brings matplotlib")

from scripts import docs_figures


def flat(data: Any) -> list[float]:
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, list) else None
    return [float(data)] if parts is None else [number for part in parts for number in flat(part)]


@pytest.mark.parametrize("name", docs_figures.FIGURES)
def test_a_figure_is_up_to_date_small_and_without_a_background(name: str) -> None:
    file = docs_figures.FOLDER / f"{name}.png"
    kept, made = Image.open(file), Image.open(io.BytesIO(docs_figures.png(name)))
    kept.load(), made.load()
    old, new = (json.loads(image.info["data"]) for image in (kept, made))
    assert flat(old) == pytest.approx(flat(new), rel=0.02, abs=0.01), "python -m scripts.docs_figures draws it again"
    assert kept.size == made.size
    assert file.stat().st_size < (250_000 if name in docs_figures.WITH_PICTURES else 100_000)
    pixels = np.asarray(kept)
    assert pixels[0, 0, 3] == 0
    if name in docs_figures.WITH_PICTURES:
        return
    drawn = pixels[pixels[..., 3] == 255][:, :3].astype(int)
    grey = drawn[np.ptp(drawn, axis=1) == 0][:, 0]
    assert len(grey)
    assert grey.min() >= 100  # no black ink, which a dark page would swallow
    assert grey.max() <= 160


def test_nothing_else_lies_there() -> None:
    assert {file.stem for file in docs_figures.FOLDER.iterdir()} == set(docs_figures.FIGURES)
