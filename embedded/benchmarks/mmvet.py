"""MM-Vet in miniature: bare questions, without an instruction how to answer, about pictures in PNG files.

MM-Vet asks for several abilities at once; of those that a drawn picture can be asked about, these are reading, recognition,
counting and where things are. Left out: answers and abilities, which MM-Vet's notebook has and asks a language model about.

    python -c "from embedded.benchmarks import mmvet; print(mmvet.build(3)['llava-mm-vet.jsonl'].decode())"
"""

from __future__ import annotations

from ..scene import Draw, draw
from .encode import Files, asked_in_turn, json_lines, png

QUESTIONS, IMAGES = "llava-mm-vet.jsonl", "images"
FAMILIES = ("relation", "number", "count", "shape", "word")


def build(pictures: int = 10, draw: Draw = draw) -> Files:
    """All files, about those of so many pictures that have something to ask about."""
    files, questions = asked_in_turn("mmvet", pictures, FAMILIES, f"{IMAGES}/v1_{{}}.png", png, "conv", please="", draw=draw)
    return {**files, QUESTIONS: json_lines(questions)}
