"""Benchmarks' own files, given instead of a question file: each is known, and the message names the file that is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.questions import read_questions
from fitprune.questions.official import hint

DATA = embedded().data
LABEL = {"image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"}
VQA = {"image_id": 42, "question": "What?", "question_id": 42000}


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ({"info": {}, "task_type": "Open-Ended", "questions": [VQA]}, "llava_vqav2_mscoco_test-dev2015.jsonl"),
        ({"info": {}, "annotations": [VQA]}, "llava_vqav2_mscoco_test-dev2015.jsonl"),
        ({"2": {"imagename": "v1_2.png", "question": "Who?"}}, "llava-mm-vet.jsonl"),
        ([{"image": "VizWiz_val_00000000.jpg", "question": "What?", "answers": []}], "llava_test.jsonl"),
        ([LABEL], "llava_pope_test.jsonl"),
        (LABEL, "llava_pope_test.jsonl"),
        ([{"question_id": 1, "image": "a.jpg", "text": "t"}], "one object per line"),
        ({"question_id": 1, "prompt": "q", "text": "a", "answer_id": "x", "model_id": "m"}, "it is an answers file"),
        ({"question_id": 1, "image_id": "a.jpg", "text": "t"}, "has 'image_id' and no 'image'"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_what_was_given_and_what_is_meant(tmp_path: Path, content: Any, meant: str, indent: int | None) -> None:
    file = tmp_path / "given.json"
    file.write_text(json.dumps(content, indent=indent))
    if indent and isinstance(content, dict) and "question_id" in content:
        return  # an object over several lines is no file of these tools
    with pytest.raises(FitPruneError, match=r"given\.json") as caught:
        read_questions(file)
    assert meant in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "meant"),
    [
        ("gqa/data/testdev_balanced_questions.json", "llava_gqa_testdev_balanced.jsonl"),
        ("textvqa/TextVQA_0.5.1_val.json", "llava_textvqa_val_v051_ocr.jsonl"),
        ("scienceqa/problems.json", "llava_test_CQM-A.json"),
        ("scienceqa/pid_splits.json", "llava_test_CQM-A.json"),
        ("scienceqa/llava_test_CQM-A.json", "model_vqa_science"),
        ("seed_bench/SEED-Bench.json", "llava-seed-bench.jsonl"),
        ("mmbench/mmbench_dev_20230712.tsv", "model_vqa_mmbench"),
    ],
)
def test_the_embedded_counterparts_are_known(file: str, meant: str) -> None:
    with pytest.raises(FitPruneError, match="cannot be asked: it is") as caught:
        read_questions(DATA / file)
    assert meant in str(caught.value)


def test_question_files_and_what_is_not_known_have_no_hint(tmp_path: Path) -> None:
    assert hint(DATA / "pope/llava_pope_test.jsonl") == ""
    assert hint(tmp_path / "missing") == ""
    for content in ("", "{", "[1", "[[1]]", "3", '{"a": 1}', "\xff"):
        (tmp_path / "f").write_text(content)
        assert hint(tmp_path / "f") == ""
