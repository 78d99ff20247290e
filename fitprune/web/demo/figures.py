"""A comparison as HTML: the table of figures, and the image before and after every layer, one shown at a time.

Numbers and images only: nothing that a user typed or a model answered gets in here; the one sentence, which may name a folder, is
escaped. Frames are data URLs, so that the slider needs no server and the server keeps nothing.

    pytest tests/web/test_demo_engine.py
"""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from .engine import Comparison

FRAME_SIDE = 720  # pixels at most along the longer side of a frame that is sent


def table(made: Comparison) -> str:
    """Dense and pruned beside each other, a figure per row."""
    dense, pruned = made.dense, made.pruned
    rows = [
        ("Time to first token", seconds(dense.ttft), seconds(pruned.ttft), times(dense.ttft, pruned.ttft)),
        ("Visual tokens at the end", dense.alive[-1], pruned.alive[-1], _less(dense.alive[-1], pruned.alive[-1])),
        ("Visual compute saved", "0%", f"{made.visual_reduction:.1%}", ""),
        ("KV memory", size(dense.kv_bytes), size(pruned.kv_bytes), _less(dense.kv_bytes, pruned.kv_bytes)),
        ("Tokens of the answer", dense.tokens, pruned.tokens, ""),
    ]
    head = "<thead><tr><td></td><th>dense</th><th>pruned</th><td></td></tr></thead>"
    body = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in rows)
    return f"<table class='fitprune-table'>{head}<tbody>{body}</tbody></table>"


def frames(made: Comparison, shown: int) -> str:
    """All frames, [L + 1]: figures whose `data-layer` is the number of layers passed; all but `shown` (or the last) are hidden."""
    if not made.frames:
        return f"<p class='fitprune-note'>{escape(made.unplaced)}</p>"
    alive, last = made.pruned.alive, len(made.frames) - 1
    figures = []
    for passed, frame in enumerate(made.frames):
        left = f"{alive[passed]} of {alive[0]} visual tokens"
        caption = f"Before the first layer: {left}" if passed == 0 else f"After {passed} of {last} layers: {left}"
        hidden = "" if passed == min(shown, last) else " hidden"
        figures.append(
            f"<figure class='fitprune-frame' data-layer='{passed}'{hidden}>"
            f"<img alt='{caption}' src='{_data_url(frame)}'><figcaption>{caption}</figcaption></figure>"
        )
    return "".join(figures)


def seconds(value: float) -> str:
    """`41 ms`, `2.3 s`."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def times(before: float, after: float) -> str:
    """How many times faster or slower, in words."""
    if after <= 0 or before <= 0:
        return ""
    return f"{before / after:.2f}× faster" if before >= after else f"{after / before:.2f}× slower"


def size(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= bytes_each:
            return f"{count / bytes_each:.2f} {unit}"
    return f"{count / 2**10:.0f} KiB"


def _less(before: int, after: int) -> str:
    return f"{1 - after / before:.0%} less" if before else ""


def _data_url(frame: Image.Image) -> str:
    small = frame.copy()
    small.thumbnail((FRAME_SIDE, FRAME_SIDE))
    content = io.BytesIO()
    small.save(content, "WEBP", quality=80, method=2)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
