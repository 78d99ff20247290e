"""What is in a picture: coloured shapes and written strings, in the cells of a grid, drawn at random from a number.

A scene is a pure function of (split, index). `numpy.random.RandomState` is used because its stream is frozen for good
(NEP 19), so that the same number gives the same scene on every machine. Splits share no stream: nothing that is
evaluated or calibrated on was trained on.

    python -c "from embedded.scene import *; print(draw('held-out', 0))"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .glyphs import CHARACTERS, string_mask

SIDE = 168  # pixels of a picture's edge
GRID = 4  # cells along an edge
CELL = SIDE // GRID
KINDS = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = {
    "red": (215, 30, 30),
    "green": (25, 150, 55),
    "blue": (40, 75, 230),
    "yellow": (245, 220, 35),
    "orange": (250, 135, 20),
    "purple": (135, 35, 165),
    "cyan": (40, 215, 225),
    "pink": (255, 125, 190),
}
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
Split = Literal[
    "train", "dense", "held-out", "calibration", "textvqa", "gqa", "mme", "pope", "scienceqa", "seed", "mmbench",
    "vqav2", "vizwiz", "mmvet",
]  # fmt: skip
Draw = Callable[["Split", int], "Scene"]
_STREAM = {name: at for at, name in enumerate(get_args(Split), start=1)}  # a new split goes to the end


@dataclass(frozen=True)
class Layout:
    """Where things can be, and on what: cells along an edge, a cell's edge and the margin around all in pixels.

    purpose: of the random numbers (`stream`). shapes, strings: how many at most, in the split "dense".
    """

    grid: int
    cell: int
    margin: int = 0
    purpose: int = 0
    shapes: int = 5
    strings: int = 7

    @property
    def side(self) -> int:
        return self.grid * self.cell + 2 * self.margin


PLAIN = Layout(GRID, CELL)


@dataclass(frozen=True)
class Shape:
    """A filled shape: names, its cell (row, column), its middle and radius in pixels, its colour in this picture."""

    kind: str
    color: str
    cell: tuple[int, int]
    x: int
    y: int
    radius: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """A written string of `CHARACTERS`: its cell, the upper left corner and height in pixels, ink and plate."""

    text: str
    cell: tuple[int, int]
    x: int
    y: int
    height: int
    plate: Literal["", "dark", "light"]

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()

    @property
    def width(self) -> int:
        return int(string_mask(self.text, self.height).shape[1])


@dataclass(frozen=True)
class Scene:
    """Everything that a question can be about. At most one number and one word, but in the split "dense"."""

    split: Split
    index: int
    shapes: tuple[Shape, ...]
    texts: tuple[Text, ...]
    layout: Layout = PLAIN

    @property
    def number(self) -> str | None:
        return next((text.text for text in self.texts if text.is_number), None)

    @property
    def word(self) -> str | None:
        return next((text.text for text in self.texts if not text.is_number), None)

    def at(self, cell: tuple[int, int]) -> Shape | None:
        """The shape in a cell; None if there is none."""
        return next((shape for shape in self.shapes if shape.cell == cell), None)

    def beside(self, shape: Shape, direction: str) -> Shape | None:
        """The shape in the cell next to that of `shape`, in one of `DIRECTIONS`."""
        rows, columns = DIRECTIONS[direction]
        return self.at((shape.cell[0] + rows, shape.cell[1] + columns))


def draw(split: Split, index: int, layout: Layout = PLAIN) -> Scene:
    """The scene of this number. "dense" scenes hold many strings: they teach the vision tower to read."""
    random = stream(split, index, layout.purpose)
    strings = [_number(random), _word(random)]
    if split == "dense":
        strings += [(_number, _word)[random.randint(2)](random) for _ in range(layout.strings - 2)]
    elif random.randint(5) == 0:
        del strings[random.randint(2)]
    cells = [(row, column) for row in range(layout.grid) for column in range(layout.grid)]
    free = [cells[at] for at in random.permutation(len(cells))]
    shapes: list[Shape] = []
    for _ in range(1 + random.randint(layout.shapes if split == "dense" else 6)):
        beside = [cell for cell in free if any(_touch(cell, shape.cell) for shape in shapes)]
        cell = beside[0] if beside and random.randint(2) else free[0]  # neighbours are what relations are about
        free.remove(cell)
        shapes.append(_shape(random, cell, layout))
    texts = tuple(_text(random, string, cell, layout) for string, cell in zip(strings, free, strict=False))
    return Scene(split, index, tuple(shapes), texts, layout)


def stream(split: Split, index: int, purpose: int = 0) -> np.random.RandomState:
    """Random numbers for one scene; another `purpose` (background, questions, …) gives independent ones."""
    return np.random.RandomState([_STREAM[split], index, purpose])


def _touch(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1


def _number(random: np.random.RandomState) -> str:
    return str(random.randint(10, 100) if random.randint(2) else random.randint(100, 1000))


def _word(random: np.random.RandomState) -> str:
    return "".join(CHARACTERS[10 + random.randint(26)] for _ in range(3))


def _shape(random: np.random.RandomState, cell: tuple[int, int], layout: Layout) -> Shape:
    kind, color = KINDS[random.randint(len(KINDS))], list(COLORS)[random.randint(len(COLORS))]
    radius = int(random.randint(9, 15))
    room = layout.cell // 2 - radius - 1
    y, x = (layout.margin + layout.cell * place + layout.cell // 2 + int(random.randint(-room, room + 1)) for place in cell)
    red, green, blue = (
        min(255, max(0, value + int(shift))) for value, shift in zip(COLORS[color], random.randint(-18, 19, 3), strict=True)
    )
    return Shape(kind, color, cell, x, y, radius, (red, green, blue))


def _text(random: np.random.RandomState, text: str, cell: tuple[int, int], layout: Layout) -> Text:
    height = int(random.randint(13, 18))
    while string_mask(text, height).shape[1] > layout.cell - 3:
        height -= 1
    rows, columns = string_mask(text, height).shape
    y = layout.margin + layout.cell * cell[0] + 1 + int(random.randint(layout.cell - rows - 1))
    x = layout.margin + layout.cell * cell[1] + 1 + int(random.randint(layout.cell - columns - 1))
    plates: tuple[Literal["", "dark", "light"], ...] = ("", "", "dark", "light")
    return Text(text, cell, x, y, height, plates[random.randint(len(plates))])
