"""Dense against pruned on questions whose pictures take unlike numbers of visual tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from multimodal import Recorded

import fitprune
from fitprune.calibrate import Calibration
from fitprune.evaluation.compare import compare, table
from fitprune.evaluation.questions import read_questions
from fitprune.families.loaded import read_image

RECORDED = Recorded("llava_next")
PICTURES = ("wide", "tall", "square", "tiny")
TEXTS = ("Why?", "What is it that is shown here?", "Who?", "Where?")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    lines = [
        json.dumps({"question_id": name, "image": f"{name}.png", "text": text, "category": "default"})
        for name, text in zip(PICTURES, TEXTS, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


def test_compute_is_summed_over_unlike_pictures(asked: Path, tmp_path: Path) -> None:
    loaded = fitprune.load(str(RECORDED.checkpoint), device="cpu")
    images, questions = RECORDED.folder / "images", read_questions(asked)
    rows = compare(
        loaded, questions, images, tmp_path, annotations=None, ratios=[0.4], scores=["fitprune", "random"],
        calibration=Calibration(asked, images, 4), batch_size=3, max_new_tokens=3,
    )  # fmt: skip
    recipe = fitprune.Recipe.load(next(tmp_path.glob("*.recipe.json")))
    flops, macs = [0.0, 0.0], [0.0, 0.0]
    counts = []
    for question in questions:
        image = read_image(images / str(question.image))
        visual = loaded.tokens_for(image)
        text = len(loaded.token_ids(loaded.prompt(question.text), [image])) - visual
        counts.append(visual)
        for at, alive in enumerate(([visual] * 3, recipe.alive(visual, 3))):
            flops[at] += sum(loaded.cost.prefill_flops(alive, visual, text))
            macs[at] += sum(loaded.cost.visual_macs(alive, visual))
    assert len(set(counts)) == len(PICTURES)
    dense, pruned, random = rows
    assert dense.prefill_gflops == pytest.approx(flops[0] / 4e9)
    assert pruned.prefill_gflops == random.prefill_gflops == pytest.approx(flops[1] / 4e9)
    assert pruned.prefill_reduction == pytest.approx(1 - flops[1] / flops[0])
    assert pruned.visual_reduction == pytest.approx(1 - macs[1] / macs[0])
    assert dense.visual_tokens == pruned.visual_tokens == sum(counts) / 4
    kept = [sum(recipe.alive(count, 3)[layer] for count in counts) / 4 for layer in range(3)]
    assert pruned.alive == pytest.approx(kept)  # from the trace, and so what was really kept
    assert "40% random" in table(rows)
    again = compare(
        loaded, questions, images, tmp_path, annotations=None, ratios=[0.4], scores=["fitprune"],
        calibration=Calibration(asked, images, 4), batch_size=3, max_new_tokens=3,
    )  # fmt: skip
    assert again[1].milliseconds is None  # nothing left to answer
    assert again[1].alive == pytest.approx(kept)


def test_only_the_size_of_a_picture_is_read(tmp_path: Path) -> None:
    read_image(RECORDED.folder / "images" / "wide.png").save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert read_image(tmp_path / "half.png", pixels=False).size == (200, 60)
    with pytest.raises(fitprune.FitPruneError, match=r"half\.png"):
        read_image(tmp_path / "half.png")
