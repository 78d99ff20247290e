"""Files of the benchmarks' authors and of other tools, known by their looks: what somebody gave instead of a question file.

LLaVA asks question files of its own, which come in its `eval.zip`; people give the annotations, tables and label files that
the benchmarks publish. `hint` says which file that is and which is meant. Left out: converting them, since the text that is
asked (instruction, choices, OCR tokens) is part of what a published figure stands for.

    python -c "from fitprune.questions.official import hint; print(hint('answers.jsonl'))"
"""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import FitPruneError
from ..files import read_bytes

ZIP = "from LLaVA's eval.zip (docs/evaluation.md)"
START = 4096  # bytes of a line that are looked at where the file is no JSON


def hint(path: str | os.PathLike[str]) -> str:
    """What a file is and what to give instead, as the end of a message; "" for one that is not known or cannot be read."""
    try:
        content = read_bytes(path, "file")
    except FitPruneError:
        return ""
    head = content[:START].decode("utf-8", "replace").split("\n")[0].split("\t")
    if {"index", "question", "image"} <= set(head):
        return f"it is MMBench's table: ask it with --benchmark mmbench or model_vqa_mmbench, or give a question file {ZIP}"
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        try:
            value = json.loads(content.lstrip().split(b"\n")[0])
        except (ValueError, RecursionError):
            return ""
    return _known(value)


def _known(value: Any) -> str:
    """A whole file's value, or its first line's."""
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict):
        if "conversations" in first:
            return "it is a list of conversations like ScienceQA's: ask it with --benchmark sqa or model_vqa_science"
        if {"image", "question"} <= first.keys() and not {"question_id", "text"} <= first.keys():
            return f"it is like VizWiz's own annotations: give llava_test.jsonl {ZIP}"
        if "label" in first:
            return f"it is a label file like POPE's: give llava_pope_test.jsonl {ZIP}"
        return "it is a JSON list: give one object per line, with question_id, image and text"
    if not isinstance(value, dict):
        return ""
    keys, sample = value.keys(), next(iter(value.values()), None)
    inner = sample.keys() if isinstance(sample, dict) else set()
    if {"answer_id", "model_id"} & keys and "text" in keys:
        return "it is an answers file: give the questions that it answers"
    if "question_type" in keys and "questions" in keys:
        return f"it is SEED-Bench's own file: give llava-seed-bench.jsonl {ZIP}"
    if "questions" in keys:
        return f"it is VQAv2's own file: give llava_vqav2_mscoco_test-dev2015.jsonl {ZIP}"
    if "annotations" in keys:
        return f"it is VQAv2's own file of answers: give llava_vqav2_mscoco_test-dev2015.jsonl {ZIP}"
    if {"dataset_name", "data"} <= keys or {"dataset_version", "data"} <= keys:
        return f"it is TextVQA's own file: give llava_textvqa_val_v051_ocr.jsonl {ZIP}"
    if {"imageId", "question"} <= inner:
        return f"it is GQA's own file: give llava_gqa_testdev_balanced.jsonl {ZIP}"
    if {"choices", "question"} <= inner:
        return f"it is ScienceQA's own file: give llava_test_CQM-A.json {ZIP} to --benchmark sqa or model_vqa_science"
    if isinstance(sample, list) and {"test", "val", "train"} & keys:
        return f"it is ScienceQA's list of splits: give llava_test_CQM-A.json {ZIP} to --benchmark sqa or model_vqa_science"
    if {"imagename", "question"} <= inner:
        return f"it is MM-Vet's own file: give llava-mm-vet.jsonl {ZIP}"
    if "label" in keys:
        return f"it is a label file like POPE's: give llava_pope_test.jsonl {ZIP}"
    return ""


def with_hint(error: FitPruneError, path: str | os.PathLike[str]) -> FitPruneError:
    """The error of reading a file as questions, with what the file is in the place of what to do, where it is known."""
    known = hint(path)
    return FitPruneError(f"question file {path} cannot be asked: {known}") if known else error
