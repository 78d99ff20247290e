"""The judge of recipes against `fitprune report`'s figures, its journal, and `fitprune fit --by drift` from end to end."""

import json
import re
from pathlib import Path

import pytest

import fitprune
from fitprune import Recipe
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.questions import Calibration
from fitprune.studies.against_dense import compare_to_dense
from fitprune.studies.judge import DriftJudge, journal_in

RECIPE = Recipe.step(layer=2, keep=0.2)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return fitprune.load("embedded", device="cpu")


def calibration(samples: int = 8) -> Calibration:
    return Calibration(embedded().calibration, embedded().calibration_images, samples, 4)


def test_it_says_what_the_report_says(vlm: VLM) -> None:
    judge = DriftJudge(vlm, calibration(6), max_new_tokens=5)
    recipes = [RECIPE, Recipe.step(layer=1, keep=0.5)]
    reported = compare_to_dense(
        vlm, judge.questions, calibration().image_folder, recipes, max_new_tokens=5, batch_size=4, progress=False
    )  # fmt: skip
    for recipe, rows in zip(recipes, reported, strict=True):
        assert judge(recipe, 0, len(judge)) == pytest.approx([row.divergence_answer for row in rows], rel=1e-5, abs=1e-7)
    assert judge(RECIPE, 2, 5) == pytest.approx([row.divergence_answer for row in reported[0][2:5]], rel=1e-3, abs=1e-6)
    assert judge(Recipe.none(vlm.cost.layers), 0, 4) == pytest.approx([0] * 4, abs=1e-9)


def test_scores_of_recipes_are_run(vlm: VLM) -> None:
    import dataclasses

    judge = DriftJudge(vlm, calibration(4))
    drifts = [judge(dataclasses.replace(RECIPE, score=score), 0, 4) for score in (None, "last", "spread theta=0.5", "random")]
    assert len({tuple(one) for one in drifts}) == 4


def test_a_journal_is_gone_on_from(vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "drift.jsonl"
    known = DriftJudge(vlm, calibration(), journal=path)(RECIPE, 0, 8)
    lines = path.read_text().splitlines()
    assert len(lines) == 3  # a head and two batches
    path.write_text("\n".join(lines)[:-5])  # torn
    again = DriftJudge(vlm, calibration(), journal=path)
    asked: list[int] = []
    original = again._drifts
    monkeypatch.setattr(again, "_drifts", lambda recipe, start, stop: asked.append(start) or original(recipe, start, stop))
    assert again(RECIPE, 0, 8) == known
    assert asked == [4]  # the torn line's alone
    assert [json.loads(line) for line in path.read_text().splitlines()] == [json.loads(line) for line in lines]


def test_journals_of_others_are_refused(vlm: VLM, tmp_path: Path) -> None:
    path = tmp_path / "drift.jsonl"
    DriftJudge(vlm, calibration(8), journal=path)
    with pytest.raises(FitPruneError, match="is about another model, other questions or settings"):
        DriftJudge(vlm, calibration(4), journal=path)
    path.write_text('{"drift": \n[1]\n')
    with pytest.raises(FitPruneError, match="line 1 is torn"):
        DriftJudge(vlm, calibration(8), journal=path)
    with pytest.raises(FitPruneError, match="as a journal"):
        DriftJudge(vlm, calibration(8), journal=tmp_path)


def test_a_folder_keeps_what_was_judged_of_each_by_itself(vlm: VLM, tmp_path: Path) -> None:
    """So that a fit on other questions goes beside one that was cut off."""
    paths = {journal_in(tmp_path, vlm, calibration(samples)) for samples in (4, 8)} | {journal_in(tmp_path, vlm, calibration(4), 2)}
    assert len(paths) == 3
    assert all(path.name.startswith("embedded.drift-") for path in paths)
    for asked in (calibration(4), calibration(8)):
        DriftJudge(vlm, asked, journal=journal_in(tmp_path, vlm, asked))  # is that one's
    assert len(list(tmp_path.iterdir())) == 2


def test_videos_are_judged_one_at_a_time(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"question_id": 1, "video": "film", "text": "Why?"}\n{"question_id": 2, "image": "a", "text": "W"}\n'
    )
    assert DriftJudge(vlm, Calibration(tmp_path / "q.jsonl", tmp_path, 4)).size == 1


