"""GQA in miniature: attributes, categories, relations, counts, with the programs and entailments that GQA records.

The official evaluator splits its figures by structure (query, choose, verify, exist), by meaning (attr, cat, obj, rel,
global) and by the number of steps of a question's program, and its consistency asks whether a model that answered one
question gets those right that follow from it. All of that is in the file. A question follows from another one if its
answer is the same in every picture in which both can be asked and the other one is answered as here. So "Is the circle
red?" follows from "What color is the circle?": *the* circle says that there is just one.

Left out: GQA's scene graphs and choices (GQA has none for this split either). GQA does not count; "count" is ours.

    python -c "from embedded.benchmarks import gqa; print(gqa.build(1)['data/testdev_balanced_questions.json'].decode())"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..questions import Question, one_of_each
from ..scene import KINDS, Draw, Scene, Shape, draw
from .encode import Files, json_file, json_lines, picture, question

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
TRUTH, IMAGES = "data/testdev_balanced_questions.json", "data/images"
SINGULAR = {f"{kind}es" if kind.endswith("s") else f"{kind}s": kind for kind in (*KINDS, "shape")}


@dataclass(frozen=True)
class Form:
    """What GQA records about the questions of a family.

    `pattern` reads a question: the groups "kind" and "color" describe the shapes that it is about. `steps` and `full`
    (the answer as a sentence) are filled in with what was read; a step without argument is left out.
    """

    pattern: str
    structural: str
    semantic: str
    detailed: str
    group: str | None  # whose answers compete with each other
    steps: tuple[tuple[str, str], ...]
    full: str


FORMS = {
    "color": Form(
        r"What color is the (?P<kind>\w+)\?",
        *("query", "attr", "directWhich", "color"),
        steps=(("select", "{kind} ({id})"), ("query", "color")),
        full="The {kind} is {answer}.",
    ),
    "shape": Form(
        r"What shape is (?P<color>\w+)\?",
        *("query", "cat", "categoryAttr", "shape"),
        steps=(("select", "shape ({id})"), ("filter color", "{color}"), ("query", "name")),
        full="The {answer} is {color}.",
    ),
    "relation": Form(
        r"What shape is directly (?P<direction>.+) the (?P<color>\w+) (?P<kind>\w+)\?",
        *("query", "rel", "relS", "shape"),
        steps=(
            ("select", "{kind} ({id})"),
            ("filter color", "{color}"),
            ("relate", "shape,directly {direction},s ({neighbour})"),
            ("query", "name"),
        ),
        full="The {answer} is directly {direction} the {color} {kind}.",
    ),
    "count": Form(
        r"How many (?:(?P<color>\w+) )?(?P<plural>\w+) are there\?",
        *("query", "global", "count", "count"),
        steps=(("select", "{kind} ({id})"), ("filter color", "{color}"), ("count", "?")),
        full="The number of {those} is {answer}.",
    ),
    "choose": Form(
        r"Is the (?P<kind>\w+) (?P<one>\w+) or (?P<other>\w+)\?",
        *("choose", "attr", "chooseAttr", "color"),
        steps=(("select", "{kind} ({id})"), ("choose color", "{one}|{other}")),
        full="The {kind} is {answer}.",
    ),
    "verify": Form(
        r"Is the (?P<kind>\w+) (?P<asked>\w+)\?",
        *("verify", "attr", "verifyAttr", None),
        steps=(("select", "{kind} ({id})"), ("verify color", "{asked}")),
        full="{answer}, the {kind} is {true}.",
    ),
    "exist": Form(
        r"Is there (?P<article>an?) (?P<color>\w+) (?P<kind>\w+) in the image\?",
        *("verify", "obj", "existAttr", None),
        steps=(("select", "{kind} ({id})"), ("filter color", "{color}"), ("exist", "?")),
        full="{answer}, there is {article} {color} {kind}.",
    ),
}
THE_KIND = ("color", "choose", "verify")  # families that speak of *the* circle: just one shape is a circle


def build(pictures: int = 80, draw: Draw = draw) -> Files:
    """All files of the benchmark, about so many pictures."""
    files: Files = {}
    questions = []
    truth: dict[str, Any] = {}
    for index in range(pictures):
        scene, image_id = draw("gqa", index), f"n{index:06d}"
        files[f"{IMAGES}/{image_id}.jpg"] = picture(scene)
        asked = {f"20{index:05d}{at:02d}": one for at, one in enumerate(one_of_each(scene, tuple(FORMS)))}
        for question_id, one in asked.items():
            questions.append(question(question_id, f"{image_id}.jpg", one.text, one.family))
            follow = [key for key, other in asked.items() if key != question_id and entails(one, other)]
            truth[question_id] = record(question_id, image_id, scene, one, follow)
    files[QUESTIONS] = json_lines(questions)
    files[TRUTH] = json_file(truth)
    return files


def record(question_id: str, image_id: str, scene: Scene, asked: Question, entailed: list[str]) -> dict[str, Any]:
    """GQA's entry for one question."""
    form, read = FORMS[asked.family], parse(asked)
    about = [shape for shape in scene.shapes if _fits(shape, read)]
    first = about[0] if about else None
    neighbour = scene.beside(first, read["direction"]) if first and "direction" in read else None
    read["id"] = ",".join(object_id(scene, shape) for shape in about) or "-"
    read["true"] = first.color if first else ""
    read["neighbour"] = object_id(scene, neighbour) if neighbour else ""
    if asked.answer in ("yes", "no"):
        read["answer"] = asked.answer.capitalize()
        read["article"] = read.get("article", "") if asked.answer == "yes" else "no"
    steps = [(operation, argument.format(**read)) for operation, argument in form.steps]
    full = form.full.format(**read)
    named = None if asked.family == "count" else first
    found = neighbour or (first if asked.family == "shape" else None)
    return {
        "semantic": [
            {"operation": operation, "dependencies": [at - 1] if at else [], "argument": argument}
            for at, (operation, argument) in enumerate(step for step in steps if step[1])
        ],
        "entailed": entailed,
        "equivalent": [question_id],
        "question": asked.text,
        "imageId": image_id,
        "isBalanced": True,
        "groups": {"global": form.group, "local": "-".join([asked.family, *_groups(asked).values()])},
        "answer": asked.answer,
        "annotations": {
            "answer": _mentions(scene, asked.answer, found),
            "question": _mentions(scene, asked.text, named),
            "fullAnswer": _mentions(scene, full, neighbour, named),
        },
        "types": {"detailed": form.detailed, "semantic": form.semantic, "structural": form.structural},
        "fullAnswer": full,
    }


