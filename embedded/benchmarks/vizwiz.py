"""VizWiz in miniature: one question about each picture.

Left out: what to say where a picture shows too little, which VizWiz's questions add as a line ("Unanswerable"). Here every
question has an answer, and the line is far from what the embedded model was trained on (of 174 questions it answered 94%
without that line and 43% with it). Answers are left out too: a server has those of VizWiz's test split.

    python -c "from embedded.benchmarks import vizwiz; print(vizwiz.build(3)['llava_test.jsonl'].decode())"
"""

from __future__ import annotations

from ..scene import draw
from .encode import Files, in_turn, json_lines, picture, question

QUESTIONS, IMAGES = "llava_test.jsonl", "test"
FAMILIES = ("number", "color", "word", "count")


def build(pictures: int = 12) -> Files:
    """All files, about those of so many pictures that have something to ask about."""
    files: Files = {}
    questions: list[dict[str, object]] = []
    for index in range(pictures):
        scene, image = draw("vizwiz", index), f"VizWiz_test_{index:08d}.jpg"
        if asked := in_turn(scene, FAMILIES):
            files[f"{IMAGES}/{image}"] = picture(scene)
            questions.append(question(index, image, asked.text, asked.family))
    files[QUESTIONS] = json_lines(questions)
    return files
