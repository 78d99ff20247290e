"""Image files of the user's own: as RGB and upright, or one line that names the file and says what is wrong with it.

One rule, in one function (`as_rgb`), for all pictures that people bring: a file, a frame of a video, an open Pillow image, an upload.
A photo of a phone lies on its side and says so in its EXIF data: it is turned upright, as `transformers.image_utils.load_image` does. A
benchmark's pictures are read as they are stored (`stored=True`), as LLaVA's loader does, so that its published figures can be met.

Of an animation the first frame is taken; transparency is dropped, not painted over; CMYK is as Pillow converts it. People's 16-bit grey is
scaled to 8 bits (Pillow, and so LLaVA's loader, makes everything above 255 white).

The one limit is Pillow's, against files that unpack to gigabytes: twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million pixels. Untrusted
images are read by stricter rules (web/untrusted.py).

    python -c "from fitprune.embedded import embedded; from fitprune.images.reading import read_image; \
        print(read_image(embedded().picture).size)"
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import FitPruneError

ORIENTATION = 0x0112  # EXIF's tag; from 5 on width and height change places
HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")  # brands of what phones call HEIC


def read_image(path: str | Path, pixels: bool = True, content: bytes | None = None, stored: bool = False) -> Image.Image:
    """An RGB image; without pixels only its size is read, and can be asked for.

    Args:
        content: The image's file; path is no more than its name then.
        stored: As it is stored, not turned upright, as `as_rgb`.
    Raises:
        FitPruneError: missing, not an image, damaged or absurdly large; names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below the limit it is no bomb
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                if pixels:
                    image.load()
                    return as_rgb(image, stored)
                width, height = image.size
                lies = not stored and image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns TIFFs by itself
                return Image.new("1", (height, width) if lies else (width, height))
    except FileNotFoundError:
        raise FitPruneError(f"no image {path}: check its name (and --image-folder)") from None
    except Image.DecompressionBombError:
        raise FitPruneError(f"image {path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels: make it smaller") from None
    except (OSError, ValueError, SyntaxError) as error:
        if _is_heif(path, content):
            raise FitPruneError(f"image {path} is a HEIC photo, which Pillow does not read: save it as JPEG") from None
        raise FitPruneError(f"cannot read image {path} ({type(error).__name__}): replace the file or remove its question") from None


def as_rgb(image: Image.Image, stored: bool = False) -> Image.Image:
    """An open image as RGB, turned upright by its EXIF orientation unless it is to stay as it is stored.

    What comes out says nothing of an orientation any more, so that nobody turns it again.

    Raises:
        FitPruneError: for one that is damaged, which Pillow finds out where its pixels are first wanted.
    """
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        name = getattr(image, "filename", "")
        raise FitPruneError(f"cannot read image{name and f' {name}'} ({type(error).__name__}): replace it, or leave it out") from None
    if not stored and _orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
    if not stored and image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        image = image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's advice about palettes with transparency
        made = image.convert("RGB") if image.mode != "RGB" else image.copy() if image.info else image
    made.info = {}
    return made


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where nothing legible is said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the same damage
            found = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):  # damaged EXIF data is no damaged picture
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _is_heif(path: str | Path, content: bytes | None) -> bool:
    try:
        if content is None:
            with open(path, "rb") as file:
                content = file.read(12)
    except OSError:
        return False
    return content[4:8] == b"ftyp" and content[8:12] in HEIF
