"""Where the visual tokens of any model lie in the picture: guessed from the shapes of its inputs, then checked by asking the model.

Two kinds of inputs tell places. With `image_grid_thw` (Qwen-VL, GLM-V) the resized picture is a grid of patches, of which k × k make
a token. Pixels in tiles [T, 3, H, W] (InternVL, SmolVLM, Gemma 3, SigLIP towers; one tile is a whole picture) have as many tokens each,
in rows. Both are guesses about the order of tokens, so the model is asked: its vision tower runs with attention switched off, when a token
depends on nothing but the patches that it stands for, and cells of the picture are changed by the bits of their numbers, one bit a pass.
Every token then spells the number of the cell that it saw. A model whose tokens spell anything else, or whose inputs have another form
(LLaVA-OneVision's merged tiles, Gemma 4's patches), is refused: nothing is drawn in a wrong place.

    fitprune draw --model-path Qwen/Qwen2.5-VL-3B-Instruct --image photo.jpg --question "What is this?" --recipe my.recipe.json
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..decoder.attach import find_decoder
from ..decoder.upstream import FEATURES
from ..errors import FitPruneError
from .clip import as_read
from .protocols import View

if TYPE_CHECKING:
    from .vlm import VLM

GRID, PIXELS = "image_grid_thw", "pixel_values"
GREY, PAINT = 96, 224  # levels of the cells of a test picture
CLEAR = 0.01  # of the largest change: what counts as one
WHOLE = 0.85  # of the picture's width and height: a tile that shows as much shows it all


def views(vlm: VLM, image: Image.Image) -> list[View]:
    """As `VLM.views`.

    Raises:
        FitPruneError: if the model's tokens are in no grid that its inputs tell, or in another order.
    """
    inputs, tokens = vlm.prepare(image), vlm.tokens_for(image)
    found = _of_grid(vlm, image, inputs, tokens) if GRID in inputs else _of_tiles(vlm, image, inputs, tokens)
    if not found:
        raise FitPruneError(f"{vlm.name}: the inputs of this model do not tell where in the picture its {tokens} visual tokens lie")
    shape = tuple((view.rows, view.columns) for view in found)
    if shape not in vlm.placed:
        if spelled(vlm, inputs, found) != list(range(1, tokens + 1)):
            raise FitPruneError(f"{vlm.name}: its visual tokens are not in the order of the picture's rows, so they cannot be drawn in it")
        vlm.placed.add(shape)
    return found


def _of_grid(vlm: VLM, image: Image.Image, inputs: Mapping[str, Tensor], tokens: int) -> list[View]:
    frames, rows, columns = inputs[GRID][0].tolist()
    patch = getattr(vlm.processor.image_processor, "patch_size", None)
    merged = math.isqrt(rows * columns // tokens)
    if len(inputs[GRID]) != 1 or frames != 1 or not isinstance(patch, int) or rows * columns != tokens * merged**2:
        return []
    resized = image.convert("RGB").resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    return [View(resized, rows // merged, columns // merged)]


def _of_tiles(vlm: VLM, image: Image.Image, inputs: Mapping[str, Tensor], tokens: int) -> list[View]:
    pixels = inputs.get(PIXELS)
    if not isinstance(pixels, Tensor) or pixels.ndim < 4 or pixels.shape[-3] != 3:
        return []
    tiles = pixels.reshape(-1, *pixels.shape[-3:])
    height, width = tiles.shape[-2:]
    each = tokens // len(tiles)
    side = math.isqrt(height * width // max(each, 1))  # pixels along a token's
    if not side or each * len(tiles) != tokens or (height // side) * (width // side) != each:
        return []
    places = _tile_places(vlm, image, len(tiles))
    pictures = (as_read(tile, vlm.processor.image_processor) for tile in tiles)
    return [View(tile, height // side, width // side, at=at) for tile, at in zip(pictures, places, strict=True)]


def _tile_places(vlm: VLM, image: Image.Image, count: int) -> list[tuple[int, int] | None]:
    """Left and top of each tile in the grid that the picture was cut into, None for one that shows it whole; all None if it is no grid.

    Told by the processor itself: it is given a picture of the same size whose colours say where they are.
    """
    across, down = (np.linspace(0, 255, edge, dtype=np.float32) for edge in image.size)
    levels = np.stack([np.tile(across, (len(down), 1)), np.tile(down[:, None], (1, len(across))), np.zeros((len(down), len(across)))], -1)
    made = vlm.prepare(Image.fromarray(levels.round().astype(np.uint8)))[PIXELS]
    tiles = [
        np.asarray(as_read(tile, vlm.processor.image_processor), dtype=np.float32) / 255 for tile in made.reshape(-1, *made.shape[-3:])
    ]
    if len(tiles) != count:
        return [None] * count
    ranges = [[(one[:, :, channel].mean(channel)[0], one[:, :, channel].mean(channel)[-1]) for channel in (0, 1)] for one in tiles]
    spans = np.array([[(high + low) / 2, high - low] for tile in ranges for low, high in tile]).reshape(count, 2, 2)  # centre, extent
    cut = [number for number in range(count) if spans[number, :, 1].min() < WHOLE]
    if not cut:
        return [None] * count
    grid = [max(1, round(1 / max(float(np.median(spans[cut, axis, 1])), 1 / count))) for axis in (0, 1)]  # columns, rows
    cells = [tuple(int(spans[number, axis, 0] * grid[axis]) for axis in (0, 1)) for number in cut]
    if cells != [(index % grid[0], index // grid[0]) for index in range(grid[0] * grid[1])]:
        return [None] * count
    height, width = made.shape[-2:]
    known = {number: (column * width, row * height) for number, (column, row) in zip(cut, cells, strict=True)}
    return [known.get(number) for number in range(count)]


def spelled(vlm: VLM, inputs: Mapping[str, Tensor], found: list[View]) -> list[int]:
    """The number, from 1 on, of the cell that each token sees, cells counted view by view, row by row; empty if that cannot be asked."""
    counts = [view.rows * view.columns for view in found]
    numbers = torch.arange(1, sum(counts) + 1).split(counts)
    grids = [part.view(view.rows, view.columns) for part, view in zip(numbers, found, strict=True)]
    draw = _painted if GRID in inputs else _shifted
    with torch.inference_mode(), without_attention(vlm.model):
        plain = features(vlm, draw(vlm, inputs, found, [torch.zeros_like(grid, dtype=torch.bool) for grid in grids]))
        if len(plain) != sum(counts):
            return []
        spelled = torch.zeros(len(plain), dtype=torch.long)
        for bit in range(sum(counts).bit_length()):
            changed = features(vlm, draw(vlm, inputs, found, [(grid >> bit & 1).bool() for grid in grids]))
            by = (changed - plain).abs().amax(-1)
            spelled |= (by > CLEAR * by.max()).long().cpu() << bit
    return spelled.tolist()


def _painted(vlm: VLM, inputs: Mapping[str, Tensor], found: list[View], cells: list[Tensor]) -> dict[str, Any]:
    """A picture of the resized one's size with these cells [rows, columns] painted, as the processor prepares it."""
    width, height = found[0].pixels.size
    levels = np.where(cells[0].numpy(), PAINT, GREY).astype(np.uint8)
    picture = Image.fromarray(levels).resize((width, height), Image.Resampling.NEAREST).convert("RGB")
    made = vlm.prepare(picture)
    if not torch.equal(made[GRID], inputs[GRID]):
        raise FitPruneError(f"{vlm.name}: its processor resizes a picture of the size that it makes, so places cannot be checked")
    return made


