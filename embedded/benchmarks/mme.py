"""MME in miniature: pictures with two yes/no questions each, one to be answered yes and one no.

Of MME's fourteen categories those five that a drawn picture can be asked about. In these the picture lies beside its
text file (two lines: question, tab, Yes or No); MME's score pairs answers by their order, so the two are neighbours.

    python -c "from embedded.benchmarks import mme; print(mme.build(1)['llava_mme.jsonl'].decode())"
"""

from __future__ import annotations

from itertools import count

from ..questions import Question, ask
from ..scene import Draw, Scene, draw, stream
from .encode import Files, json_lines, picture, question

QUESTIONS, RELEASE = "llava_mme.jsonl", "MME_Benchmark_release_version"
CATEGORIES = {
    "existence": "existence-yn",
    "count": "count-yn",
    "position": "position-yn",
    "color": "color-yn",
    "OCR": "ocr-yn",
}  # name: family of its questions
TAIL = "Please answer yes or no."
TRIES = 64  # questions drawn before a picture is passed over


def build(pictures: int = 20, draw: Draw = draw) -> Files:
    """All files of the benchmark, so many pictures in each category."""
    files: Files = {}
    questions = []
    indices = count()
    for category, family in CATEGORIES.items():
        made = 0
        while made < pictures:
            scene = draw("mme", next(indices))
            pair = ask_both(scene, family)
            if pair is None:
                continue
            made += 1
            stem = f"{category}/{scene.index:012d}"
            files[f"{RELEASE}/{stem}.jpg"] = picture(scene)
            lines = (f"{one.text} {TAIL}\t{one.answer.capitalize()}\n" for one in pair)
            files[f"{RELEASE}/{stem}.txt"] = "".join(lines).encode()
            questions += [question(f"{stem}.jpg", f"{stem}.jpg", one.text, category) for one in pair]
    files[QUESTIONS] = json_lines(questions)
    return files


def ask_both(scene: Scene, family: str) -> tuple[Question, Question] | None:
    """A question to be answered yes and one to be answered no; None where the scene does not have both."""
    random = stream(scene.split, scene.index, purpose=3)
    found: dict[str, Question] = {}
    for _ in range(TRIES):
        asked = ask(scene, family, random)
        if asked:
            found.setdefault(asked.answer, asked)
        if len(found) == 2:
            return found["yes"], found["no"]
    return None
