"""The deletions as an animated GIF: a frame per layer, with what was asked and answered above and a curve below.

fitprune draw --formats gif
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..errors import FitPruneError
from ..files import write_atomically
from . import style

FIRST, LAST = 1600, 3200  # milliseconds that the first and the last frame are shown
BETWEEN, FASTEST, SLOWEST = 7000, 240, 800  # milliseconds of all frames between them together, and the bounds of each


def save(shown: Sequence[Image.Image], alive: Sequence[int], path: str | os.PathLike[str], title: str | None = None) -> None:
    """Writes the GIF, which loops, with lines of a title above the image.

    Args:
        shown: The whole image, then one per layer, as `frames` makes them.
        alive: Visual tokens alive in each of these.
    Raises:
        FitPruneError: no matplotlib, no image, or the file cannot be written.
    """
    if not shown or len(shown) != len(alive):
        raise FitPruneError(f"{len(shown)} images with {len(alive)} counts: give one count per image")
    rendered = render(shown, alive, title)
    palette = _palette(rendered)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in rendered]
    data = io.BytesIO()
    drawn[0].save(data, format="GIF", save_all=True, append_images=drawn[1:], duration=durations(len(drawn)), loop=0, optimize=False)
    write_atomically(path, data.getvalue())


def durations(count: int) -> list[int]:
    """Milliseconds that each of so many frames is shown; whole hundredths of a second, as GIF counts."""
    each = 10 * round(min(SLOWEST, max(FASTEST, BETWEEN / max(1, count - 2))) / 10)
    return [FIRST, *[each] * (count - 2), LAST] if count > 1 else [LAST]


def render(shown: Sequence[Image.Image], alive: Sequence[int], title: str | None = None) -> list[Image.Image]:
    """Each image with its caption, the title and the curve of tokens alive, all of one size."""
    aspect = shown[0].width / shown[0].height
    wide = 4.6 * max(1.0, aspect) ** 0.5
    lines = style.wrapped(title, wide, 11)
    high = wide / aspect + 0.35
    figure = style.figure(wide + 0.2, high + 1.3 + 0.22 * len(lines) + 0.1 * bool(lines))
    figure.set_dpi(100)
    panel: Any
    panel, curve = figure.subplots(2, 1, height_ratios=(high, 1.2))
    image = style.image(panel, shown[0])
    layers = range(-1, len(alive) - 1)
    curve.step(layers, alive, where="post", color=style.COLOURS[0], linewidth=1.6)
    (dot,) = curve.plot([-1], [alive[0]], "o", color=style.COLOURS[1], markersize=7)
    curve.set(xlabel="decoder layer, counted from 0", ylim=(0, 1.08 * alive[0]))
    curve.set_ylabel("visual tokens\nalive", fontsize=9)
    curve.xaxis.get_major_locator().set_params(integer=True)
    style.style_axes(curve)
    style.title(figure, lines, 11)
    made = []
    for layer, frame, living in zip(layers, shown, alive, strict=True):
        image.set_data(frame)
        stage = "the whole picture" if layer < 0 else f"after layer {layer}"
        panel.set_title(f"{stage}: {living} of {alive[0]} visual tokens", fontsize=11)
        dot.set_data([layer], [living])
        with style.quiet():
            figure.canvas.draw()
        figure.set_layout_engine("none")  # laid out once: nothing moves from frame to frame
        canvas: Any = figure.canvas
        made.append(Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB"))
    return made


def _palette(rendered: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, from the first and the last of them, so that what stays does not flicker."""
    first, last = rendered[0], rendered[-1]
    both = Image.new("RGB", (first.width, 2 * first.height))
    both.paste(first)
    both.paste(last, (0, first.height))
    return both.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4)
