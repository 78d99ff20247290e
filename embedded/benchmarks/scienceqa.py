"""ScienceQA in miniature: choices about pictures, and questions that are all text, as LLaVA's list of conversations.

As in ScienceQA the number of choices differs, a context line may come first, and `<image>` stands before or behind the
text. Every third question has no picture: it counts what its context says. Left out: lectures and solutions, which
LLaVA's question file does not show. No embedded model was trained on multiple choice: they answer with a word, not with a
letter, and score about 0 here and in SEED-Bench. These files are for walking through the steps.

    python -c "from embedded.benchmarks import scienceqa; print(scienceqa.build(1)['llava_test_CQM-A.json'].decode())"
"""

from __future__ import annotations

from typing import Any

from ..questions import Question, one_of_each
from ..scene import Draw, Scene, draw, stream
from .encode import LETTERS, Files, choices, json_file, lettered, picture

QUESTIONS, PROBLEMS, SPLITS, IMAGES = "llava_test_CQM-A.json", "problems.json", "pid_splits.json", "images/test"
COUNT = {"color": 4, "shape": 3, "relation": 5, "exist": 2}  # choices by family
EVERY = 3  # one question in so many is all text


def build(pictures: int = 8, draw: Draw = draw) -> Files:
    """All files, about so many pictures."""
    files: Files = {}
    items: list[dict[str, Any]] = []
    problems: dict[str, dict[str, Any]] = {}
    for index in range(pictures):
        scene, random = draw("scienceqa", index), stream("scienceqa", index, purpose=3)
        image = f"{len(problems) + 1}/image.jpg"  # as there, a folder named after a problem
        files[f"{IMAGES}/{image}"] = picture(scene)
        for asked in one_of_each(scene, tuple(COUNT)):
            if len(problems) % EVERY == EVERY - 1:
                _add(items, problems, *_told(scene), choices(_told(scene)[1], random, 4), None)
            _add(items, problems, "", asked, choices(asked, random, COUNT[asked.family]), image)
    files[QUESTIONS], files[PROBLEMS] = json_file(items), json_file(problems)
    files[SPLITS] = json_file({"train": [], "val": [], "test": list(problems)})
    return files


def _told(scene: Scene) -> tuple[str, Question]:
    """A context, and a question that it answers."""
    shape = scene.shapes[0]
    count = len(scene.shapes)
    what = f"{shape.color} shape" if count == 1 else f"{shape.color} shapes"
    are = "is" if count == 1 else "are"
    return f"There {are} {count} {what}.", Question("count", f"How many {shape.color} shapes are there?", str(count))


def _add(
    items: list[dict[str, Any]],
    problems: dict[str, dict[str, Any]],
    hint: str,
    asked: Question,
    options: tuple[list[str], int],
    image: str | None,
) -> None:
    """One problem, and LLaVA's item for it."""
    pid = str(len(problems) + 1)
    text = lettered(f"Context: {hint}\n{asked.text}" if hint else asked.text, options[0])
    if image:
        text = f"<image>\n{text}" if len(problems) % 2 else f"{text}\n<image>"
    said = [{"from": "human", "value": text}, {"from": "gpt", "value": LETTERS[options[1]]}]
    items.append({"id": pid, **({"image": image} if image else {}), "conversations": said})
    problems[pid] = {
        "question": asked.text,
        "choices": options[0],
        "answer": options[1],
        "hint": hint,
        "image": image and "image.jpg",
        "task": "closed choice",
        "category": asked.family,
        "split": "test",
    }
