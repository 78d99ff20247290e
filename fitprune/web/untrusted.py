"""An uploaded file becomes an image, or one sentence that says why it is none; for the demo and for `fitprune serve`.

A file is judged by its content, never by its name, and only by Pillow's own decoders of a few formats (Pillow hands an EPS to
another program). Its bytes are bounded before it is opened, and its size in pixels before anything is decoded, as a few
kilobytes can unpack to gigabytes. That bound is on the longer side; the largest square
takes some 200 MB to read. Files of the machine's own user are read by `images.reading.read_image` instead.

    python -c "from fitprune.web.untrusted import read_untrusted_image as r; from fitprune.embedded import embedded as e; \
        print(r(next(e().images.iterdir()).read_bytes()).size)"
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import FitPruneError, explained
from ..images.reading import as_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 * 2**20
MAX_SIDE = 4096  # pixels


def read_untrusted_image(sent: Path | bytes) -> Image.Image:
    """An RGB image, turned upright, as `images.reading.as_rgb` makes it.

    Args:
        sent: The file, or its content.
    Raises:
        FitPruneError: too large in bytes or pixels, not an image of a known format, damaged. The message has no path in it.
    """
    check_bytes(len(sent) if isinstance(sent, bytes) else sent.stat().st_size)
    try:
        with explained("This image is damaged and cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large images: refused below
            with Image.open(io.BytesIO(sent) if isinstance(sent, bytes) else sent, formats=FORMATS) as image:
                if max(image.size) > MAX_SIDE:
                    raise _too_large(f"has {image.width} × {image.height} pixels")
                image.load()
                return as_rgb(image)
    except FitPruneError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            said = f"This file is not an image, whatever its name says: send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
            raise FitPruneError(said) from None
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large("has far too many pixels") from None
        raise


def check_bytes(size: int) -> None:
    """Refuses files of more than `MAX_BYTES` with a FitPruneError."""
    if size > MAX_BYTES:
        raise FitPruneError(f"This file is larger than {MAX_BYTES // 2**20} MB: send a smaller one.")


def _too_large(what: str) -> FitPruneError:
    return FitPruneError(f"This image {what}, and at most {MAX_SIDE} a side are read here: make it smaller first.")
