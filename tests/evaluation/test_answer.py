"""Answering a question file: order, resuming, pruning, damaged images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fitprune
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answer import answer
from fitprune.families.vlm import VLM
from fitprune.questions import Question, read_questions
from fitprune.recipe import Recipe

RECIPE = Recipe.from_deletions([40, 0, 20, 0, 0, 10, 0, 0, 0], visual_tokens=144, reduction_ratio=0.4)


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return read_questions(embedded().questions)[:10]


def run(small: VLM, questions: list[Question], path: Path, **more: Any) -> Any:
    return answer(small, questions, embedded().images, path, progress=False, max_new_tokens=6, **{"batch_size": 4, **more})


def lines(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k != "answer_id"} for line in path.read_text().splitlines()]


def test_answers_come_in_order_and_count_what_was_kept(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    done = run(small, questions, tmp_path / "a.jsonl", recipe=RECIPE)
    assert done.answered == 10
    assert done.visual_tokens == 144
    assert done.alive == [104, 104, 84, 84, 84, 74, 74, 74, 74]
    written = lines(tmp_path / "a.jsonl")
    assert [(w["question_id"], w["prompt"]) for w in written] == [(q.question_id, q.text) for q in questions]
    assert all(w["model_id"] == "embedded" and w["text"] for w in written)


def test_batches_answer_as_singles(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    for recipe in (None, RECIPE):
        run(small, questions, tmp_path / "many", recipe=recipe, overwrite=True)
        run(small, questions, tmp_path / "one", recipe=recipe, overwrite=True, batch_size=1)
        assert lines(tmp_path / "many") == lines(tmp_path / "one")


def test_an_interrupted_run_continues(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    run(small, questions, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    done = run(small, questions, tmp_path / "cut")
    assert done.resumed + done.answered == 10
    assert done.resumed > 0
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    again = run(small, questions, tmp_path / "cut")
    assert (again.answered, again.resumed, again.milliseconds) == (0, 10, None)


def test_a_run_is_not_continued_with_another_recipe(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    run(small, questions[:2], tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(FitPruneError, match="overwrite"):
        run(small, questions, tmp_path / "a", recipe=RECIPE)
    assert (tmp_path / "a").read_bytes() == before
    assert run(small, questions, tmp_path / "a", recipe=RECIPE, overwrite=True).answered == 10


def test_a_run_is_not_continued_where_survivors_absorb(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    run(small, questions[:2], tmp_path / "a", recipe=RECIPE)
    with pytest.raises(FitPruneError, match="overwrite"):
        run(small, questions, tmp_path / "a", recipe=replace(RECIPE, absorb=0.8))


def test_a_damaged_image_stops_the_run_and_loses_nothing(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    bad = [*questions[:4], Question("x", "gone.png", "what ?"), *questions[4:]]
    with pytest.raises(FitPruneError, match=r"gone\.png"):
        run(small, bad, tmp_path / "a")
    assert len(lines(tmp_path / "a")) == 4


def test_questions_without_image_are_answered_beside_others(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    mixed = [questions[0], Question("t", None, "what is a circle ?"), questions[1]]
    run(small, mixed, tmp_path / "a", recipe=RECIPE)
    run(small, [questions[0], questions[1]], tmp_path / "b", recipe=RECIPE)
    assert [w["text"] for w in lines(tmp_path / "a")][::2] == [w["text"] for w in lines(tmp_path / "b")]


def test_the_model_is_unpruned_again_afterwards(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    run(small, questions[:1], tmp_path / "a", recipe=RECIPE)
    assert fitprune.prune.__module__ == "fitprune.prune"
    with fitprune.prune(small.model, RECIPE) as trace:  # attaching again works only if nothing is attached
        assert len(trace) == 0


def test_a_run_is_not_continued_with_other_decoding(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    run(small, questions[:2], tmp_path / "a")
    with pytest.raises(FitPruneError, match="overwrite"):
        run(small, questions, tmp_path / "a", num_beams=2)
    assert lines(tmp_path / "a")[0]["metadata"] == {"max_new_tokens": 6}
    answer(small, questions[:1], embedded().images, tmp_path / "b", progress=False, max_new_tokens=128, temperature=0.0)
    assert lines(tmp_path / "b")[0]["metadata"] == {}  # the authors' settings: their format


def test_averages_are_over_illustrated_questions(small: VLM, questions: list[Question], tmp_path: Path) -> None:
    mixed = [questions[0], Question("t", None, "what is a circle ?"), Question("u", None, "what is a star ?")]
    done = run(small, mixed, tmp_path / "a", recipe=RECIPE)
    assert (done.visual_tokens, done.alive[-1]) == (144, 74)
