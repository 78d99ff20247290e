"""What each patch of a picture shows: the dense supervision under which the vision tower learns to see.

Questions alone teach a small tower too slowly. So every patch is asked what is on it: kind and colour of a shape, up to
three characters of a string, and, on shapes, the kinds of the shapes in the four cells around. The same questions go to
the tower's output and to the projector's: without the second, the projector forgets the characters (docs/LOG.md). The
heads that answer are thrown away after training.

    python -c "from embedded.targets import *; from embedded.scene import draw; print(targets(draw('train', 0), 12)[0])"
"""

from __future__ import annotations

import numpy as np

from .glyphs import CHARACTERS
from .render import shape_mask
from .scene import COLORS, DIRECTIONS, KINDS, SIDE, Scene

IGNORE = -100  # patches that show too little of something to be asked about it
LENGTH = 3  # characters of the longest string
HEADS = {
    "kind": len(KINDS) + 1,
    "color": len(COLORS) + 1,
    **{f"character {at + 1}": len(CHARACTERS) + 1 for at in range(LENGTH)},
    **{direction: len(KINDS) + 1 for direction in DIRECTIONS},
}  # name: number of classes; class 0 is "nothing"


def targets(scene: Scene, grid: int, canvas: tuple[int, int] = (SIDE, SIDE), corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Classes per patch, int64 [len(HEADS), patches], in the order of `HEADS`; `IGNORE` where a patch is not asked.

    grid: patches along the edge of the scene's picture. canvas: (width, height), multiples of a patch's edge, of the picture on
    which the scene's lies with its upper left corner at `corner`, (x, y).
    """
    edge = SIDE // grid
    found = np.zeros((len(HEADS), canvas[1] // edge, canvas[0] // edge), dtype=np.int64)
    names = list(HEADS)
    around = slice(names.index("left of"), None)
    found[around] = IGNORE  # only shapes are asked what is around them
    for shape in scene.shapes:
        mask = shape_mask(shape.kind, shape.radius) > 127
        at = (corner[0] + shape.x - shape.radius, corner[1] + shape.y - shape.radius)
        much, little = _patches(mask, at, canvas, edge, 0.12)
        beside = [scene.beside(shape, direction) for direction in DIRECTIONS]
        found[0][much] = 1 + KINDS.index(shape.kind)
        found[1][much] = 1 + list(COLORS).index(shape.color)
        found[around, much] = np.array([1 + KINDS.index(other.kind) if other else 0 for other in beside])[:, None]
        found[:2, little] = IGNORE
    first = names.index("character 1")
    for text in scene.texts:
        at = (corner[0] + text.x, corner[1] + text.y)
        much, little = _patches(np.ones((text.height, text.width), bool), at, canvas, edge, 0.15)
        for place in range(LENGTH):
            shown = 1 + CHARACTERS.index(text.text[place]) if place < len(text.text) else 0
            found[first + place][much] = shown
            found[first + place][little] = IGNORE
    return found.reshape(len(HEADS), -1)


def _patches(mask: np.ndarray, at: tuple[int, int], canvas: tuple[int, int], edge: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a mask at (x, y) covers at least `share` of a patch, and where it covers less than that but something."""
    (x, y), (width, height) = at, canvas
    area = np.zeros((height, width), dtype=np.int64)
    area[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    covered = area.reshape(height // edge, edge, width // edge, edge).sum(axis=(1, 3))
    much = covered >= share * edge**2
    return much, (covered > 0) & ~much