def test_questions_without_images_cannot_be_judged(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "text": "Why?"}\n')
    with pytest.raises(FitPruneError, match="no question with an image"):
        DriftJudge(vlm, Calibration(tmp_path / "q.jsonl", tmp_path, 4))


@pytest.mark.rest
def test_fit_by_drift_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "recipes"
    command = ["fit", "--samples", "8", "--reduction-ratio", "0.7", "--output", str(output)]
    assert main(command) == 0
    said = capsys.readouterr().out
    file = output / "embedded-r70-drift.recipe.json"
    recipe = Recipe.load(file)
    expected, taken = (
        int(re.search(one, said)[1]) for one in (r"at most (\d+) pruned prefills for 70%,", r"after (\d+) pruned prefills; within")
    )
    assert expected == taken
    assert re.search(r"about \d+ (seconds|minutes) at the speed of observing", said)
    assert said.index("by drift: at most") < said.index("chosen by drift (") < said.index(str(list(recipe.counts)))
    assert f"saved as {file}" in said
    assert recipe.score
    assert recipe.score.startswith("spread")
    assert recipe.achieved
    assert recipe.achieved >= 0.7
    first = file.read_bytes()
    assert main([*command, "--by", "drift"]) == 0  # from the journal
    assert file.read_bytes() == first
    capsys.readouterr()
    eval_one = ["eval", "--recipe", str(file), "--limit", "4", "--no-dense", "--output", str(tmp_path / "eval")]
    assert main(eval_one) == 0
    assert f"ranked by {recipe.score}" in capsys.readouterr().out
    (answers,) = (tmp_path / "eval").glob("*.jsonl")
    assert json.loads(answers.read_text().splitlines()[0])["metadata"]["score"] == recipe.score


@pytest.mark.rest
def test_eval_by_both_ways_goes_on_and_searches_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--samples", "8", "--limit", "4", "--max_new_tokens", "4", "--reduction-ratio", "0.7", "--output", str(tmp_path)]
    assert main(["eval", *flags, "--by", "mass", "drift", "--fit-only"]) == 0
    assert "by drift: at most" in capsys.readouterr().out
    (tmp_path / "embedded-r70-drift.recipe.json").rename(tmp_path / "first.json")
    assert main(["eval", *flags, "--by", "mass", "drift"]) == 0  # from the journal, which lies beside the recipes
    assert "chosen by drift now" in capsys.readouterr().out
    first, kept = (Recipe.load(tmp_path / name) for name in ("first.json", "embedded-r70-drift.recipe.json"))
    assert vars(first) == vars(kept)
    rows = [row["name"] for row in json.loads((tmp_path / "results.json").read_text())]
    assert rows == ["dense", "70% fitprune", f"70% recommended ({kept.score}, by drift)"]
    answers = {path.name: path.read_text() for path in tmp_path.glob("embedded-*.jsonl")}
    assert len(answers) == 3
    assert main(["eval", *flags, "--by", "mass", "drift"]) == 0
    out = capsys.readouterr().out
    assert "chosen by drift earlier on 8 samples" in out
    assert "at most" not in out
    assert main(["eval", *flags]) == 0  # the paper's alone goes on with its own
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())] == ["dense", "70%"]
    assert {path.name: path.read_text() for path in tmp_path.glob("embedded-*.jsonl")} == answers


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--by", "mass", "--score", "last"], "fit by drift (--by drift)"),
        (["--from-stats", "s", "--score", "last"], "fit by drift (--by drift)"),
        (["--by", "drift", "--from-stats", "s"], "leave out --from-stats"),
        (["--by", "drift", "--replay"], "has no --by"),
        (["--by", "drift", "--score", "lost"], "unknown score"),
    ],
)
def test_what_does_not_go_together_is_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(["fit", *more]))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
