"""The deletions as one HTML file: the image, a slider over the layers, the dense answer beside the pruned one.

The file stands alone. Images are inside it, scripts and styles as well, and its content security policy forbids the browser to
fetch anything, so it can be mailed and opened from a disk. The image is there once: what fades is a rectangle per patch, which knows
in which layer its token goes. Works in light and dark, with a keyboard, and on paper. page.html is a Jinja2 template that escapes
whatever it is given, since questions and answers may hold anything.

    fitprune draw --formats html
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources

import jinja2
import numpy as np
from PIL import Image

from .asked import Asked
from .frames import outline, stages
from .places import Places

TEMPLATE = "page.html"  # beside this file


def page(asked: Asked, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The whole file; facts are further (name, text) pairs for the list below the image."""
    where = asked.where
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        asked=asked,
        where=where,
        facts=facts,
        gone=gone(asked.kept),
        views=[(box, _png(where.canvas.crop(box))) for box in where.views if box[0] < box[2] and box[1] < box[3]],
        data={"alive": asked.alive, "outlines": [_path(where, kept) for kept in stages(asked.kept)]},
    )


def gone(kept: np.ndarray) -> list[int]:
    """For each token the stage from which it is gone: 1 after layer 0, …, L; L + 1 if it survives. kept: bool [L, n]."""
    return [int(stages) + 1 for stages in kept.sum(0)]


def _png(view: Image.Image) -> str:
    """An image as PNG in base64."""
    data = io.BytesIO()
    view.save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def _path(where: Places, kept: np.ndarray) -> str:
    """The outline around what is kept, as an SVG path."""
    return "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in outline(where, kept))