def _shifted(vlm: VLM, inputs: Mapping[str, Tensor], found: list[View], cells: list[Tensor]) -> dict[str, Any]:
    """The same inputs with these cells of each tile brighter."""
    pixels = inputs[PIXELS]
    tiles = pixels.reshape(-1, *pixels.shape[-3:])
    masks = [mask.repeat_interleave(tiles.shape[-2] // mask.shape[0], 0) for mask in cells]
    masks = [mask.repeat_interleave(tiles.shape[-1] // mask.shape[1], 1) for mask in masks]
    padded = [nn.functional.pad(mask, (0, tiles.shape[-1] - mask.shape[1], 0, tiles.shape[-2] - mask.shape[0])) for mask in masks]
    return {**inputs, PIXELS: (tiles + torch.stack(padded)[:, None].to(tiles.dtype)).reshape(pixels.shape)}


def features(vlm: VLM, inputs: Mapping[str, Any]) -> Tensor:
    """What the model makes of a picture: a row per visual token, [n, hidden], in their order; [0, 0] where it cannot be asked."""
    base: Any = getattr(vlm.model, "base_model", vlm.model)
    method = getattr(base, FEATURES["image"], None)
    if method is None:
        return torch.zeros(0, 0)
    taken = inspect.signature(method).parameters
    handed_on = any(one.kind is one.VAR_KEYWORD for one in taken.values())  # to the tower
    made = method(**{name: value for name, value in vlm.on_device(inputs).items() if handed_on or name in taken})
    made = getattr(made, "pooler_output", made)
    rows = [made] if isinstance(made, Tensor) else [one for one in made if isinstance(one, Tensor)]
    return torch.cat([one.flatten(0, -2) for one in rows]).float() if rows else torch.zeros(0, 0)


@contextmanager
def without_attention(model: nn.Module) -> Iterator[None]:
    """Inside, attention in everything but the decoder adds nothing."""
    decoder = find_decoder(model)
    base: Any = getattr(model, "base_model", model)

    def silence(module: nn.Module, args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    inside = {id(module) for module in decoder.modules()}
    seeing = [module for module in base.modules() if id(module) not in inside and "Attention" in type(module).__name__]
    innermost = [one for one in seeing if not any(part in seeing for part in list(one.modules())[1:])]
    handles = [module.register_forward_hook(silence) for module in innermost]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
