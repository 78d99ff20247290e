"""Pictures as people bring them: upright whatever a phone wrote, in every format and mode; benchmarks' as they are stored."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fitprune
from fitprune import FitPruneError
from fitprune.embedded import embedded
from fitprune.evaluation.benchmarks import find
from fitprune.families import clip
from fitprune.images.reading import ORIENTATION, as_rgb, read_image
from fitprune.images.video import read_video
from fitprune.questions import open_image, read_questions
from fitprune.web.untrusted import read_untrusted_image

LYING = {  # orientation → how its picture was stored, from upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
UPRIGHT = Image.new("RGB", (48, 32), "black")
UPRIGHT.paste("red", (0, 0, 16, 16))
UPRIGHT.paste("blue", (32, 16, 48, 32))


def photo(orientation: int, form: str) -> bytes:
    """A picture that is stored lying and says so."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    how = LYING[orientation]
    options: dict[str, Any] = {"JPEG": {"quality": 95}, "MPO": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    (UPRIGHT if how is None else UPRIGHT.transpose(how)).save(content, form, exif=exif, **options)
    return content.getvalue()


def alike(found: Image.Image, wanted: Image.Image = UPRIGHT) -> bool:
    if found.size != wanted.size:
        return False
    return bool(np.abs(np.asarray(found, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 8)  # JPEG


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "MPO", "TIFF"])
@pytest.mark.parametrize("orientation", LYING)
def test_photos_are_upright_however_they_come(tmp_path: Path, form: str, orientation: int) -> None:
    file = tmp_path / "photo"
    file.write_bytes(photo(orientation, form))
    (frame,) = read_video([Image.open(file)]).frames
    ways = [read_image(file), read_image("a name", content=file.read_bytes()), as_rgb(Image.open(file)), frame]
    ways += [] if form == "TIFF" else [read_untrusted_image(file)]
    for way in ways:
        assert alike(way)
        assert alike(as_rgb(way))  # nothing turns it again
    assert read_image(file, pixels=False).size == UPRIGHT.size
    stored = read_image(file, stored=True)
    with Image.open(file) as opened:  # what LLaVA's loader does
        assert stored.tobytes() == opened.convert("RGB").tobytes()
    assert as_rgb(stored).tobytes() == stored.tobytes()
    assert form == "TIFF" or read_image(file, pixels=False, stored=True).size == stored.size


def test_damaged_exif_is_no_damaged_picture(tmp_path: Path) -> None:
    UPRIGHT.save(tmp_path / "odd.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert alike(read_image(tmp_path / "odd.png"))
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    UPRIGHT.save(tmp_path / "odd.webp", exif=exif, lossless=True)
    assert alike(read_image(tmp_path / "odd.webp"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_colours_are_kept_in_every_mode(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    made = Image.fromarray(np.full((5, 7), 102 * 257, np.uint16)) if mode == "I;16" else Image.new("RGB", (7, 5), (102,) * 3).convert(mode)
    made.save(file)
    expected = {0, 255} if mode == "1" else {101, 102}  # dithered; CMYK rounds
    for found in (read_image(file), as_rgb(made), *([] if mode == "CMYK" else [read_untrusted_image(file)])):
        assert found.mode == "RGB"
        assert {value for _, colour in found.getcolors() or [] for value in colour} <= expected  # type: ignore[union-attr]


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {}))
        for found in (read_image(tmp_path / name), read_untrusted_image(tmp_path / name)):
            assert found.getpixel((3, 3)) == (255, 0, 0)


def test_heic_is_named(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    with pytest.raises(FitPruneError, match=r"IMG_1\.HEIC is a HEIC photo.*save it as JPEG"):
        read_image(tmp_path / "IMG_1.HEIC")


def test_benchmarks_are_read_as_they_are_stored_and_own_questions_upright(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo(6, "JPEG"))
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "photo.jpg", "text": "What?"}))
    (own,), (benchmark,) = read_questions(tmp_path / "q.jsonl"), find("gqa").asked(tmp_path / "q.jsonl")
    for pixels in (True, False):
        assert open_image(own, tmp_path, pixels).size == UPRIGHT.size
        assert open_image(benchmark, tmp_path, pixels).size == UPRIGHT.size[::-1]


def test_a_photo_is_answered_alike_by_file_open_and_upright(tmp_path: Path) -> None:
    llava = fitprune.load("embedded", device="cpu")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = read_image(embedded().picture)
    upright.transpose(LYING[6]).save(tmp_path / "photo.png", exif=exif)  # type: ignore[arg-type]
    asked = [llava.ask("What number is written?", one) for one in (upright, tmp_path / "photo.png", Image.open(tmp_path / "photo.png"))]
    assert len(set(asked)) == 1
    assert asked[0] != llava.ask("What number is written?", read_image(tmp_path / "photo.png", stored=True))


@pytest.mark.parametrize("size", [(64, 48), (31, 700), (900, 7), (2100, 611)])
@pytest.mark.parametrize("name", ["embedded", "embedded-hr"])
def test_a_square_that_is_not_made_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]) -> None:
    llava, image = fitprune.load(name, device="cpu"), Image.effect_noise(size, 90).convert("RGB")
    expected = llava.prepare(image)["pixel_values"]
    monkeypatch.setattr(clip, "LARGE", 8)
    monkeypatch.setattr(clip, "pad_to_square", lambda *_: pytest.fail("made a square"))
    assert bool((llava.prepare(image)["pixel_values"] == expected).all())


@pytest.mark.parametrize("name", ["embedded", "embedded-next", "embedded-hr"])
def test_panoramas_and_slivers_are_answered(tmp_path: Path, name: str) -> None:
    llava = fitprune.load(name, device="cpu")
    for size in ((12000, 900), (4000, 9), (9, 4000)):
        Image.new("RGB", size, "red").save(tmp_path / "wide.png")
        assert llava.ask("What color is it?", tmp_path / "wide.png", max_new_tokens=8) == llava.ask(
            "What color is it?", Image.new("RGB", size, "red"), max_new_tokens=8
        )


def test_an_open_picture_that_is_torn_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((90, 90), 50).convert("RGB").save(whole, "JPEG")
    (tmp_path / "torn.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with (
        Image.open(tmp_path / "torn.jpg") as torn,
        pytest.raises(FitPruneError, match=r"cannot read image .*torn\.jpg \(OSError\): replace"),
    ):
        as_rgb(torn)
    with (
        Image.open(io.BytesIO(whole.getvalue()[: len(whole.getvalue()) // 2])) as torn,
        pytest.raises(FitPruneError, match=r"image \(OSErr"),
    ):
        as_rgb(torn)


def test_what_is_no_picture_is_said() -> None:
    llava = fitprune.load("embedded", device="cpu")
    for other in (np.zeros((4, 4, 3), "uint8"), None, [embedded().picture]):
        with pytest.raises(FitPruneError, match=f"Pillow image, not {type(other).__name__}"):
            llava.ask("What?", other)  # type: ignore[arg-type]
