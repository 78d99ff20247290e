"""VizWiz in miniature: one question about each picture.

Left out: what to say where a picture shows too little, which VizWiz's questions add as a line ("Unanswerable"). Here every
question has an answer, and the line is far from what the embedded model was trained on (of 174 questions it answered 94%
without that line and 43% with it). Answers are left out too: a server has those of VizWiz's test split.

    python -c "from embedded.benchmarks import vizwiz; print(vizwiz.build(3)['llava_test.jsonl'].decode())"
"""

from __future__ import annotations

from ..scene import Draw, draw
from .encode import Files, asked_in_turn, json_lines, picture

QUESTIONS, IMAGES = "llava_test.jsonl", "test"
FAMILIES = ("number", "color", "word", "count")


def build(pictures: int = 12, draw: Draw = draw) -> Files:
    """All files, about those of so many pictures that have something to ask about."""
    files, questions = asked_in_turn("vizwiz", pictures, FAMILIES, f"{IMAGES}/VizWiz_test_{{:08d}}.jpg", picture, draw=draw)
    return {**files, QUESTIONS: json_lines(questions)}
