"""`fitprune report`: its maths against other libraries and laws, its runs against the slow pruned model, its command."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multimodal import Recorded

import fitprune
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.families.vlm import VLM
from fitprune.questions import Question, read_questions
from fitprune.recipe import Recipe
from fitprune.resolve import Choice
from fitprune.studies.against_dense import Drift, compare_to_dense, teacher_forced_logits
from fitprune.studies.drift import Share, bootstrap, divergence, kept, wilson
from fitprune.studies.report import advice, advise, summarise

HALF = Recipe.from_deletions([40, 0, 20, 0, 0, 10, 0, 0, 0], visual_tokens=144, reduction_ratio=0.4)
MOST = Recipe.from_deletions([100, 0, 20, 0, 0, 10, 0, 0, 0], visual_tokens=144, reduction_ratio=0.8)


@pytest.fixture(scope="module")
def small() -> VLM:
    return fitprune.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def followed(small: VLM) -> list[list[Drift]]:
    """Unpruned, a recipe that deletes nothing, and two that do, on nine questions."""
    none = Recipe.from_deletions([0] * 9, visual_tokens=144)
    questions = read_questions(embedded().questions)[:9]
    return compare_to_dense(
        small, questions, str(embedded().images), [None, none, HALF, MOST], batch_size=4, max_new_tokens=8, progress=False
    )


# ---- maths


def test_divergence_is_that_of_torch_distributions() -> None:
    dense, pruned = torch.randn(2, 5, 3, 50).mul(4)
    categorical = torch.distributions.Categorical
    want = torch.distributions.kl_divergence(categorical(logits=dense.double()), categorical(logits=pruned.double()))
    torch.testing.assert_close(divergence(dense, pruned), want, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(divergence(dense, pruned), divergence(pruned, dense))  # the direction matters
    assert divergence(dense, dense + 3).max() < 1e-10  # a shift of the logits is no change


def test_divergence_of_tokens_that_cannot_come() -> None:
    inf = math.inf
    assert divergence(torch.tensor([0.0, 0.0, -inf]), torch.tensor([0.0, 0.0, -inf])) == 0
    assert divergence(torch.tensor([0.0, -inf]), torch.tensor([0.0, 0.0])).item() == pytest.approx(math.log(2))
    assert divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -inf])) == inf


def test_kept_is_one_minus_the_total_variation_distance() -> None:
    received = torch.rand(3, 20)
    alive = [torch.arange(20), torch.tensor([1, 4, 5, 17]), torch.tensor([4])]
    for layer, share in enumerate(kept(received, alive)):
        dense = received[layer].double() / received[layer].double().sum()
        survivors = torch.zeros(20).double()
        survivors[alive[layer]] = dense[alive[layer]]
        survivors /= survivors.sum()
        assert share.item() == pytest.approx(1 - 0.5 * (dense - survivors).abs().sum().item())
    assert kept(torch.zeros(1, 4), [torch.tensor([2])]).tolist() == [1]
    assert kept(torch.ones(1, 4), [torch.tensor([], dtype=torch.long)]).tolist() == [0]


def test_wilson_is_where_the_score_test_rejects() -> None:
    for count, total in ((0, 10), (1, 10), (7, 40), (40, 40), (3, 1000)):
        found = wilson(count, total)
        assert found.low <= found.share <= found.high
        for bound in {found.low, found.high} - {0.0, 1.0}:  # |p̂ - p| = z √(p (1 - p) / n) at both ends
            assert abs(found.share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / total), rel=1e-5)
    assert wilson(0, 10) == Share(0, 0.0, 0.0, pytest.approx(0.2775, abs=1e-4))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_bootstrap_holds_the_mean_and_repeats(values: list[float]) -> None:
    found = bootstrap(values)
    slack = 1e-9 * max(values) + 1e-12
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert bootstrap(values) == found


def test_bootstrap_approaches_the_normal_interval() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(3)).double()
    found, half = bootstrap(values.tolist()), 1.96 * values.std().item() / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)


# ---- runs


def test_led_logits_are_those_of_the_whole_sequence_in_padded_batches() -> None:
    model = tiny.llava()
    rows = [tiny.prompt(3, "image", 5, seed=1), tiny.prompt(2, "image", 9, seed=2)]
    answer = torch.randint(2, tiny.IMAGE_TOKEN, (2, 4))
    dense = teacher_forced_logits(model, tiny.batch(rows), answer)
    with fitprune.prune(model, tiny.RECIPE):
        pruned = teacher_forced_logits(model, tiny.batch(rows), answer)
    for at, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        whole = {**row, "input_ids": torch.cat([row["input_ids"], answer[at : at + 1, :-1]], 1)}
        with torch.no_grad():
            want = model(**whole).logits[0, length - 1 :]
        torch.testing.assert_close(dense[at], want, rtol=1e-4, atol=1e-4)
        spans = tiny.spans_of(row["input_ids"][0] == tiny.IMAGE_TOKEN)
        removed = tiny.dense_pruned(model, row, spans, tiny.RECIPE).removed  # by the prompt alone
        want = tiny.dense_pruned(model, whole, [], None, start=length, removed=removed).logits[length - 1 :]
        torch.testing.assert_close(pruned[at], want, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(pruned[at], dense[at], atol=1e-2)


def test_nothing_deleted_is_no_drift(followed: list[list[Drift]], small: VLM) -> None:
    for drifts in followed[:2]:
        for drift in drifts:
            assert drift.dense == drift.pruned
            assert not drift.first_changed
            assert max(drift.divergence_first, drift.divergence_answer) < 1e-9
            assert drift.cross == drift.intra == [1.0] * 9
            assert drift.alive == [144] * 9
    row = summarise(Choice("0%", None, ""), followed[0], small.cost)
    assert (row.answers.count, row.first_tokens.count, row.visual_reduction, row.prefill_reduction) == (0, 0, 0, 0)
    assert row.changed == []


def test_drift_is_what_the_parts_say(followed: list[list[Drift]], small: VLM) -> None:
    questions = read_questions(embedded().questions)[:9]
    row = summarise(Choice("x", HALF, ""), followed[2], small.cost)
    for question, drift in zip(questions, followed[2], strict=True):
        picture = embedded().images / str(question.image)
        assert drift.dense == small.ask(question.text, picture, max_new_tokens=8)
        with fitprune.prune(small.model, HALF):
            assert drift.pruned == small.ask(question.text, picture, max_new_tokens=8)
        assert drift.alive == [104, 104, 84, 84, 84, 74, 74, 74, 74]
        assert all(0 < share < 1 for share in drift.cross + drift.intra)
        if drift.first_changed:
            assert drift.divergence_first > 0
    assert row.visual_reduction == pytest.approx(small.cost.visual_reduction(list(HALF.deletions(144)), 144))
    assert row.answers.count == len(row.changed) == sum(d.dense != d.pruned for d in followed[2])
    assert all(entry["dense"] != entry["pruned"] for entry in row.changed)


def test_deleting_more_drifts_more(followed: list[list[Drift]], small: VLM) -> None:
    half, most = (summarise(Choice("", r, ""), d, small.cost) for r, d in ((HALF, followed[2]), (MOST, followed[3])))
    assert most.divergence_first.mean > half.divergence_first.mean
    assert most.visual_reduction > half.visual_reduction
    for less, more in ((most.cross, half.cross), (most.intra, half.intra)):
        assert all(a < b for a, b in zip(less, more, strict=True))


@pytest.mark.rest
def test_deleting_at_random_drifts_more(small: VLM) -> None:
    questions, rows = read_questions(embedded().questions)[:24], []
    recipe = Recipe.from_deletions([80, 0, 30, 0, 0, 10, 0, 0, 0], visual_tokens=144)
    for score in ("fitprune", "random"):
        (drifts,) = compare_to_dense(
            small, questions, str(embedded().images), [recipe], score=score, batch_size=8, max_new_tokens=4, progress=False
        )
        rows.append(summarise(Choice(score, recipe, ""), drifts, small.cost))
    ours, random = rows
    assert random.answers.count > ours.answers.count  # 12 and 5 when this was written
    assert random.divergence_first.mean > ours.divergence_first.mean
    assert random.divergence_answer.mean > ours.divergence_answer.mean
    assert random.cross[0] < ours.cross[0]
    assert random.alive == ours.alive


def test_batches_of_unlike_pictures_drift_as_singles() -> None:
    recorded = Recorded("llava_next")
    vlm = fitprune.load(str(recorded.checkpoint), device="cpu")
    recipe = Recipe.from_deletions([6, 4, 2], visual_tokens=16)
    questions = [
        Question(name, f"{name}.png", text)
        for name, text in (("wide", "Why?"), ("tall", "What is it that is shown here?"), ("tiny", "Where?"))
    ]
    batched, single = (
        compare_to_dense(vlm, questions, str(recorded.folder / "images"), [recipe], batch_size=size, max_new_tokens=4, progress=False)[0]
        for size in (3, 1)
    )
    assert len({drift.visual_tokens for drift in single}) > 1
    for one, other in zip(batched, single, strict=True):
        assert (one.dense, one.pruned, one.alive, one.text_tokens) == (other.dense, other.pruned, other.alive, other.text_tokens)
        assert one.alive == recipe.alive(one.visual_tokens, 3)
        assert one.cross == pytest.approx(other.cross, abs=1e-4)
        assert one.intra == pytest.approx(other.intra, abs=1e-4)
        assert one.divergence_answer == pytest.approx(other.divergence_answer, rel=1e-2, abs=1e-5)
        assert one.divergence_answer > 0


def test_advice_is_the_most_saving_row_within_the_threshold(followed: list[list[Drift]], small: VLM) -> None:
    row = summarise(Choice("50%", HALF, ""), followed[2], small.cost)
    rows = [
        dataclasses.replace(row, name=name, answers=wilson(count, 100), visual_reduction=saved)
        for name, count, saved in (("30%", 1, 0.3), ("50%", 5, 0.5), ("70%", 9, 0.7))
    ]
    dense = summarise(Choice("0%", None, ""), followed[0], small.cost)
    advised = advise([dense, *rows], 0.05)
    assert advised == rows[1]
    assert "50% is the largest" in advice(advised, 0.05)
    assert "interval reaches 11.2%" in advice(advised, 0.05)
    assert "interval" not in advice(rows[0], 0.06)
    assert advise([dense, *rows], 0.005) is None
    assert "none of these ratios changes at most 0.5%" in advice(None, 0.005)


# ---- command


def test_command_prints_a_table_and_keeps_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "questions.jsonl"
    lines = Path(embedded().questions).read_text().splitlines()[:5]
    asked.write_text("\n".join([*lines, json.dumps({"question_id": 1, "text": "Who are you?"})]))
    flags = ["report", "--question-file", str(asked), "--image-folder", str(embedded().images), "--samples", "4"]
    flags += ["--reduction-ratio", "0.7", "0.3", "--max-new-tokens", "6", "--json", str(tmp_path / "new" / "r.json")]
    assert main([*flags, "--at-most", "90%"]) == 0
    out = capsys.readouterr().out
    assert "left out: 1 without an image" in out
    assert "recipe fitted now on 4 samples" in out
    assert "ranked by spread" in out
    assert "5 questions" in out.partition(", pruned by score spread\n")[0]
    assert "advice: " in out
    figures = json.loads((tmp_path / "new" / "r.json").read_text())
    assert (figures["questions"], figures["without_picture"], figures["at_most"]) == (5, 1, 0.9)
    assert [row["name"] for row in figures["rows"]] == ["30%", "70%"]
    assert [len(row["cross"]) for row in figures["rows"]] == [9, 9]
    assert 0.3 <= figures["rows"][0]["visual_reduction"] <= 0.31
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]
    capsys.readouterr()


def test_the_papers_score_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--limit", "1", "--samples", "2", "--max-new-tokens", "2", "--score", "fitprune"]) == 0
    out = capsys.readouterr().out
    assert "pruned by score fitprune" in out
    assert "ranked by spread" not in out


@pytest.mark.rest
def test_schedules_are_chosen_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--limit", "2", "--samples", "8", "--max-new-tokens", "2", "--reduction-ratio", "0.8"]
    assert main(["report", *flags, "--by", "mass", "drift"]) == 0
    out = capsys.readouterr().out
    assert "by drift: at most " in out
    assert "\n80% by drift: recipe chosen by drift now on 8 samples" in out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("80%") and ":" not in line] == ["80%", "80% by drift"]


def test_command_takes_a_recipe_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HALF.save(tmp_path / "mine.recipe.json")
    flags = ["--limit", "2", "--max-new-tokens", "4", "--recipe", str(tmp_path / "mine.recipe.json")]
    assert main(["report", *flags]) == 0
    out = capsys.readouterr().out
    assert "mine.recipe: recipe from" in out
    assert "pruned by score fitprune" in out  # a file that names none is the paper's


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "text.jsonl"
    asked.write_text(json.dumps({"question_id": 1, "text": "Who are you?"}))
    assert main(["report", "--question-file", str(asked)]) == 2
    assert "no question with an image" in capsys.readouterr().err
    assert main(["report", "--json", str(tmp_path)]) == 2
    assert "cannot be written: name a file" in capsys.readouterr().err
    assert main(["report", "--json", str(asked / "r.json")]) == 2  # below a file
    assert "cannot be written: name a file" in capsys.readouterr().err
