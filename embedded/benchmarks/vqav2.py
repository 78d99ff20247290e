"""VQAv2 in miniature: yes or no, numbers and other short answers; some pictures are asked about, all are listed.

As there, one file asks the questions of the split test-dev, another lists those of the whole test split, which is what has
to be handed in; a question's number is its picture's number times 1000 and a count. Left out: answers. Those of VQAv2's test
split are not public, so nothing here scores them either.

    python -c "from embedded.benchmarks import vqav2; print(vqav2.build(1)['llava_vqav2_mscoco_test2015.jsonl'].decode())"
"""

from __future__ import annotations

from ..questions import one_of_each
from ..scene import Draw, draw
from .encode import Files, json_lines, picture, question

ASKED, LISTED, IMAGES = "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl", "test2015"
FAMILIES = ("exist", "count", "color", "relation", "number")
PER_PICTURE = 1000  # question ids of a picture
EVERY = 3  # one picture in so many is outside test-dev


def build(pictures: int = 12, draw: Draw = draw) -> Files:
    """All files, about so many pictures."""
    files: Files = {}
    asked: list[dict[str, object]] = []
    listed: list[dict[str, object]] = []
    for index in range(pictures):
        scene, image = draw("vqav2", index), f"COCO_test2015_{index:012d}.jpg"
        files[f"{IMAGES}/{image}"] = picture(scene)
        lines = [question(index * PER_PICTURE + at, image, one.text, one.family) for at, one in enumerate(one_of_each(scene, FAMILIES))]
        listed += lines
        if index % EVERY != EVERY - 1:
            asked += lines
    files[ASKED], files[LISTED] = json_lines(asked), json_lines(listed)
    return files
