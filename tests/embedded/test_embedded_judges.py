"""The table of all judges: answers are kept and gone on from, features are made once, differences are taken picture by picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import fitprune
from embedded import judges
from embedded.judged import Judged, summary, table
from embedded.judges import features_once, judge
from embedded.models import MODELS
from fitprune import FitPruneError

DENSE = "dense", 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def judged(folder: Path) -> Judged:
    return judge(MODELS["llava"], ["fitprune", "vtw"], [0.5, 0.9], 2, folder, samples=8, device="cpu")


def test_every_method_answers_every_picture(judged: Judged) -> None:
    assert list(judged.right) == [DENSE, ("fitprune", 0.5), ("vtw", 0.5), ("fitprune", 0.9), ("vtw", 0.9)]
    assert judged.questions == sum(map(len, judged.right[DENSE])) > 20
    assert judged.share(DENSE) > 0.8 > judged.share(("vtw", 0.9))


def test_answers_are_those_of_the_model_asked_by_itself(judged: Judged) -> None:
    """Without shared features, one question after the other."""
    llava = fitprune.load("embedded", device="cpu")
    right = []
    for picture, question in judges._questions(MODELS["llava"], 1):
        inputs = judges.encoded(llava, [(picture, question)], "left")
        right.append(llava.generate(inputs, max_new_tokens=judges.MAX_NEW_TOKENS) == [question.answer])
    assert right == judged.right[DENSE][1]


def test_a_rerun_goes_on_where_it_stopped(judged: Judged, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "embedded.answers.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:7])  # two answers lost, one line torn
    asked: list[Any] = []
    monkeypatch.setattr(judges, "encoded", lambda *args: asked.append(args) or judges_encoded(*args))
    again = judge(MODELS["llava"], ["fitprune", "vtw"], [0.5, 0.9], 2, folder, samples=8, device="cpu")
    assert again.right == judged.right
    assert len(asked) == 1  # one picture's questions
    assert sorted(path.read_text().splitlines()) == sorted(lines)


judges_encoded = judges.encoded


def test_what_a_model_cannot_do_is_left_out_and_said(tmp_path: Path) -> None:
    found = judge(MODELS["hr"], ["downsample", "last"], [0.5], 1, tmp_path, samples=8, device="cpu")
    assert list(found.right) == [DENSE, ("last", 0.5)]
    assert any(note.startswith("downsample at 50%: ") for note in found.notes)


def test_answers_of_another_model_are_refused(folder: Path, judged: Judged) -> None:
    path = folder / "embedded.answers.jsonl"
    kept = path.read_text()
    path.write_text("\n".join([json.dumps({"weights": "another"}), *kept.splitlines()[1:]]) + "\n")
    with pytest.raises(FitPruneError, match="another model"):
        judge(MODELS["llava"], ["fitprune"], [0.5], 1, folder, samples=8, device="cpu")
    path.write_text(kept)


def test_features_of_the_same_pixels_are_made_once_and_taken_back() -> None:
    llava = fitprune.load("embedded", device="cpu")
    base: Any = llava.model.base_model
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1

    base.vision_tower.register_forward_hook(count)
    questions = judges._questions(MODELS["llava"], 0)[:2]
    with torch.no_grad(), features_once(llava):
        for pair in (questions, questions, questions[:1]):
            llava.generate(judges.encoded(llava, pair, "left"), max_new_tokens=2)
    assert made == 2  # for two rows, and for one
    assert "get_image_features" not in vars(base)


def test_differences_are_taken_picture_by_picture() -> None:
    right = {
        DENSE: [[True] * 4] * 3,
        ("a", 0.5): [[True, True, False, False]] * 3,
        ("b", 0.5): [[True] * 4, [True, False, False, False], [True] * 4],
    }
    found = Judged("m", right, [])
    assert found.above(DENSE, ("a", 0.5)) == (0.5, 0)  # the same in every picture
    more, error = found.above(("b", 0.5), ("a", 0.5))
    assert more == pytest.approx(0.25)
    assert error == pytest.approx(math.sqrt(3 * (1 / 4) ** 2) / math.sqrt(3))  # gains of 1/2, -1/4, 1/2


def test_the_table_says_what_is_lost_and_by_whom_it_is_beaten() -> None:
    good, bad = [[True] * 9 + [False]] * 8, [[True] * 5 + [False] * 5] * 8
    right = {DENSE: good, ("fitprune", 0.5): bad, ("last", 0.5): good, ("spread", 0.5): bad, ("drift", 0.5): bad}
    text = table(found := Judged("m", right, ["fastv: out of reach"]))
    assert "| 50% | 50.0 | 90.0 | 50.0 | 50.0 |" in text
    assert "drift loses 40.0 ± 0.0 points; significantly above it: last by 40.0 ± 0.0" in text
    assert "fastv: out of reach" in text
    assert summary([found]).splitlines()[-1] == "| `m` | 90.0 | 50% | 50.0 | 90.0 (last) | **50.0** |"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--models", "nobody"], ["--methods", "nothing"], ["--methods", "drift wrong=1"], ["--ratios", "0"]):
        assert judges.main([*more, "--output", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 10


@pytest.mark.rest
def test_the_command_judges_by_drift_on_crowded_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--ratios", "70", "--pictures", "2", "--samples", "8", "--output", str(tmp_path)]
    assert judges.main(["--models", "embedded/judge", "--methods", "fitprune", "last", "drift", *few]) == 0
    out = capsys.readouterr().out
    assert "| saved | fitprune | last | drift |" in out
    assert "drift at 70%: chosen by drift" in out
    assert (tmp_path / "judge.drift.jsonl").exists()
    assert (tmp_path / "calibration-cluttered").is_dir()
