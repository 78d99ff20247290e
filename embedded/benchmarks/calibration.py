"""What recipes are fitted on: a question file in the form of the authors' `statistical_analysis_data.jsonl`.

All families alike, and no picture that any benchmark asks about. No answers: fitting never looks at them. Every id is
its own, because the authors' fitting script keeps its state by question id and fails on repeated ones.

    python -c "from embedded.benchmarks import calibration; print(list(calibration.build(2)))"
"""

from __future__ import annotations

from collections import Counter

from ..questions import one_of_each
from ..scene import Draw, draw
from .encode import Files, json_lines, picture, question

QUESTIONS, IMAGES = "statistical_analysis_data.jsonl", "images"
RATE = (16, 5)  # questions per pictures


def build(pictures: int = 50, draw: Draw = draw) -> Files:
    """All files, about so many pictures; each picture is asked the families that were asked least so far."""
    files: Files = {}
    questions: list[dict[str, object]] = []
    asked = Counter[str]()
    for index in range(pictures):
        scene, image = draw("calibration", index), f"{index:06d}.jpg"
        files[f"{IMAGES}/{image}"] = picture(scene)
        wanted = RATE[0] * (index + 1) // RATE[1] - len(questions)
        rarest = sorted(one_of_each(scene), key=lambda one: asked[one.family])
        for one in rarest[:wanted]:
            asked[one.family] += 1
            questions.append(question(len(questions), image, one.text, one.family))
    files[QUESTIONS] = json_lines(questions)
    return files
