"""The 36 characters that are written in pictures, as grey masks in glyphs.png, and how to draw a string of them.

Pillow's built-in scalable font (Aileron, CC0) was rasterised once, at a large size, by `main`. Later machines only scale
that file, in Pillow's fixed-point arithmetic: FreeType's version and the layout engine, which change pixels, are out of
the game. Kerning is left out.

    python -m embedded.glyphs /tmp/glyphs.png    # draws the masks anew
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
ATLAS = Path(__file__).with_name("glyphs.png")
HEIGHT = 64  # pixels of a row of the atlas; capitals fill it but for the margins
GAP = 3  # pixels between two characters at that height


@cache
def _masks() -> dict[str, Image.Image]:
    """One mask per character, [HEIGHT, its width], 0 to 255; letters are capitals."""
    with Image.open(ATLAS) as image:
        atlas = image.convert("L")
    width = atlas.width
    masks = {}
    for row, character in enumerate(CHARACTERS):
        mask = atlas.crop((0, row * HEIGHT, width, (row + 1) * HEIGHT))
        box = mask.getbbox()
        if box is None:
            raise ValueError(f"{ATLAS} holds nothing for {character!r}")
        masks[character] = mask.crop((box[0], 0, box[2], HEIGHT))
    return masks


@cache
def string_mask(text: str, height: int) -> np.ndarray:
    """How strongly each pixel is inked, uint8 [height, width]: `text` (of `CHARACTERS`) at `height` pixels."""
    masks = [_masks()[character] for character in text]
    line = Image.new("L", (sum(mask.width for mask in masks) + GAP * (len(masks) - 1), HEIGHT))
    x = 0
    for mask in masks:
        line.paste(mask, (x, 0))
        x += mask.width + GAP
    width = (2 * line.width * height + HEIGHT) // (2 * HEIGHT)
    return np.asarray(line.resize((width, height), Image.Resampling.BOX))


def main(path: str) -> None:
    """Rasterises the atlas: one row per character, drawn at the left edge."""
    size, top = 1, 0
    while True:  # the largest size whose capitals fit the row with a pixel to spare
        font = ImageFont.load_default(size + 1)
        boxes = [font.getbbox(character.upper()) for character in CHARACTERS]
        if max(box[3] for box in boxes) - min(box[1] for box in boxes) > HEIGHT - 2:
            break
        size, top = size + 1, int(min(box[1] for box in boxes))
    font = ImageFont.load_default(size)
    atlas = Image.new("L", (HEIGHT + GAP, HEIGHT * len(CHARACTERS)))
    pen = ImageDraw.Draw(atlas)
    for row, character in enumerate(CHARACTERS):
        pen.text((GAP, row * HEIGHT + 1 - top), character.upper(), fill=255, font=font)
    atlas.save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
