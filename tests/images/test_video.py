"""Which frames of a video are looked at, from folders, lists and files; what is not there says so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fitprune.errors import FitPruneError
from fitprune.images import video
from fitprune.images.video import FPS, MOST, chosen, read_video


def frames(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (6, 4), (number, 0, 0)) for number in range(count)]


@given(st.integers(1, 5000), st.floats(0.5, 120), st.floats(0.1, 60), st.integers(1, 99))
def test_frames_are_spread_evenly_and_bounded(total: int, rate: float, fps: float, most: int) -> None:
    found = chosen(total, rate, fps, most)
    assert 1 <= len(found) <= min(most, total)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] < total
    gaps = np.diff([*found, total])
    assert gaps.max() - gaps.min() <= 1
    assert len(found) <= max(1, round(total / rate * fps))


def test_a_list_a_folder_and_bounds(tmp_path: Path) -> None:
    for number, frame in enumerate(frames(10)):
        frame.save(tmp_path / f"{number:02}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    for source in (frames(10), [tmp_path / f"{number:02}.png" for number in range(10)], tmp_path, str(tmp_path)):
        found = read_video(source, most=5)
        assert [frame.getpixel((0, 0))[0] for frame in found.frames] == list(found.indices) == [0, 2, 4, 6, 8]  # type: ignore[index]
        assert (found.total, found.rate) == (10, FPS)
    assert len(read_video(tmp_path).frames) == 10
    assert len(read_video(tmp_path, fps=1, rate=5).frames) == 2
    assert len(read_video(frames(500)).frames) == MOST


def test_metadata_tells_the_times_of_the_frames() -> None:
    told = read_video(frames(8), fps=1, rate=4).metadata()
    assert (told.total_num_frames, told.fps, told.duration, list(told.frames_indices)) == (8, 4, 2.0, [0, 4])
    assert (told.width, told.height) == (6, 4)
    assert list(told.timestamps) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.mp4", {}, r"no video nowhere\.mp4"),
        ([], {}, "no frames"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], {}, "one size"),
        (["nowhere.png"], {}, "no image nowhere.png"),
        (["x"], {"fps": 0}, "at least one frame"),
        (["x"], {"most": 0}, "at least one frame"),
    ],
)
def test_what_is_no_video(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FitPruneError, match=message):
        read_video(source, **options)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match="one image per frame"):
        read_video(tmp_path)


def test_without_a_decoder_a_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").write_bytes(b"whatever")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        FitPruneError, match=r"nothing is installed that decodes film\.mp4: pip install torchcodec \(or av\), or give a folder"
    ):
        read_video(tmp_path / "film.mp4")


@pytest.mark.parametrize("first", [False, True])
def test_a_file_is_decoded_by_transformers_at_our_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """With a decoder that stands in: transformers' `load_video` is told which frames, [T, H, W, 3] or [T, 3, H, W]."""
    import transformers.video_utils as utils

    (tmp_path / "film.mp4").write_bytes(b"whatever")
    whole = np.stack([np.asarray(frame) for frame in frames(40)])

    def load(path: str, backend: str, sample_indices_fn: Any) -> Any:
        assert (path, backend) == (str(tmp_path / "film.mp4"), "pyav")
        told = utils.VideoMetadata(total_num_frames=40, fps=10.0, duration=4.0)
        picked = whole[sample_indices_fn(told)]
        return picked.transpose(0, 3, 1, 2) if first else picked, told

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleType(name) if name == "av" else None)
    monkeypatch.setattr(utils, "load_video", load)
    found = read_video(tmp_path / "film.mp4")
    assert [frame.getpixel((0, 0))[0] for frame in found.frames] == list(found.indices) == [0, 5, 10, 15, 20, 25, 30, 35]  # type: ignore[index]
    assert (found.total, found.rate) == (40, 10.0)
    monkeypatch.setattr(utils, "load_video", lambda *_, **__: 1 / 0)
    with pytest.raises(FitPruneError, match=r"cannot read video .*film\.mp4 \(pyav: division by zero\)"):
        read_video(tmp_path / "film.mp4")
    assert video.__name__ in sys.modules
