"""What can be asked about a scene, and the answer: one function per family of questions.

A family is a function from (scene, random numbers) to a `Question`, or None where the scene has nothing to ask about.
The families are those of the benchmarks in whose formats they are written: reading (TextVQA), attributes, relations and
comparisons (GQA), existence (POPE), and pairs of yes/no questions (MME). Yes and no are equally likely by construction:
the answer is chosen first. A new family is a function and a line in `FAMILIES`.

    python -m embedded.questions held-out 0
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .glyphs import CHARACTERS
from .scene import COLORS, DIRECTIONS, KINDS, Scene, Shape, draw, stream

ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Question:
    """One question and its answer; `family` is a key of `FAMILIES`."""

    family: str
    text: str
    answer: str


Random = np.random.RandomState
Asked = tuple[str, str] | None  # question and answer


def _number(scene: Scene, random: Random) -> Asked:
    return ("What number is written?", scene.number) if scene.number else None


def _word(scene: Scene, random: Random) -> Asked:
    return ("What word is written?", scene.word) if scene.word else None


def _character(scene: Scene, random: Random) -> Asked:
    text = scene.texts[random.randint(len(scene.texts))]
    at = random.randint(len(text.text))
    what = "digit of the number" if text.is_number else "letter of the word"
    return f"What is the {ORDINALS[at]} {what}?", text.text[at]


def _color(scene: Scene, random: Random) -> Asked:
    shape = _unique(random, [shape for shape in scene.shapes if _alone(scene, "kind", shape.kind)])
    return (f"What color is the {shape.kind}?", shape.color) if shape else None


def _shape(scene: Scene, random: Random) -> Asked:
    shape = _unique(random, [shape for shape in scene.shapes if _alone(scene, "color", shape.color)])
    return (f"What shape is {shape.color}?", shape.kind) if shape else None


def _relation(scene: Scene, random: Random) -> Asked:
    pairs = [
        (shape, direction, other)
        for shape in scene.shapes
        if _alone(scene, "kind", shape.kind, shape.color)
        for direction in DIRECTIONS
        if (other := scene.beside(shape, direction))
    ]
    if not pairs:
        return None
    shape, direction, other = pairs[random.randint(len(pairs))]
    return f"What shape is directly {direction} the {shape.color} {shape.kind}?", other.kind


def _count(scene: Scene, random: Random) -> Asked:
    what, count = _countable(scene, random)
    return f"How many {what} are there?", str(count)


def _choose(scene: Scene, random: Random) -> Asked:
    shape = _unique(random, [shape for shape in scene.shapes if _alone(scene, "kind", shape.kind)])
    if shape is None:
        return None
    pair = [shape.color, _other(random, COLORS, {shape.color})]
    if random.randint(2):
        pair.reverse()
    return f"Is the {shape.kind} {pair[0]} or {pair[1]}?", shape.color


def _verify(scene: Scene, random: Random) -> Asked:
    shape = _unique(random, [shape for shape in scene.shapes if _alone(scene, "kind", shape.kind)])
    if shape is None:
        return None
    yes = bool(random.randint(2))
    color = shape.color if yes else _other(random, COLORS, {shape.color})
    return f"Is the {shape.kind} {color}?", _yes_no(yes)


def _exist(scene: Scene, random: Random) -> Asked:
    yes = bool(random.randint(2))
    there = {(shape.color, shape.kind) for shape in scene.shapes}
    if yes:
        color, kind = sorted(there)[random.randint(len(there))]
    else:  # half of what is not there shares its colour or its kind with something that is
        near = scene.shapes[random.randint(len(scene.shapes))]
        absent = [(color, kind) for color in COLORS for kind in KINDS if (color, kind) not in there]
        if random.randint(2):
            absent = [pair for pair in absent if pair[0] == near.color or pair[1] == near.kind]
        color, kind = absent[random.randint(len(absent))]
    return f"Is there {_article(color)} {color} {kind} in the image?", _yes_no(yes)


def _existence_yn(scene: Scene, random: Random) -> Asked:
    kinds = {shape.kind for shape in scene.shapes}
    yes = bool(random.randint(2)) or len(kinds) == len(KINDS)
    kind = sorted(kinds)[random.randint(len(kinds))] if yes else _other(random, KINDS, kinds)
    return f"Is there a {kind} in this image?", _yes_no(yes)


def _count_yn(scene: Scene, random: Random) -> Asked:
    what, count = _countable(scene, random)
    yes = bool(random.randint(2))
    wrong = [number for number in range(1, 7) if number != count and abs(number - count) < 3]
    asked = count if yes else wrong[random.randint(len(wrong))]
    return f"Are there {asked} {what} in this image?", _yes_no(yes)


def _position_yn(scene: Scene, random: Random) -> Asked:
    asked = _relation(scene, random)
    if asked is None:
        return None
    yes = bool(random.randint(2))
    kind = asked[1] if yes else _other(random, KINDS, {asked[1]})
    return f"Is there a {kind} {asked[0].removeprefix('What shape is ').rstrip('?')}?", _yes_no(yes)


def _color_yn(scene: Scene, random: Random) -> Asked:
    colors = {shape.color for shape in scene.shapes}
    yes = bool(random.randint(2))
    color = sorted(colors)[random.randint(len(colors))] if yes else _other(random, COLORS, colors)
    return f"Is there {_article(color)} {color} shape in this image?", _yes_no(yes)


def _ocr_yn(scene: Scene, random: Random) -> Asked:
    text = scene.texts[random.randint(len(scene.texts))]
    at = random.randint(len(text.text))
    yes = bool(random.randint(2))
    alphabet = [character for character in CHARACTERS if character.isdigit() == text.is_number]
    asked = text.text[at] if yes else _other(random, alphabet, {text.text[at]})
    what = "digit of the number" if text.is_number else "letter of the word"
    return f"Is the {ORDINALS[at]} {what} {asked}?", _yes_no(yes)


def _string_yn(scene: Scene, random: Random) -> Asked:
    text = scene.texts[random.randint(len(scene.texts))]
    yes = bool(random.randint(2))
    shown = text.text
    while not yes and shown == text.text:
        other = draw("train", int(random.randint(1 << 30)))
        shown = (other.number if text.is_number else other.word) or shown
    return f"Is the {'number' if text.is_number else 'word'} {shown} written in this image?", _yes_no(yes)


FAMILIES: dict[str, Callable[[Scene, Random], Asked]] = {
    "number": _number,
    "word": _word,
    "character": _character,
    "color": _color,
    "shape": _shape,
    "relation": _relation,
    "count": _count,
    "choose": _choose,
    "verify": _verify,
    "exist": _exist,
    "existence-yn": _existence_yn,
    "count-yn": _count_yn,
    "position-yn": _position_yn,
    "color-yn": _color_yn,
    "ocr-yn": _ocr_yn,
    "string-yn": _string_yn,
}
READING = ("number", "word", "character")


def ask(scene: Scene, family: str, random: Random) -> Question | None:
    """One question of a family about a scene; None where the scene has nothing to ask about."""
    asked = FAMILIES[family](scene, random)
    return asked and Question(family, *asked)


def one_of_each(scene: Scene, families: tuple[str, ...] = tuple(FAMILIES)) -> list[Question]:
    """For every family one question about a scene, where it has any; the same ones every time."""
    random = stream(scene.split, scene.index, purpose=2)
    return [question for family in families if (question := ask(scene, family, random))]


def _alone(scene: Scene, attribute: str, value: str, color: str = "") -> bool:
    """Whether just one shape has this value (and this colour, if one is given)."""
    return sum(getattr(shape, attribute) == value and color in ("", shape.color) for shape in scene.shapes) == 1


def _unique(random: Random, shapes: list[Shape]) -> Shape | None:
    return shapes[random.randint(len(shapes))] if shapes else None


def _countable(scene: Scene, random: Random) -> tuple[str, int]:
    """What to count, in the plural, and how many there are (at least one): all shapes, those of a kind, of a colour."""
    shape = scene.shapes[random.randint(len(scene.shapes))]
    return [
        ("shapes", len(scene.shapes)),
        (f"{shape.kind}s" if shape.kind != "cross" else "crosses", sum(s.kind == shape.kind for s in scene.shapes)),
        (f"{shape.color} shapes", sum(s.color == shape.color for s in scene.shapes)),
    ][(0, 0, 1, 2)[random.randint(4)]]


def _other(random: Random, options: object, taken: set[str]) -> str:
    left = [option for option in options if option not in taken]  # type: ignore[attr-defined]
    return left[random.randint(len(left))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _yes_no(yes: bool) -> str:
    return "yes" if yes else "no"


if __name__ == "__main__":
    for question in one_of_each(draw(sys.argv[1], int(sys.argv[2]))):  # type: ignore[arg-type]
        print(f"{question.family:14} {question.text} {question.answer}")
