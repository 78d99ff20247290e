"""The deletions as one HTML file: the picture, a slider over the layers, the dense answer beside the pruned one.

The file stands alone. Pictures are inside it, scripts and styles as well, and its content security policy forbids the
browser to fetch anything, so it can be mailed and opened from a disk. The picture is there once: what fades is a
rectangle per patch, which knows in which layer its token goes. Works in light and dark, with a keyboard, and on paper.

    fitprune draw --formats html
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np

from .asked import Asked
from .frames import outline
from .places import Box, Places

TEMPLATE = "page.html"  # beside this file; {{name}} is replaced


def page(asked: Asked, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The whole file.

    Args:
        facts: Further (name, text) pairs for the list below the picture.
    """
    width, height = asked.where.canvas.size
    fields = {
        "question": escape(asked.question),
        "short": escape(asked.question.strip().splitlines()[0] if asked.question.strip() else ""),
        "dense": escape(asked.dense) or "<i>(empty)</i>",
        "pruned": escape(asked.pruned) or "<i>(empty)</i>",
        "verdict": "the same answer" if asked.dense == asked.pruned else "another answer",
        "width": str(width),
        "height": str(height),
        "views": "".join(_view(asked.where, box) for box in asked.where.views),
        "patches": "".join(_rectangles(asked.where.boxes, asked.kept)),
        "marks": "".join(_rectangles(asked.where.marks, asked.kept)),
        "legend": "" if not any(asked.where.marks) else '<span><b class="strip"></b>newline token</span>',
        "layers": str(len(asked.kept)),
        "bars": _bars(asked.alive),
        "tokens": str(asked.where.tokens),
        "facts": "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
        "data": json.dumps({"alive": asked.alive, "outlines": [_path(asked.where, kept) for kept in asked.stages]}).replace("<", "\\u003c"),
    }
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    head, *rest = text.split("{{")
    parts = (piece.split("}}", 1) for piece in rest)  # one pass, so that a question with {{dense}} in it stays as it is
    return head + "".join(fields[name] + after for name, after in parts)


def gone(kept: np.ndarray) -> list[int]:
    """For each token the stage from which it is gone: 1 after layer 0, …, L; L + 1 if it survives. kept: bool [L, n]."""
    return [int(stages) + 1 for stages in kept.sum(0)]


def _view(where: Places, box: Box) -> str:
    """A view of the picture as SVG, its PNG inside."""
    left, top, right, bottom = box
    if left == right or top == bottom:
        return ""
    data = io.BytesIO()
    where.canvas.crop(box).save(data, format="PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<image x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" href="data:image/png;base64,{source}"/>'


def _rectangles(boxes: Sequence[Box | None], kept: np.ndarray) -> list[str]:
    return [
        f'<rect x="{box[0]}" y="{box[1]}" width="{box[2] - box[0]}" height="{box[3] - box[1]}" data-gone="{stage}"/>'
        for box, stage in zip(boxes, gone(kept), strict=True)
        if box is not None
    ]


def _path(where: Places, kept: np.ndarray) -> str:
    return "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in outline(where, kept))


def _bars(alive: Sequence[int]) -> str:
    """Tokens alive in each stage, as bars in a drawing of len(alive) × 100."""
    highs = (100 * count / alive[0] for count in alive)
    return "".join(f'<rect x="{at + 0.1:.1f}" y="{100 - high:.2f}" width="0.8" height="{high:.2f}"/>' for at, high in enumerate(highs))