def parse(asked: Question) -> dict[str, str]:
    """What a question says, by the names of `FORMS`; "color" is always there, "" for a question without one."""
    read = {"color": "", "answer": asked.answer, **_groups(asked)}
    if asked.family == "count":
        read["kind"] = SINGULAR[read["plural"]]
        read["those"] = f"{read['color']} {read['plural']}".strip()
    return read


def entails(first: Question, second: Question) -> bool:
    """Whether the answer to the second question follows from the first one and its answer; relations and counts never.

    Each of the other questions says of a kind and a colour that such a shape is there, or (answered no) is not. What
    would take exclusion ("Is the circle red or blue?" after "Is the circle red? No") is not listed.
    """
    if {first.family, second.family} & {"relation", "count"}:
        return False
    (kind, color), (other_kind, other_color) = _said(first), _said(second)
    same_kind, same_color = kind == other_kind, color == other_color
    yes_no = second.family in ("verify", "exist")
    if first.answer == "no":
        return yes_no and same_kind and same_color
    if (second.family in THE_KIND and same_kind) or (second.family == "shape" and same_color):
        return True
    only_one = (first.family in THE_KIND and same_kind) or (first.family == "shape" and same_color)
    return yes_no and (only_one or (same_kind and same_color))


def object_id(scene: Scene, shape: Shape) -> str:
    """A shape's number in the whole set: pictures times cells."""
    return str((scene.index * scene.layout.grid + shape.cell[0]) * scene.layout.grid + shape.cell[1])


def _said(asked: Question) -> tuple[str, str]:
    """The kind and the colour that a question and its answer are about."""
    read = parse(asked)
    return read.get("kind", asked.answer), read["color"] or read.get("asked", asked.answer)


def _groups(asked: Question) -> dict[str, str]:
    match = re.fullmatch(FORMS[asked.family].pattern, asked.text)
    if match is None:
        raise ValueError(f"not a question of the family {asked.family!r}: {asked.text!r}")
    return {name: value for name, value in match.groupdict().items() if value}


def _fits(shape: Shape, read: dict[str, str]) -> bool:
    """Whether a question's "kind" and "color" describe a shape."""
    return read.get("kind", "shape") in (shape.kind, "shape") and read["color"] in (shape.color, "")


def _mentions(scene: Scene, text: str, *shapes: Shape | None) -> dict[str, str]:
    """Which word (counted from 0) names which shape; `shapes` in the order of the text."""
    words = [word.strip("?.,") for word in text.split()]
    places: dict[str, str] = {}
    at = 0
    for shape in shapes:
        if shape and shape.kind in words[at:]:
            at = words.index(shape.kind, at)
            places[str(at)] = object_id(scene, shape)
            at += 1
    return places
