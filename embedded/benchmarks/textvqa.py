"""TextVQA in miniature: what number, what word, which character is written.

LLaVA's question file, here without its line of OCR tokens (that would give the answer away), and the official
annotations: ten people, who agree. Left out: the two Flickr addresses of an annotation; there is nothing behind them.

    python -c "from embedded.benchmarks import textvqa; print(textvqa.build(1)['llava_textvqa_val_v051_ocr.jsonl'].decode())"
"""

from __future__ import annotations

from ..questions import READING, one_of_each
from ..scene import Draw, draw
from .encode import Files, json_file, json_lines, picture, question

QUESTIONS, ANNOTATIONS, IMAGES = "llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json", "train_images"
PEOPLE = 10  # who answered each question
FIRST_IMAGE = 0x5EED << 48  # image ids are 16 hexadecimal digits


def build(pictures: int = 120, draw: Draw = draw) -> Files:
    """All files of the benchmark, about so many pictures."""
    files: Files = {}
    questions: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(pictures):
        scene = draw("textvqa", index)
        image_id = f"{FIRST_IMAGE + index:016x}"
        files[f"{IMAGES}/{image_id}.jpg"] = picture(scene)
        for asked in one_of_each(scene, READING):
            questions.append(question(image_id, f"{image_id}.jpg", asked.text, asked.family))
            annotations.append(
                {
                    "question": asked.text,
                    "image_id": image_id,
                    "image_classes": sorted({shape.kind.capitalize() for shape in scene.shapes}),
                    "image_width": scene.layout.side,
                    "image_height": scene.layout.side,
                    "answers": [asked.answer] * PEOPLE,
                    "question_tokens": asked.text.lower().rstrip("?").split(),
                    "question_id": len(annotations),
                    "set_name": "val",
                }
            )
    about = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    files[QUESTIONS] = json_lines(questions)
    files[ANNOTATIONS] = json_file({**about, "data": annotations})
    return files
