"""SEED-Bench in miniature: four choices each, in those of its kinds of question that a drawn picture can be asked about.

Every third picture stands for a frame of a video, so that both of SEED-Bench's accuracies exist. Ids are its: the
annotation writes numbers as text, the question file as numbers, and those of videos begin with v.

    python -c "from embedded.benchmarks import seed_bench; print(seed_bench.build(1)['SEED-Bench.json'].decode())"
"""

from __future__ import annotations

from ..questions import one_of_each
from ..scene import Draw, draw, stream
from .encode import LETTERS, Files, choices, json_file, json_lines, lettered, picture

QUESTIONS, ANNOTATIONS = "llava-seed-bench.jsonl", "SEED-Bench.json"
IMAGES = {"image": "SEED-Bench-image", "video": "SEED-Bench-video-image"}
PLEASE = "Answer with the option's letter from the given choices directly."
KINDS_OF = {
    "shape": ("Instance Identity", 2),
    "color": ("Instance Attributes", 3),
    "count": ("Instances Counting", 5),
    "relation": ("Spatial Relation", 6),
}  # family: its kind in SEED-Bench
EVERY = 3  # one picture in so many is a frame


def build(pictures: int = 9, draw: Draw = draw) -> Files:
    """All files, about so many pictures."""
    files: Files = {}
    questions: list[dict[str, object]] = []
    truth: list[dict[str, object]] = []
    for index in range(pictures):
        scene, random = draw("seed", index), stream("seed", index, purpose=3)
        kind = "video" if index % EVERY == EVERY - 1 else "image"
        name = f"{index:06d}.jpg"
        files[f"{IMAGES[kind]}/{name}"] = picture(scene)
        for asked in one_of_each(scene, tuple(KINDS_OF)):
            options, right = choices(asked, random)
            number = len(truth) + 1
            question_id = f"v{number}" if kind == "video" else number
            text = f"{lettered(asked.text, options)}\n{PLEASE}"
            questions.append({"question_id": question_id, "image": f"{IMAGES[kind]}/{name}", "text": text, "category": asked.family})
            truth.append(
                {
                    "answer": LETTERS[right],
                    **{f"choice_{letter.lower()}": option for letter, option in zip(LETTERS, options, strict=False)},
                    "data_id": name,
                    "data_type": kind,
                    "question": asked.text,
                    "question_id": str(question_id),
                    "question_type_id": KINDS_OF[asked.family][1],
                }
            )
    files[QUESTIONS] = json_lines(questions)
    files[ANNOTATIONS] = json_file({"question_type": dict(KINDS_OF.values()), "questions": truth})
    return files
