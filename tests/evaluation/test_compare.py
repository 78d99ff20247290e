"""Dense against pruned on questions whose images take unlike numbers of visual tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multimodal import Recorded

import fitprune
from fitprune.calibrate import Calibration
from fitprune.evaluation.benchmark import Benchmark, Result
from fitprune.evaluation.chunks import chunk_file
from fitprune.evaluation.compare import answer_chunk, compare, plan
from fitprune.evaluation.rows import Row, standard_error, table
from fitprune.images.reading import read_image
from fitprune.questions import read_questions

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


def test_compute_is_summed_over_unlike_images(asked: Path, tmp_path: Path) -> None:
    vlm = fitprune.load(str(RECORDED.checkpoint), device="cpu")
    images, questions = RECORDED.folder / "images", read_questions(asked)
    calibration = Calibration(asked, images, 4)
    plans = plan(vlm, questions, tmp_path, ratios=[0.4], scores=["fitprune", "random"], calibration=calibration)
    rows = compare(vlm, plans, questions, images, tmp_path, batch_size=3, max_new_tokens=3)
    recipe = fitprune.Recipe.load(next(tmp_path.glob("*.recipe.json")))
    flops, macs = [0.0, 0.0], [0.0, 0.0]
    counts = []
    for question in questions:
        image = read_image(images / str(question.image))
        visual = vlm.tokens_for(image)
        text = len(vlm.token_ids(vlm.prompt(question.text), [image])) - visual
        counts.append(visual)
        for at, alive in enumerate(([visual] * 3, recipe.alive(visual, 3))):
            flops[at] += sum(vlm.cost.prefill_flops(alive, visual, text))
            macs[at] += sum(vlm.cost.visual_macs(alive, visual))
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
    again = compare(vlm, plans[:2], questions, images, tmp_path, batch_size=3, max_new_tokens=3)
    assert again[1].milliseconds is None  # nothing left to answer
    assert again[1].alive == pytest.approx(kept)


class Even:
    """A judge to whom all schedules are alike."""

    def __len__(self) -> int:
        return 8

    def __call__(self, recipe: fitprune.Recipe, first: int, last: int) -> list[float]:
        return [0.5] * (last - first)


def test_rows_say_whose_method_they_are(asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlm = fitprune.load(str(RECORDED.checkpoint), device="cpu")
    (tmp_path / "eight.jsonl").write_text(f"{asked.read_text()}\n" * 2)
    calibration = Calibration(tmp_path / "eight.jsonl", RECORDED.folder / "images", 8)

    def names(by: tuple[str, ...], *scores: str | None) -> dict[str, str]:
        settings = {"ratios": [0.4], "scores": scores or [None], "calibration": calibration, "by": by, "judge": Even}
        made = plan(vlm, read_questions(asked), tmp_path, **settings)
        return {one.name: one.stem.removeprefix("checkpoint-") for one in made}

    assert names(("mass",)) == {"dense": "dense", "40%": "40"}
    both = names(("mass", "drift"))
    assert both == {"dense": "dense", "40% fitprune": "40", "40% recommended (spread theta=0.25, by drift)": "40-by-drift"}
    assert "by drift: at most" in capsys.readouterr().out
    assert names(("drift",), "random") == {"dense": "dense", "40% by drift, random": "40-by-drift-random"}
    assert names(("mass", "drift"), None) == both
    assert "by drift: at most" not in capsys.readouterr().out  # kept
    assert {path.name for path in tmp_path.glob("*.recipe.json")} == {"checkpoint-r40.recipe.json", "checkpoint-r40-drift.recipe.json"}


def by_length(data: Path, answers: Path, out: Path) -> Result:
    """Scores the length of the answers; refuses a folder that is not the benchmark's."""
    assert (data / "lengths.txt").exists()
    lengths = [len(json.loads(line)["text"]) for line in answers.read_text().splitlines()]
    return Result(sum(lengths), {"longest": max(lengths)}, f"{answers.name}: {lengths}", written=(out / answers.name,))


LENGTHS = Benchmark("lengths", "Lengths", "lengths", "q.jsonl", "images", "letters", (), by_length)


