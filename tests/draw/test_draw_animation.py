"""The GIF: as many frames as layers and one, shown long enough to be read, looping, the same bytes each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitprune.draw import animation
from fitprune.errors import FitPruneError


@pytest.fixture(scope="module")
def shown() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(5)]


def test_frames_durations_and_loop(shown, tmp_path):
    alive = [9, 9, 7, 7, 1]  # the same count twice is still two frames
    animation.save(shown, alive, tmp_path / "a.gif", "a title")
    film = Image.open(tmp_path / "a.gif")
    assert film.n_frames == 5
    assert film.info["loop"] == 0
    seen = []
    for at in range(film.n_frames):
        film.seek(at)
        seen.append(film.info["duration"])
    assert seen == animation.durations(5) == [1600, 800, 800, 800, 3200]
    animation.save(shown, alive, tmp_path / "b.gif", "a title")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_colours_survive_the_palette_and_nothing_flickers(shown, tmp_path):
    vivid = Image.new("RGB", (200, 200), (60, 140, 90))
    vivid.paste((255, 110, 180), (20, 20, 60, 60))
    last = vivid.copy()
    last.paste((213, 94, 0), (120, 120, 130, 130))
    animation.save([vivid, vivid, last], [4, 4, 2], tmp_path / "c.gif")
    film, rendered = Image.open(tmp_path / "c.gif"), animation.render([vivid, vivid, last], [4, 4, 2])
    frames = []
    for at, wanted in enumerate(rendered):
        film.seek(at)
        frames.append(np.asarray(film.convert("RGB")).astype(int))
        assert abs(frames[-1] - np.asarray(wanted).astype(int)).max() < 60
        assert frames[-1][0, 0].min() > 248  # its own ground
    same = (np.asarray(rendered[0]) == np.asarray(rendered[2])).all(2)
    assert (frames[0] == frames[2]).all(2)[same].all()


@given(st.integers(1, 200))
def test_durations_are_what_gif_can_hold(count):
    made = animation.durations(count)
    assert len(made) == count
    assert all(duration % 10 == 0 and duration >= animation.FASTEST for duration in made)
    assert made[-1] == animation.LAST
    assert sum(made) < 60_000


def test_images_and_counts_must_agree(shown, tmp_path):
    for images, alive in ((shown, [1]), ([], [])):
        with pytest.raises(FitPruneError, match="one count per image"):
            animation.save(images, alive, tmp_path / "d.gif")
