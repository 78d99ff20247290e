"""Questions: every answer is found again by reading the question and looking at the scene's plain data."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import get_args

import pytest

from embedded.questions import FAMILIES, READING, Question, ask, one_of_each
from embedded.scene import COLORS, KINDS, SIDE, Scene, Shape, Split, Text, draw, stream

YES_NO = ("verify", "exist", "existence-yn", "count-yn", "position-yn", "color-yn", "ocr-yn", "string-yn")
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SPLITS: tuple[Split, ...] = get_args(Split)
SINGLE = tuple(split for split in SPLITS if split != "dense")  # where there is one number and one word


scene_of = cache(draw)  # tests share scenes


def asked(scenes: int, splits: tuple[Split, ...] = SINGLE) -> Iterator[tuple[Scene, Question]]:
    for split in splits:
        for index in range(scenes):
            scene = scene_of(split, index)
            for question in one_of_each(scene):
                yield scene, question


# A reader of questions that shares no code with the module: regular expressions over the wording.


def only(found: list[Shape]) -> Shape:
    assert len(found) == 1, f"the question is ambiguous: {found}"
    return found[0]


def neighbour(scene: Scene, place: str, color: str, kind: str) -> Shape | None:
    """The shape that stands there, by pixel centres."""
    middle = only([s for s in scene.shapes if s.color == color and s.kind == kind])
    cell = SIDE // 4
    wanted = (middle.x // cell + PLACES[place][0], middle.y // cell + PLACES[place][1])
    found = [s for s in scene.shapes if (s.x // cell, s.y // cell) == wanted]
    return found[0] if found else None


def counted(scene: Scene, what: str) -> int:
    words = what.split()
    if words[-1] == "shapes":
        return sum(len(words) == 1 or s.color == words[0] for s in scene.shapes)
    kind = "cross" if what == "crosses" else what.removesuffix("s")
    assert kind in KINDS
    return sum(s.kind == kind for s in scene.shapes)


def written(scene: Scene, what: str) -> Text:
    found = [text for text in scene.texts if text.text.isdigit() == (what == "number")]
    assert len(found) == 1, f"the question is ambiguous: {found}"
    return found[0]


def truth(scene: Scene, question: str) -> str:
    """The answer, from the wording and the scene."""
    shapes = scene.shapes

    def match(pattern: str) -> list[str]:
        found = re.fullmatch(pattern, question)
        return list(found.groups()) if found else []

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    if got := match(r"What (number|word) is written\?"):
        return written(scene, got[0]).text
    if got := match(r"What is the (first|second|third) (?:digit|letter) of the (number|word)\?"):
        return written(scene, got[1]).text[{"first": 0, "second": 1, "third": 2}[got[0]]]
    if got := match(r"What color is the (\w+)\?"):
        return only([s for s in shapes if s.kind == got[0]]).color
    if got := match(r"What shape is (\w+)\?"):
        return only([s for s in shapes if s.color == got[0]]).kind
    if got := match(r"What shape is directly ([a-z ]+) the (\w+) (\w+)\?"):
        there = neighbour(scene, *got)
        assert there, "nothing is there"
        return there.kind
    if got := match(r"How many ([a-z ]+) are there\?"):
        return str(counted(scene, got[0]))
    if got := match(r"Is the (first|second|third) (?:digit|letter) of the (number|word) (\w)\?"):
        return yes(written(scene, got[1]).text[{"first": 0, "second": 1, "third": 2}[got[0]]] == got[2])
    if got := match(r"Is the (\w+) (\w+) or (\w+)\?"):
        color = only([s for s in shapes if s.kind == got[0]]).color
        assert got[1:].count(color) == 1, "neither or both of the two are right"
        return color
    if got := match(r"Is the (\w+) (\w+)\?"):
        return yes(only([s for s in shapes if s.kind == got[0]]).color == got[1])
    if got := match(r"Is there an? (\w+) (\w+) in the image\?"):
        return yes(any((s.color, s.kind) == tuple(got) for s in shapes) if got[1] != "shape" else False)
    if got := match(r"Is there an? (\w+) shape in this image\?"):
        return yes(any(s.color == got[0] for s in shapes))
    if got := match(r"Is there an? (\w+) in this image\?"):
        return yes(any(s.kind == got[0] for s in shapes))
    if got := match(r"Are there (\d) ([a-z ]+) in this image\?"):
        return yes(counted(scene, got[1]) == int(got[0]))
    if got := match(r"Is there an? (\w+) directly ([a-z ]+) the (\w+) (\w+)\?"):
        there = neighbour(scene, *got[1:])
        return yes(there is not None and there.kind == got[0])
    if got := match(r"Is the (number|word) (\w+) written in this image\?"):
        return yes(any(text.text == got[1] for text in scene.texts))
    raise AssertionError(f"no reading of {question!r}")


def test_every_answer_is_what_the_scene_says() -> None:
    families = Counter[str]()
    for scene, question in asked(40):
        families[question.family] += 1
        assert question.answer == truth(scene, question.text), (scene, question)
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 150


def test_a_family_is_left_out_only_where_there_is_nothing_to_ask_about() -> None:
    missing = Counter[str]()
    for split in SINGLE:
        for index in range(30):
            scene = scene_of(split, index)
            there = {question.family for question in one_of_each(scene)}
            kinds, colors = Counter(s.kind for s in scene.shapes), Counter(s.color for s in scene.shapes)
            pairs = Counter((s.color, s.kind) for s in scene.shapes)
            related = any(
                pairs[s.color, s.kind] == 1 and any(neighbour(scene, place, s.color, s.kind) for place in PLACES) for s in scene.shapes
            )
            expected = {
                "number": any(t.text.isdigit() for t in scene.texts),
                "word": any(t.text.isalpha() for t in scene.texts),
                "shape": 1 in colors.values(),
                **dict.fromkeys(("color", "choose", "verify"), 1 in kinds.values()),
                **dict.fromkeys(("relation", "position-yn"), related),
            }
            for family in FAMILIES:
                assert (family in there) == expected.get(family, True), (family, scene)
                missing[family] += family not in there
    assert missing["number"] > 10
    assert missing["relation"] > 20


def test_questions_are_the_same_every_time_and_leave_other_draws_alone() -> None:
    scene = draw("gqa", 5)
    first = one_of_each(scene)
    assert one_of_each(scene) == first
    assert one_of_each(draw("gqa", 6)) != first
    assert one_of_each(scene, ("count", "color"))[0].family == "count"


def test_the_order_of_families_is_the_callers() -> None:
    wanted = ("exist", "count", "verify")
    assert all(tuple(q.family for q in one_of_each(draw("mme", i), wanted)) in (wanted, wanted[:2]) for i in range(50))
    assert set(READING) < set(FAMILIES)


@pytest.fixture(scope="module")
def answers() -> dict[str, list[tuple[str, str]]]:
    """Per family (question, answer) about 800 scenes."""
    found = defaultdict(list)
    for _, question in asked(400, ("train", "held-out")):
        found[question.family].append((question.text, question.answer))
    return found


@pytest.mark.parametrize("family", YES_NO)
def test_yes_and_no_are_equally_likely(answers: dict[str, list[tuple[str, str]]], family: str) -> None:
    replies = Counter(answer for _, answer in answers[family])
    assert set(replies) == {"yes", "no"}
    assert 0.45 < replies["yes"] / replies.total() < 0.55


MAJORITY = {  # share of the most frequent answer: at most this
    "number": 0.03, "word": 0.02, "character": 0.09, "color": 0.17, "shape": 0.22, "relation": 0.22, "count": 0.48,
    "choose": 0.17,
}  # fmt: skip


def test_bounds_name_every_family() -> None:
    assert {*MAJORITY, *YES_NO} == set(FAMILIES)


@pytest.mark.parametrize(("family", "bound"), MAJORITY.items())
def test_one_answer_to_all_questions_gets_few_right(answers: dict[str, list[tuple[str, str]]], family: str, bound: float) -> None:
    replies = Counter(answer for _, answer in answers[family])
    assert max(replies.values()) / replies.total() < bound


@pytest.mark.parametrize(
    ("family", "bound"),
    [*((family, 0.55) for family in YES_NO if family != "count-yn"), ("count-yn", 0.72), ("relation", 0.24), ("shape", 0.24)],
)  # fmt: skip
def test_the_wording_of_a_question_does_not_give_its_answer_away(
    answers: dict[str, list[tuple[str, str]]], family: str, bound: float
) -> None:
    """The best guess from the question alone, colours and strings blanked out. Counting is known to leak: 1 is the likeliest count."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    blank = "|".join([*COLORS, *(rf"{kind}(?:e?s)?\b" for kind in KINDS), r"(?<=number )\d+", r"(?<=word )(?!is)\w+"])
    for text, answer in answers[family]:
        forms[re.sub(blank, "_", text)][answer] += 1
    right = sum(max(replies.values()) for replies in forms.values())
    assert right / len(answers[family]) < bound
    assert len(forms) <= 25  # else the forms would be learned by heart here


def test_choices_name_the_right_answer_first_as_often_as_second(answers: dict[str, list[tuple[str, str]]]) -> None:
    first = [text.split()[3] == answer for text, answer in answers["choose"]]
    assert 0.44 < sum(first) / len(first) < 0.56


def test_some_absent_things_are_near_misses() -> None:
    """Half of what is asked for and not there shares its colour or kind with what is; by chance a quarter would."""
    near = []
    for scene in (scene_of("train", index) for index in range(400)):
        if len(scene.shapes) > 1:
            continue
        for question in one_of_each(scene, ("exist",)):
            color, kind = question.text.split()[3:5]
            if question.answer == "no":
                near.append(color == scene.shapes[0].color or kind == scene.shapes[0].kind)
    assert len(near) > 20
    assert sum(near) / len(near) > 0.45


def test_asking_again_asks_something_else() -> None:
    scene = next(s for s in (draw("train", i) for i in range(99)) if len(s.shapes) == 6)
    random = stream("train", 0, purpose=9)
    for family in ("character", "relation", "count", "exist", "ocr-yn", "string-yn"):
        assert len({ask(scene, family, random) for _ in range(60)}) > 3, family
