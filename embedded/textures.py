"""Backgrounds without a plain spot, for cluttered pictures: patches of different textures, each in colours of its own.

A field is a grey picture made of random numbers (noise, stripes, tiles, cells, dots, ripples, weave, marble, grain). A
ramp turns its greys into two to four muted colours. A background is two to five fields side by side along wavy borders or
seen through one another, under light that falls off to one side. All of it is integer arithmetic, so a number gives the
same bytes everywhere. Colours are muted so that what questions ask about stays recognisable on any of them.

    python -c "from embedded.textures import *; Image.fromarray(background(np.random.RandomState(0), 224)).save('/tmp/picture.png')"
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

Random = np.random.RandomState
Field = np.ndarray  # uint8 [side, side]
MUTED = 30  # how far a background's colour may lie from grey, per channel
TURN = ((64, 0), (63, 12), (59, 24), (53, 36), (45, 45), (36, 53), (24, 59), (12, 63), (0, 64), (-24, 59), (-45, 45), (-59, 24))
# directions as (cosine, sine), in 64ths


@cache
def plane(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of every pixel, int32 [side, side]."""
    row, column = np.mgrid[:side, :side].astype(np.int32)
    return column, row


def wave(phase: np.ndarray, sharp: bool = False) -> Field:
    """A triangle wave (or a square one) of period 512, 0 to 255."""
    folded = np.abs((phase & 511) - 256).clip(0, 255)
    return (np.where(folded > 127, 255, 0) if sharp else folded).astype(np.uint8)


def noise(random: Random, side: int, coarse: int = 0) -> Field:
    """Octaves of smooth noise, from `coarse` pixels along the edge on (0: drawn), stretched to the whole range."""
    size = coarse or int(random.randint(2, 9))
    total = np.zeros((side, side), dtype=np.int32)
    for weight in (4, 2, 1):
        pixels = random.randint(0, 256, (size, size)).astype(np.uint8)
        total += weight * np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
        size = min(side, size * int(random.randint(2, 5)))
    low, high = int(total.min()), int(total.max())
    return ((total - low) * 255 // max(1, high - low)).astype(np.uint8)


def _along(random: Random, side: int) -> np.ndarray:
    """How far every pixel lies along a direction, in 64ths of a pixel."""
    x, y = plane(side)
    cosine, sine = TURN[random.randint(len(TURN))]
    return x * cosine + y * sine


def _stripes(random: Random, side: int) -> Field:
    period, bend = int(random.randint(4, 25)), int(random.choice((0, 0, 4, 12)))
    phase = _along(random, side) * 8 // period  # 512 per period
    if bend:
        phase += noise(random, side, 3).astype(np.int32) * bend
    return wave(phase, sharp=bool(random.randint(2)))


def _tiles(random: Random, side: int) -> Field:
    x, y = plane(side)
    cosine, sine = TURN[random.randint(len(TURN))]
    u, v = x * cosine + y * sine, y * cosine - x * sine
    wide, high = (64 * int(random.randint(7, 30)) for _ in range(2))
    row = v // high
    column = (u + (row & 1) * (wide // 2) * int(random.randint(2))) // wide
    shade = random.randint(0, 256, 256).astype(np.uint8)[(column * 37 + row * 101) & 255]
    if random.randint(2):
        joint = (np.minimum(u % wide, v % high) < 96) & True
        shade = np.where(joint, int(random.randint(2)) * 255, shade)
    return shade.astype(np.uint8)


def _cells(random: Random, side: int) -> Field:
    half = side // 2
    x, y = plane(half)
    count = int(random.randint(12, 60))
    points = random.randint(0, half, (count, 2)).astype(np.int32)
    away = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2  # [count, half, half]
    if random.randint(2):
        small, way = random.randint(0, 256, count).astype(np.uint8)[away.argmin(0)], Image.Resampling.NEAREST
    else:
        small, way = (away.min(0) * count * 2 // half).clip(0, 255).astype(np.uint8), Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(small).resize((side, side), way))


def _dots(random: Random, side: int) -> Field:
    x, y = plane(side)
    period, shift = int(random.randint(6, 20)), int(random.randint(20))
    row = (y + shift) // period
    u = (x + (row & 1) * (period // 2)) % period - period // 2
    v = (y + shift) % period - period // 2
    return (255 - (u * u + v * v) * 1020 // (period * period)).clip(0, 255).astype(np.uint8)


def _ripples(random: Random, side: int) -> Field:
    x, y = plane(side)
    middle_x, middle_y = random.randint(-side // 2, side + side // 2, 2)
    squeeze = int(random.randint(1, 4))
    return wave(((x - middle_x) ** 2 + squeeze * (y - middle_y) ** 2) // int(random.randint(3, 12)), sharp=bool(random.randint(2)))


def _weave(random: Random, side: int) -> Field:
    one, other = _stripes(random, side), _stripes(random, side)
    return (np.minimum if random.randint(2) else np.maximum)(one, other)


def _marble(random: Random, side: int) -> Field:
    return wave(noise(random, side).astype(np.int32) * int(random.randint(4, 20)) + _along(random, side) // int(random.randint(2, 8)))


def _grain(random: Random, side: int) -> Field:
    wide, high = (-(-side // int(random.randint(1, 8))) for _ in range(2))
    pixels = random.randint(0, 256, (high, wide)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST))


FIELDS: tuple[Callable[[Random, int], Field], ...] = (
    noise, _stripes, _tiles, _cells, _dots, _ripples, _weave, _marble, _grain,
)  # fmt: skip


def ramp(random: Random) -> np.ndarray:
    """Colours of the greys of a field, uint8 [256, 3]: from one muted colour to the next, two to four of them."""
    count = int(random.randint(2, 5))
    stops = (random.randint(20, 236, (count, 1)) + random.randint(-MUTED, MUTED + 1, (count, 3))).clip(0, 255)
    place = np.arange(256) * (count - 1)
    left = np.minimum(place // 255, count - 2)
    part = (place - left * 255)[:, None]
    return ((stops[left] * (255 - part) + stops[left + 1] * part) // 255).astype(np.uint8)


def background(random: Random, side: int) -> np.ndarray:
    """A background, uint8 [side, side, 3]."""
    canvas = _patch(random, side)
    for _ in range(int(random.randint(1, 5))):
        over = _patch(random, side)
        border = noise(random, side, int(random.randint(2, 5))).astype(np.int32)
        if random.randint(3):
            canvas = np.where((border > int(random.randint(90, 180)))[..., None], over, canvas)
        else:
            canvas = ((canvas * (255 - border[..., None]) + over * border[..., None]) // 255).astype(np.uint8)
    light = 256 - _along(random, side) * int(random.randint(-90, 91)) // (64 * side)
    return ((canvas * light.clip(150, 300)[..., None]) >> 8).clip(0, 255).astype(np.uint8)


def _patch(random: Random, side: int) -> np.ndarray:
    return ramp(random)[FIELDS[random.randint(len(FIELDS))](random, side)]
