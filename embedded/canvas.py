"""A scene on a larger canvas: for a model that cuts pictures into tiles and so sees small things in large pictures.

The picture of the scene lies somewhere on noise, at its own size (`place`). How often which canvas is drawn in training
is in `CANVASES`; all scenes of a batch share one, so that they take equally many visual tokens.

    python -m embedded.evaluate --model-path embedded-next --canvas 336 336
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from fitprune.errors import FitPruneError

from . import clutter
from .render import background, render
from .scene import SIDE, Scene, stream

Size = tuple[int, int]  # (width, height) in pixels
CANVASES: dict[Size, int] = {(SIDE, SIDE): 7, (2 * SIDE, SIDE): 1, (SIDE, 2 * SIDE): 1, (2 * SIDE, 2 * SIDE): 1}


def canvas_of(scene: Scene, canvases: Mapping[Size, int] = CANVASES) -> Size:
    """The canvas that a batch which begins with this scene is drawn on."""
    random = stream(scene.split, scene.index, purpose=5)
    chances = np.array(list(canvases.values())) / sum(canvases.values())
    return list(canvases)[random.choice(len(chances), p=chances)]


def corner_of(scene: Scene, size: Size) -> Size:
    """Where on a canvas of that size the upper left corner of the scene's picture lies."""
    return _corner(stream(scene.split, scene.index, purpose=6), size)[1]


def _corner(random: np.random.RandomState, size: Size) -> tuple[np.ndarray, Size]:
    """The noise around the picture and the picture's corner on it, drawn in this order."""
    noise = background(random)
    return noise, (int(random.randint(size[0] - SIDE + 1)), int(random.randint(size[1] - SIDE + 1)))


def place(scene: Scene, size: Size | None = None) -> Image.Image:
    """The scene's picture, plain or cluttered; a plain one also on a canvas of that size.

    Raises:
        FitPruneError: a size for a cluttered one, whose canvas is part of it.
    """
    if scene.layout == clutter.CLUTTER:
        if size is not None:
            raise FitPruneError("cluttered pictures come in one size: leave out --canvas")
        return clutter.picture(scene)
    picture = render(scene)
    if size in (None, picture.size):
        return picture
    assert size is not None
    noise, corner = _corner(stream(scene.split, scene.index, purpose=6), size)
    canvas = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)
    canvas.paste(picture, corner)
    return canvas