@pytest.mark.parametrize("num_chunks", [2, 3])
def test_chunks_give_the_answers_and_scores_of_one_run(asked: Path, tmp_path: Path, num_chunks: int) -> None:
    vlm = fitprune.load(str(RECORDED.checkpoint), device="cpu")
    images, questions = RECORDED.folder / "images", read_questions(asked)
    (tmp_path / "lengths.txt").write_text("")
    plans = plan(vlm, questions, tmp_path, ratios=[0.4], scores=["fitprune"], calibration=Calibration(asked, images, 2))
    settings = {"benchmark": LENGTHS, "data": tmp_path, "max_new_tokens": 3}
    alone = compare(vlm, plans, questions, images, tmp_path / "one", **settings)
    parts = tmp_path / "parts"
    for index in reversed(range(num_chunks)):  # of four questions in three chunks the last has none
        with pytest.raises(fitprune.FitPruneError, match="--chunk-idx"):  # until all are there
            compare(vlm, plans, questions, images, parts, num_chunks=num_chunks, **settings)
        answer_chunk(vlm, plans, questions, images, parts, num_chunks=num_chunks, chunk_idx=index, max_new_tokens=3)
    joined = compare(vlm, plans, questions, images, parts, num_chunks=num_chunks, **settings)
    assert [row.name for row in joined] == ["dense", "40%"]
    for one, many, planned in zip(alone, joined, plans, strict=True):
        merged = parts / planned.stem / "merge.jsonl"
        assert many.answers == str(merged)
        assert many.written == [str(parts / planned.stem / "upload" / "merge.jsonl")]
        assert one.written == [str(tmp_path / "one" / "upload" / f"{planned.stem}.jsonl")]
        keys = ("question_id", "prompt", "text", "metadata")
        lines = [
            [[entry[key] for key in keys] for entry in map(json.loads, file.read_text().splitlines())]
            for file in (merged, Path(one.answers))
        ]
        assert lines[0] == lines[1]
        assert many.headline == one.headline
        assert many.questions == one.questions == len(questions)
        assert many.details == one.details
        assert many.alive == pytest.approx(one.alive)
        assert many.prefill_gflops == one.prefill_gflops
    kept = json.loads((parts / "results.json").read_text())
    assert [(row["benchmark"], row["metric"]) for row in kept] == [("lengths", "letters")] * 2
    assert [row["details"] for row in kept] == [row.details for row in joined]
    whole = merged.read_text()  # torn by a crash, a chunk is continued and the whole is the same again
    last = chunk_file(merged.parent, num_chunks, 1)
    last.write_text(last.read_text()[:-30])
    answer_chunk(vlm, plans, questions, images, parts, num_chunks=num_chunks, chunk_idx=1, max_new_tokens=3)
    compare(vlm, plans, questions, images, parts, num_chunks=num_chunks, **settings)
    again = [json.loads(line)["text"] for line in merged.read_text().splitlines()]
    assert again == [json.loads(line)["text"] for line in whole.splitlines()]


@pytest.mark.parametrize("index", [-1, 2])
def test_a_chunk_that_is_not_there(index: int, asked: Path, tmp_path: Path) -> None:
    vlm = fitprune.load(str(RECORDED.checkpoint), device="cpu")
    with pytest.raises(fitprune.FitPruneError, match="from 0 to 1"):
        answer_chunk(vlm, [], read_questions(asked), tmp_path, tmp_path, num_chunks=2, chunk_idx=index)


def row(name: str, metric: str | None, headline: float | None, *written: str) -> Row:
    return Row(name, "some", metric, headline, None, 8, {}, 0.0, 1.0, 0.0, 4.0, [], None, "", list(written), "")


def test_the_column_is_the_benchmarks() -> None:
    scored = table([row("dense", "mean F1, %", 85.321), row("60%", "mean F1, %", None)]).splitlines()
    at = scored[0].index("mean F1, %")
    assert [line[at : at + 10].rstrip() for line in scored] == ["mean F1, %", "----------", "85.32", "-"]
    handed_in = table([row("dense", "xlsx for a server", None, "runs/upload/llava-dense.xlsx")])
    assert "xlsx for a server" in handed_in
    assert "  llava-dense.xlsx  " in handed_in
    assert table([row("dense", None, None)]).split()[1] == "visual"  # nothing was scored: no column


def worth(*values: float, headline: float | None = None) -> Result:
    """Scored by the mean unless said otherwise."""
    return Result(100 * sum(values) / len(values) if headline is None else headline, per_answer=list(values))


@given(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=2, max_size=40))
def test_the_standard_error_is_numpys(values: list[float]) -> None:
    found = standard_error(worth(*values))
    if len(set(values)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(100 * np.std(values, ddof=1) / len(values) ** 0.5)


def test_the_standard_error_by_hand_and_where_there_is_none() -> None:
    assert standard_error(worth(*[1.0] * 80, *[0.0] * 20)) == pytest.approx(100 * (0.8 * 0.2 / 99) ** 0.5)
    assert standard_error(worth(1.0, 0.0, 1.0, headline=67.0)) is None  # F1, a score of two parts, …
    assert standard_error(Result(50.0)) is None
    assert standard_error(Result(None, per_answer=[1.0, 0.0])) is None
    assert standard_error(Result(0.0, per_answer=[])) is None


def test_the_standard_error_stands_behind_the_headline() -> None:
    dense, pruned = row("dense", "accuracy, %", 85.0), row("60%", "accuracy, %", 80.0)
    assert "±" not in table([dense, pruned])
    dense.standard_error = 3.456
    head, _, *lines = table([dense, pruned]).splitlines()
    assert head.split()[:4] == ["run", "accuracy,", "%", "±"]
    assert [line.split()[:3] for line in lines[:2]] == [["dense", "85.00", "3.46"], ["60%", "80.00", "-"]]


def test_only_the_size_of_an_image_is_read(tmp_path: Path) -> None:
    read_image(RECORDED.folder / "images" / "wide.png").save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert read_image(tmp_path / "half.png", pixels=False).size == (200, 60)
    with pytest.raises(fitprune.FitPruneError, match=r"half\.png"):
        read_image(tmp_path / "half.png")
