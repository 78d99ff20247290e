"""The written characters: the masks are the stored ones on every machine, and no two look alike."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from embedded import glyphs
from embedded.glyphs import CHARACTERS, GAP, HEIGHT, string_mask

SMALLEST = 9  # pixels: below any height that scenes use


def test_masks_are_the_same_bytes_on_every_machine() -> None:
    lines = hashlib.sha256()
    for height in (11, 13, 17, HEIGHT):
        lines.update(string_mask(CHARACTERS, height).tobytes())
    assert lines.hexdigest() == "bd3bd89ab056a3b8e170cd0d0ee0eef0182bc3be40433d283db6a1fbdf28884f"


@given(text=st.text(CHARACTERS, min_size=1, max_size=7), height=st.integers(SMALLEST, HEIGHT))
@settings(max_examples=60, deadline=None)
def test_a_string_is_its_characters_side_by_side(text: str, height: int) -> None:
    mask = string_mask(text, height)
    assert mask.dtype == np.uint8
    assert mask.shape[0] == height
    whole = sum(string_mask(character, HEIGHT).shape[1] for character in text) + GAP * (len(text) - 1)
    assert abs(mask.shape[1] - whole * height / HEIGHT) <= 0.5
    assert mask.max() > 200


def test_at_full_height_characters_are_kept_and_gaps_empty() -> None:
    parts = [string_mask(character, HEIGHT) for character in "x7i"]
    gap = np.zeros((HEIGHT, GAP), dtype=np.uint8)
    assert np.array_equal(string_mask("x7i", HEIGHT), np.hstack([parts[0], gap, parts[1], gap, parts[2]]))


def test_each_character_fills_its_mask_from_edge_to_edge() -> None:
    for character in CHARACTERS:
        mask = string_mask(character, HEIGHT)
        assert mask[:, 0].any(), character
        assert mask[:, -1].any(), character
        inked = np.flatnonzero(mask.any(axis=1))
        assert inked[-1] - inked[0] > 0.6 * HEIGHT, character


@pytest.mark.parametrize("kind", [CHARACTERS[:10], CHARACTERS[10:]], ids=["digits", "letters"])
def test_no_two_characters_of_a_string_look_alike_when_small(kind: str) -> None:
    """Digits stand beside digits and letters beside letters: 0 and O are the same but never compete."""

    def padded(character: str) -> np.ndarray:
        mask = string_mask(character, 13).astype(int)
        return np.pad(mask, ((0, 0), (0, 20 - mask.shape[1])))

    for one, other in combinations(kind, 2):
        apart = abs(padded(one) - padded(other)).sum() / 255  # in pixels of full ink
        assert apart > (3 if (one, other) == ("o", "q") else 7), f"{one} looks like {other}"  # Q is O with a small tail


def test_a_mask_cannot_be_changed_by_who_uses_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        string_mask("42", 13)[0, 0] = 7


@pytest.mark.skipif(not features.check("freetype2"), reason="Pillow without FreeType cannot rasterise a font")
def test_drawing_the_atlas_anew_gives_the_stored_one(tmp_path: Path) -> None:
    glyphs.main(str(tmp_path / "atlas.png"))
    with Image.open(tmp_path / "atlas.png") as drawn, Image.open(glyphs.ATLAS) as stored:
        assert drawn.mode == stored.mode == "L"
        assert drawn.size == stored.size
        difference = np.abs(np.asarray(drawn, dtype=int) - np.asarray(stored, dtype=int))
    assert difference.mean() < 2  # of 255: FreeType's versions differ along the edges only


def test_an_atlas_that_lacks_a_character_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (HEIGHT, HEIGHT * len(CHARACTERS))).save(tmp_path / "empty.png")
    monkeypatch.setattr(glyphs, "ATLAS", tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"empty\.png holds nothing for '0'"):
        glyphs._masks.__wrapped__()
