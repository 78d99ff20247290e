"""The embedded models by family: network, pictures, steps, and where the package has them.

python -c "from embedded.models import *; print(list(MODELS))"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fitprune.embedded import MODELS as SHIPPED

from . import chat, clutter, deeper, native, network, scene, tiles, two_towers
from .batches import Look, plain_pictures
from .canvas import Size
from .network import Embedded
from .scene import SIDE, Draw
from .tokens import VICUNA, Prompts


@dataclass(frozen=True)
class Model:
    """One embedded model.

    name: what `fitprune.load` is given; a folder of the repository for what does not ship. settings: size → transformers config.
    look: how scenes become its pictures. see_steps, answer_steps: how long it is trained unless told otherwise. prompts: how
    it is asked. draw: its scenes. canvas: (width, height) of the larger pictures on which its card has figures as well.
    beside: models whose attention facts stand in its card beside its own.
    """

    name: str
    network: type[Embedded]
    settings: Callable[[str], Any]
    look: Look
    see_steps: int
    answer_steps: int
    prompts: Prompts = VICUNA
    draw: Draw = scene.draw
    canvas: Size | None = None
    beside: tuple[str, ...] = ()


MODELS = {
    "llava": Model("embedded", Embedded, network.config, plain_pictures, 2400, 3200),
    "next": Model("embedded-next", tiles.Tiled, tiles.settings, tiles.look, 0, 400, canvas=(2 * SIDE, 2 * SIDE)),
    "hr": Model("embedded-hr", two_towers.TwoTowers, two_towers.settings, two_towers.look, 0, 500),
    "qwen": Model("embedded-qwen", native.Native, native.settings, native.look, 200, 1600, chat.CHAT, canvas=(224, 224)),
    "judge": Model("embedded/judge", deeper.Judge, deeper.settings, deeper.look, 600, 900, draw=clutter.scene, beside=tuple(SHIPPED)),
}
