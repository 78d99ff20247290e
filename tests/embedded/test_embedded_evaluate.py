"""Evaluation counts exact answers per family, fits on other pictures, and compares methods at equal compute."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fitprune
from embedded import evaluate
from embedded.evaluate import Method, asked, step, table
from embedded.questions import READING
from fitprune.cost import CostModel
from fitprune.families import VLM
from fitprune.studies.before import WAYS, Before

COST = CostModel(layers=6, hidden=64, intermediate=160, heads=4, kv_heads=4, head_dim=16)


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


def test_shares_are_exact_matches_by_family(small: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = asked("held-out", 3)
    truth = [question.answer for _, question in questions]

    def given_answers(vlm: VLM, given: Sequence[evaluate.Asked], method: Method, size: int) -> list[str]:
        knows = [method.name == "right" or question.family == "color" for _, question in given]
        return [answer if known else f"{answer}x" for answer, known in zip(truth, knows, strict=True)]

    monkeypatch.setattr(evaluate, "answers", given_answers)
    result = evaluate.evaluate(small, questions, [Method("right", None), Method("colours", None)])
    assert set(result["methods"]["right"].values()) == {1.0}
    colours = result["methods"]["colours"]
    assert (colours["color"], colours["reading"]) == (1.0, 0.0)
    assert colours["all"] == sum(q.family == "color" for _, q in questions) / len(questions)
    assert result["counts"]["reading"] == sum(q.family in READING for _, q in questions)
    assert result["counts"]["reading"] + result["counts"]["other"] == result["counts"]["all"] == len(questions)
    majority = max(truth.count(answer) for answer in truth) / len(truth)
    assert result["majority"]["all"] == majority
    assert f"| all | {len(questions)} | {100 * majority:.1f} | 100.0 | {100 * colours['all']:.1f} |" in table(result)


def test_methods_of_a_ratio_save_the_same_and_are_fitted_on_other_pictures(small: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []
    monkeypatch.setattr(evaluate, "asked", lambda split, *a, **k: splits.append(split) or asked(split, *a, **k))
    dense, *tried = evaluate.methods(small, [0, 0.5], ["fitprune", "random"], samples=4, before=["divprune"])
    assert tried.pop() == Method("50% divprune", None, before=Before("divprune", 0.5))
    assert (dense.recipe, splits) == (None, ["calibration"])
    assert {m.name: m.score for m in tried} == {"50% fitprune": "fitprune", "50% random": "random", "50% fastv": "last"}
    tokens = small.model.config.image_seq_length
    layers = small.cost.layers
    saved = [small.cost.visual_reduction_of_alive(m.recipe.alive(tokens, layers), tokens) for m in tried]
    assert saved == pytest.approx([0.5] * 3, abs=0.01)


def test_the_dense_and_the_pruned_model_answer_every_question_in_order(small: VLM) -> None:
    questions = asked("held-out", 2, ("number", "color"))
    recipe = fitprune.Recipe.step(layer=1, keep=0.5)
    before = [Method(way, None, before=Before(way, 0.5)) for way in WAYS]
    for method in (Method("dense", None), Method("half", recipe, "last"), *before):
        together = list(evaluate.answers(small, questions, method, 3))
        alone = [next(iter(evaluate.answers(small, [one], method, 1))) for one in questions]
        assert together == alone


@given(st.floats(0.05, 0.6), st.integers(0, 2), st.integers(20, 200))
def test_a_step_is_the_nearest_there_is(keep: float, layer: int, tokens: int) -> None:
    like = fitprune.Recipe.step(layer=0, keep=keep)

    def saved(recipe: fitprune.Recipe) -> float:
        return COST.visual_reduction_of_alive(recipe.alive(tokens, COST.layers), tokens)

    found = step(COST, tokens, like, layer)
    others = [fitprune.Recipe.step(layer=layer, keep=k / tokens) for k in range(tokens + 1)]
    assert abs(saved(found) - saved(like)) == min(abs(saved(other) - saved(like)) for other in others)
