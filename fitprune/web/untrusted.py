"""From a file that somebody sent to a picture, or one sentence that says why it is none; for the demo and for `fitprune serve`.

A file is judged by its content, never by its name, and only by Pillow's own decoders of a few formats (Pillow hands an EPS to
another program). Its bytes are bounded before it is opened, its size in pixels is read from the header and bounded before
anything is decoded: a file of a few kilobytes can unpack to gigabytes. The bound is on the longer side, as LLaVA-1.5 pads to a
square of it; the largest square takes some 200 MB to read. Left out: files of this machine's own user, which
`families.vlm.read_image` reads.

    python -c "from fitprune.web.untrusted import read_strange as r; from fitprune.embedded import embedded as e; \
        print(r(next(e().images.iterdir()).read_bytes()).size)"
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import FitPruneError, explained

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 * 2**20
MAX_SIDE = 4096


def read_untrusted_image(sent: Path | bytes) -> Image.Image:
    """An RGB picture, turned upright if its camera says so; of an animation the first picture.

    Args:
        sent: The file, or its content.
    Raises:
        FitPruneError: too large in bytes or pixels, not a picture of a known format, damaged. The message has no path in it.
    """
    check_bytes(len(sent) if isinstance(sent, bytes) else sent.stat().st_size)
    try:
        with explained("This picture is damaged and cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large pictures: refused below
            with Image.open(io.BytesIO(sent) if isinstance(sent, bytes) else sent, formats=FORMATS) as image:
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


def check_bytes(size: int) -> None:
    """Refuses what is larger than `MAX_BYTES`.

    Raises:
        FitPruneError: in a sentence for whoever sent it.
    """
    if size > MAX_BYTES:
        raise FitPruneError(f"This file is larger than {MAX_BYTES // 2**20} MB: send a smaller one.")


def _check_size(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise _too_large(f"has {image.width} × {image.height} pixels")


def _too_large(what: str) -> FitPruneError:
    return FitPruneError(f"This picture {what}, and at most {MAX_SIDE} a side are read here: make it smaller first.")
