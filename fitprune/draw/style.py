"""How every figure looks: matplotlib without pyplot, colours that colour-blind readers can tell apart, the same bytes every time.

Figures have a white background and dark text, so that they read on a light page and on a dark one. They are made without pyplot: no
window, no display, no global state. Colours are Okabe and Ito's; curves also differ in their marks.

    python -c "from fitprune.draw import style; style.save(style.figure(2, 1), '/tmp/empty.png')"
"""

from __future__ import annotations

import io
import os
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import FitPruneError
from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less yellow
MARKS = "osD^vPX"
BORDER = "#888888"
DPI = 150
EASTERN = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
           "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "Arial Unicode MS")  # fmt: skip


def figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, drawn by Agg whatever the machine's default is; FitPruneError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise FitPruneError("drawing needs matplotlib: pip install 'fitprune[draw]'") from None
    made = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.07))
    FigureCanvasAgg(made)
    return made


def title(drawn: Any, lines: Sequence[str], size: float) -> None:
    """Lines above a figure or a part of one, in fonts that have Chinese, Japanese and Korean as well, if any is installed."""
    from matplotlib import font_manager

    if not lines:
        return
    installed = set(font_manager.get_font_names())
    drawn.suptitle("\n".join(lines), fontsize=size, fontfamily=["DejaVu Sans", *(name for name in EASTERN if name in installed)])


def wrapped(text: str | None, width: float, size: float) -> list[str]:
    """Lines of a title in letters of that many points, broken to fit into that many inches; none for no text."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text or "")
    letters = max(10, int(72 * width / size / (1.05 if wide else 0.58)))
    return [part for line in (text or "").splitlines() for part in textwrap.wrap(line, letters) or [""]]


@contextmanager
def quiet() -> Iterator[None]:
    """Without a warning for every letter that no font has: it shows as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def save(drawn: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, without matplotlib's version in it; FitPruneError if the file cannot be written."""
    data = io.BytesIO()
    with quiet():
        drawn.savefig(data, format="png", metadata={"Software": None})
    write_atomically(path, data.getvalue())


def curve(index: int) -> dict[str, Any]:
    """Colour and mark of the index-th curve."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKS[index % len(MARKS)], "linewidth": 1.6, "markersize": 4}


def style_axes(panel: Any, label: str | None = None) -> None:
    """A panel of curves: a light grid, no frame above and on the right, and the label of its x axis."""
    panel.grid(alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if label is not None:
        panel.set_xlabel(label)


def legend(drawn: Figure, handles: Iterable[Any], labels: Iterable[str], columns: int) -> None:
    """A legend above all panels."""
    drawn.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8.5)


def image(panel: Any, shown: Any, **more: Any) -> Any:
    """Shows an image in a panel without ticks, within a thin border; further arguments as matplotlib's imshow."""
    drawn = panel.imshow(shown, **more)
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set(color=BORDER, linewidth=0.8)
    return drawn


def plain(text: str, at_most: int = 120) -> str:
    """Text of a model or a user for a figure: one line, cut, and with nothing that matplotlib would take for a formula."""
    line = " ".join(text.split())
    return (line if len(line) <= at_most else f"{line[: at_most - 1]}…").replace("$", r"\$")
