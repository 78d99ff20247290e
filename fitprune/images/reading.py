"""Image files of the user's own: as RGB, or one line that names the file and says what is wrong with it.

Untrusted images are read by stricter rules (web/untrusted.py).

    python -c "from fitprune.embedded import embedded; from fitprune.images.reading import read_image; \
        print(read_image(embedded().picture).size)"
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image

from ..errors import FitPruneError


def read_image(path: str | Path, pixels: bool = True, content: bytes | None = None) -> Image.Image:
    """An RGB image; without pixels only its size is read, and can be asked for.

    With content, that is the image's file and path no more than its name.

    Raises:
        FitPruneError: missing, not an image, damaged or absurdly large; names the file.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if Image.MAX_IMAGE_PIXELS and max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS:  # models that pad make a square of it
                raise FitPruneError(
                    f"image {path} is {image.width} × {image.height}: make it smaller, at most "
                    f"{math.isqrt(Image.MAX_IMAGE_PIXELS)} pixels a side"
                )
            return image.convert("RGB") if pixels else image
    except FitPruneError:
        raise
    except FileNotFoundError:
        raise FitPruneError(f"no image {path}: check its name (and --image-folder)") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FitPruneError(f"cannot read image {path} ({type(error).__name__}): replace the file or remove its question") from None
