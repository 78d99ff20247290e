"""Uploaded images: read whatever they are called, or refused in a sentence without a path in it."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.web.untrusted import MAX_BYTES, MAX_SIDE, read_untrusted_image


def example(name: str) -> Image.Image:
    return Image.open(embedded().images / f"5eed00000000000{name}.jpg").convert("RGB")


def png(width: int, height: int) -> bytes:
    """A black-and-white PNG whose header is true and whose pixels are a few."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image"),
        (b"Just text, whatever it is called.\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (saved(Image.new("RGB", (9, 9)), "TIFF"), "not an image"),
        (saved(example("0"), "PNG")[:9000], "damaged"),
        (saved(example("0"), "JPEG")[:900], "damaged"),
        (png(60000, 60000), "far too many pixels"),
        (png(MAX_SIDE + 1, 10), f"{MAX_SIDE + 1} × 10 pixels"),
        (png(12000, 12000), "12000 × 12000 pixels"),
        (png(MAX_SIDE + 1, MAX_SIDE + 1), "make it smaller"),
    ],
)
def test_what_is_no_image_is_refused_in_words(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "upload.png").write_bytes(content)
    with pytest.raises(FitPruneError, match=said) as caught:
        read_untrusted_image(tmp_path / "upload.png")
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_too_many_bytes_is_not_opened(tmp_path: Path) -> None:
    with open(tmp_path / "upload.png", "wb") as file:
        file.write(png(8, 8))
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(FitPruneError, match="larger than 20 MB"):
        read_untrusted_image(tmp_path / "upload.png")


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "WEBP"])
def test_images_are_read_whatever_they_are_called(tmp_path: Path, form: str) -> None:
    image = Image.new("RGB", (30, 20), "red")
    (tmp_path / "upload.txt").write_bytes(saved(image, form, **({"lossless": True} if form == "WEBP" else {})))
    assert read_untrusted_image(tmp_path / "upload.txt").tobytes() == image.tobytes()


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))
    (tmp_path / "upload.jpg").write_bytes(saved(image, "JPEG", exif=exif))
    upright = read_untrusted_image(tmp_path / "upload.jpg")
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) == (255, 255, 255)
    assert upright.getpixel((16, 56)) == (0, 0, 0)


WHOLE = [saved(Image.effect_noise((20, 20), 50).convert("RGB"), form) for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_a_damaged_file_is_an_image_or_a_sentence(tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: Any) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "upload"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read = read_untrusted_image(path).mode
    except FitPruneError as error:
        read = str(error)
    assert str(path) not in read
    assert read != ""


def test_content_is_read_as_files_are(tmp_path: Path) -> None:
    content = saved(example("0"), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    assert read_untrusted_image(content).tobytes() == read_untrusted_image(tmp_path / "a.png").tobytes() == example("0").tobytes()
    with pytest.raises(FitPruneError, match="larger than 20 MB"):
        read_untrusted_image(bytes(MAX_BYTES + 1))


def test_no_other_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
    with pytest.raises(FitPruneError, match="not an image"):
        read_untrusted_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
