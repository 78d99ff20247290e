"""From a file that somebody sent to a picture, or one sentence that says why it is none.

A file is judged by its content, never by its name. Size in pixels is read from the header and bounded before anything is
decoded: a file of a few kilobytes can unpack to gigabytes. The bound is on the longer side, as LLaVA-1.5 pads to a square of it.

    python -c "from fitprune.demo.upload import read_upload as r; from fitprune.embedded import embedded as e; \
        print(r(next(e().images.iterdir())).size)"
"""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import FitPruneError, explained

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 * 2**20
MAX_SIDE = 8192


def read_upload(path: str | Path) -> Image.Image:
    """An RGB picture, turned upright if its camera says so; of an animation the first picture.

    Raises:
        FitPruneError: too large in bytes or pixels, not a picture of a known format, damaged. The message has no path in it.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise FitPruneError(f"This file is larger than {MAX_BYTES // 2**20} MB: send a smaller one.")
    try:
        with explained("This picture is damaged and cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large pictures: refused below
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image)
                return ImageOps.exif_transpose(image).convert("RGB")
    except FitPruneError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise FitPruneError(
                f"This file is not a picture, whatever its name says: send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
            ) from None
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise _too_large("has far too many pixels") from None
        raise


def _check_size(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise _too_large(f"has {image.width} × {image.height} pixels")


def _too_large(what: str) -> FitPruneError:
    return FitPruneError(f"This picture {what}, and at most {MAX_SIDE} a side are read here: make it smaller first.")
