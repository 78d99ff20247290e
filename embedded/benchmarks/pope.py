"""POPE in miniature: is there a red circle in the image? As many yes as no, and three ways to choose what is not there.

The absent objects asked about are random ones; the most frequent ones of the set ("popular"); those that most often
stand beside the present ones in other pictures ("adversarial"). Among equals chance decides. What is there is asked
about in all three splits, yes and no in turn.

POPE spells its questions with "an" wrongly ("in the imange"), and so does this. Only orange things are asked for so. The
embedded tokenizer spells the word in single letters, and no such question was trained on.

    python -c "from embedded.benchmarks import pope; print(pope.build(2)['coco/coco_pope_popular.json'].decode())"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain, permutations

from ..scene import COLORS, KINDS, Draw, draw, stream
from .encode import Files, json_lines, picture, question

QUESTIONS, LABELS, IMAGES = "llava_pope_test.jsonl", "coco", "val2014"
FIRST_ID = {"adversarial": 1, "random": 10_000_001, "popular": 20_000_001}  # by split, in the order of the file
PER_ANSWER = 3  # questions per picture, split and answer, where the picture has as many things
OBJECTS = [f"{color} {kind}" for color in COLORS for kind in KINDS]


def build(pictures: int = 30, draw: Draw = draw) -> Files:
    """All files of the benchmark, about so many pictures."""
    files: Files = {}
    names = [f"COCO_val2014_{index:012d}.jpg" for index in range(pictures)]
    present: list[list[str]] = []
    absent: list[list[str]] = []
    for index, name in enumerate(names):
        scene, random = draw("pope", index), stream("pope", index, purpose=3)
        files[f"{IMAGES}/{name}"] = picture(scene)
        things = {f"{shape.color} {shape.kind}" for shape in scene.shapes}
        shuffled = [OBJECTS[at] for at in random.permutation(len(OBJECTS))]
        present.append([thing for thing in shuffled if thing in things])
        absent.append([thing for thing in shuffled if thing not in things])
    questions = []
    for split, weight in weights(present).items():
        labels: list[dict[str, object]] = []
        for name, there, elsewhere in zip(names, present, absent, strict=True):
            missing = sorted(elsewhere, key=lambda thing: -weight(thing, there))
            for yes, no in list(zip(there, missing, strict=False))[:PER_ANSWER]:
                for thing, label in ((yes, "yes"), (no, "no")):
                    questions.append(question(FIRST_ID[split] + len(labels), name, ask(thing), split))
                    labels.append({"question_id": len(labels) + 1, "image": name, "text": ask(thing), "label": label})
        files[f"{LABELS}/coco_pope_{split}.json"] = json_lines(labels)
    files[QUESTIONS] = json_lines(questions)
    return files


def weights(present: list[list[str]]) -> dict[str, Callable[[str, list[str]], int]]:
    """By split: how much a thing that is absent deserves to be asked about, given the things that are there."""
    often = Counter(chain.from_iterable(present))
    together = Counter(pair for there in present for pair in permutations(there, 2))
    return {
        "adversarial": lambda thing, there: sum(together[thing, other] for other in there),
        "random": lambda thing, there: 0,
        "popular": lambda thing, there: often[thing],
    }


def ask(thing: str) -> str:
    """POPE's question about a thing, with its two spellings."""
    return f"Is there an {thing} in the imange?" if thing[0] in "aeiou" else f"Is there a {thing} in the image?"
