"""Commands shared by two and three processes (gloo) write what one process writes, also when one of them was killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from processes import free_port, together
from safetensors import safe_open

from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.evaluation import loader
from fitprune.families import VLM

ROOT = Path(__file__).parents[2]
ORIGINAL = ROOT / "tests" / "parity" / "llava15" / "checkpoint"
EVAL = ["eval", "--limit", "11", "--samples", "5", "--batch-size", "2", "--max-new-tokens", "4", "--output"]
REPORT = ["report", "--limit", "5", "--samples", "3", "--batch-size", "2", "--reduction-ratio", "0.6", "--max-new-tokens", "4"]


def ran(argv: list[str], command: Callable[[list[str]], int] = main) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    out, errors = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = command(argv)
    return code, out.getvalue(), errors.getvalue()


def written(folder: Path) -> dict[str, Any]:
    """Every file, less what is drawn at random, what a stop-watch says, and where the folder is."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name] = [{**line, "answer_id": ""} if "answer_id" in line else line for line in lines]
        elif path.name == "results.json":
            rows = json.loads(path.read_text())
            found[path.name] = [{k: v for k, v in row.items() if k not in ("milliseconds", "answers")} for row in rows]
        elif path.suffix == ".safetensors":  # whose header has its keys in any order
            with safe_open(path, "pt") as file:
                found[path.name] = file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    assert main([*EVAL, str(folder)]) == 0
    return written(folder)


def own_folders(size: int, folder: Path, argv: list[str], command: Callable[[list[str]], int] = main) -> list[tuple[int, str, str]]:
    """Runs a command, each process with an output folder (its last argument) of its own, as on machines without a common one."""
    found = together(size, lambda rank: ran([*argv, str(folder / str(rank))], command))
    assert not any((folder / str(rank)).exists() for rank in range(1, size))  # only the first one writes
    assert all(out == "" for _, out, _ in found[1:])
    return found


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.rest)])
def test_eval_writes_what_one_process_writes(size: int, alone: dict[str, Any], tmp_path: Path) -> None:
    found = own_folders(size, tmp_path, EVAL)
    assert [code for code, _, _ in found] == [0] * size
    assert written(tmp_path / "0") == alone  # recipe, answers, scores
    assert "accuracy" in found[0][1]
    assert all("answering" not in errors and "observing" not in errors for _, _, errors in found[1:])


@pytest.mark.rest
@pytest.mark.parametrize(("gone", "then"), [(0, 3), (1, 2), (1, 1)])
def test_a_killed_process_and_a_rerun_lose_and_repeat_nothing(
    gone: int, then: int, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, asked = VLM.generate, [0]

    def killed(vlm: VLM, inputs: dict[str, Any], **options: Any) -> list[str]:
        asked[0] += options["max_new_tokens"] > 1
        if asked[0] == 3 and os.environ["RANK"] == str(gone):
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(vlm, inputs, **options)

    monkeypatch.setattr(VLM, "generate", killed)
    first = together(2, lambda rank: ran([*EVAL, str(tmp_path)]))
    monkeypatch.setattr(VLM, "generate", generate)
    assert first[gone] is None
    code, _, errors = first[1 - gone]
    assert code == 2
    assert "has stopped" in errors
    before = written(tmp_path)["embedded-dense-first11.jsonl"]
    assert before == alone["embedded-dense-first11.jsonl"][:8]  # two rounds of two batches of two

    def count(vlm: VLM, inputs: dict[str, Any], **options: Any) -> list[str]:
        asked[0] += len(inputs["input_ids"]) * (options["max_new_tokens"] > 1)
        return generate(vlm, inputs, **options)

    def again(rank: int) -> int:
        asked[0] = 0
        assert ran([*EVAL, str(tmp_path)])[0] == 0
        return asked[0]

    monkeypatch.setattr(VLM, "generate", count)
    questions = together(then, again)
    assert sum(questions) == 2 * 11 - 8
    assert written(tmp_path) == alone


@pytest.mark.rest
@pytest.mark.parametrize(("by", "samples"), [("mass", "7"), ("drift", "8")])
def test_fit_with_and_without_company(by: str, samples: str, tmp_path: Path) -> None:
    flags = ["fit", "--by", by, "--samples", samples, "--batch-size", "2", "--reduction-ratio", "0.8", "0.9"]

    def fit(folder: Path) -> list[str]:
        return [*flags, "--output", str(folder), "--stats", str(folder / "stats.safetensors")]

    assert ran(fit(tmp_path / "one"))[0] == 0
    found = together(3, lambda rank: ran(fit(tmp_path / "three")))
    assert [code for code, _, _ in found] == [0, 0, 0]
    assert found[0][1].count("saved as") == 3
    assert found[1][1] == found[2][1] == ""
    one, three = written(tmp_path / "one"), written(tmp_path / "three")
    assert len(one) == 3 + (by == "drift")  # with what was judged
    assert one == three  # statistics to the bit, with the fingerprint of the whole set


@pytest.mark.rest
def test_eval_by_both_ways_with_and_without_company(tmp_path: Path) -> None:
    flags = [
        "eval",
        "--by",
        "mass",
        "drift",
        "--samples",
        "8",
        "--limit",
        "3",
        "--reduction-ratio",
        "0.9",
        "--max-new-tokens",
        "4",
        "--output",
    ]
    code, out, errors = ran([*flags, str(tmp_path / "one")])
    assert (code, out.count("by drift: at most"), out.count("chosen by drift now")) == (0, 1, 1), errors
    found = own_folders(2, tmp_path / "two", flags)
    assert [code for code, _, _ in found] == [0, 0], found
    assert found[0][1].count("by drift: at most") == 1
    one = written(tmp_path / "one")
    assert one == written(tmp_path / "two" / "0")  # recipes of both ways, the journal, answers, scores
    assert sum("drift" in name for name in one) == 3


@pytest.mark.rest
def test_report_is_the_same(tmp_path: Path) -> None:
    assert ran([*REPORT, "--json", str(tmp_path / "one.json")])[0] == 0
    found = own_folders(2, tmp_path, [*REPORT, "--json"])
    assert [code for code, _, _ in found] == [0, 0]
    assert (tmp_path / "one.json").read_text() == (tmp_path / "0").read_text()


@pytest.mark.rest
def test_the_authors_loader(tmp_path: Path) -> None:
    flags = ["--reduction_ratio", "60", "--samples", "3", "--num-chunks", "60", "--max_new_tokens", "4", "--answers-file"]
    assert ran([*flags, str(tmp_path / "one" / "a.jsonl")], loader.main)[0] == 0
    found = own_folders(2, tmp_path / "two", flags, loader.main)
    assert [code for code, _, _ in found] == [0, 0]
    two = [json.loads(line)["text"] for line in (tmp_path / "two" / "0").read_text().splitlines()]
    assert [line["text"] for line in written(tmp_path / "one")["a.jsonl"]] == two != []


@pytest.mark.rest
@pytest.mark.parametrize("more", [[], ["--temperature", "0.8"]])
def test_one_model_between_two_processes(more: list[str], alone: dict[str, Any], tmp_path: Path) -> None:
    found = own_folders(2, tmp_path, [EVAL[0], "--tensor-parallel", *more, *EVAL[1:]])
    assert [code for code, _, _ in found] == [0, 0], found
    same = written(tmp_path / "0")
    assert same.keys() == alone.keys()
    if not more:
        assert {name: same[name] for name in alone if "jsonl" in name} == {n: alone[n] for n in alone if "jsonl" in n}


@pytest.mark.rest
def test_processes_with_other_questions_are_told(tmp_path: Path) -> None:
    lines = embedded().questions.read_text().splitlines()[:8]
    for rank in range(2):
        (tmp_path / f"{rank}.jsonl").write_text("\n".join(lines[: 8 - 4 * rank]))

    def run(rank: int) -> tuple[int, str, str]:
        files = ["--question-file", str(tmp_path / f"{rank}.jsonl"), "--image-folder", str(embedded().images)]
        return ran([*EVAL, str(tmp_path / "out"), *files, "--calibration-file", str(embedded().questions), "--no-dense"])

    found = together(2, run)
    assert [code for code, _, _ in found] == [2, 2]
    assert "".join(errors for _, _, errors in found).count("different questions") == 1


@pytest.mark.rest
@pytest.mark.parametrize("more", [[], ["--tensor-parallel"]], ids=["data", "tensor"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_picture_that_one_process_cannot_read_is_skipped_by_all(strict: bool, more: list[str], tmp_path: Path) -> None:
    name = json.loads(embedded().questions.read_text().splitlines()[2])["image"]
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        for picture in embedded().images.iterdir():
            if picture.name != name or not rank:
                (tmp_path / str(rank) / picture.name).symlink_to(picture)

    def run(rank: int) -> tuple[int, str, str]:
        given = ["--question-file", str(embedded().questions), "--image-folder", str(tmp_path / str(rank)), *more, *["--strict"] * strict]
        return ran([*EVAL, str(tmp_path / "out"), *given, "--reduction-ratio", "0", "--limit", "6"])

    found = together(2, run)
    assert [code for code, _, _ in found] == [2 * strict] * 2
    said, errors = ("".join(found[rank][part] for rank in range(2)) for part in (1, 2))
    if strict:
        assert errors.count("no image") == 1
    else:
        assert said.count("skipped: question") == 3  # all are about it
        assert said.count("skipped: 3 of 6 questions") == 1


@pytest.mark.rest
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*EVAL, "OUT", "--num-chunks", "2"], "leave it out"),
        (["show", "llava-v1.5-7b", "0.6"], "fitprune show runs in one process"),
        (["fit", "--from-stats", "x"], "runs in one process"),
        (["fit", "--replay"], "--replay runs in one process"),
        (["fit", "--tensor-parallel", "--model-path", str(ORIGINAL)], "convert it first"),
        (["fit", "--tensor-parallel", "--device-map", "auto"], "leave out --device-map"),
        (["fit", "--tensor-parallel", "--device", "cpu"], "leave out --device"),
        (["fit", "--device-map", "auto"], "without torchrun"),
        ([*EVAL, "OUT", "--question-file", "nowhere.jsonl"], "nowhere.jsonl"),
        ([*EVAL, "OUT", "--reduction-ratio", "1.7"], "1.7"),
        ([*EVAL, str(ROOT / "README.md")], "is a file"),
        ([*EVAL, "OUT", "--question-file", "QUESTIONS", "--image-folder", "IMAGES", "--strict"], "no image"),
    ],
)
def test_bad_input_is_said_once(argv: list[str], said: str, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    lines = embedded().questions.read_text().splitlines()[:5]
    questions.write_text("\n".join([*lines[:4], json.dumps({**json.loads(lines[4]), "image": "nowhere.jpg"})]))
    places = {"OUT": str(tmp_path), "QUESTIONS": str(questions), "IMAGES": str(embedded().images)}
    argv = [places.get(part, part) for part in argv]

    def run(rank: int) -> tuple[int, str]:
        errors = StringIO()
        try:
            with redirect_stderr(errors), redirect_stdout(StringIO()):
                return main(argv), errors.getvalue()
        except SystemExit as exit:  # argparse's way
            return int(str(exit.code)), errors.getvalue()

    found = together(2, run)
    assert [code for code, _ in found] == [2, 2]
    assert "".join(errors for _, errors in found).count(said) == 1


@pytest.mark.rest
def test_torchrun_itself(alone: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "-m", "fitprune", *EVAL, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path) == alone
    assert done.stdout.count("accuracy, %") == 1


SWEEP = ["sweep", "--ratios", "0,60", "--methods", "fastv", "--benchmarks", "textvqa,gqa", "--samples", "5", "--limit", "5"]
SWEEP += ["--batch-size", "2", "--max-new-tokens", "4", "--ablate", "samples=2,5", "--output"]


def figures(folder: Path) -> list[dict[str, Any]]:
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    return [{k: v for k, v in run.items() if k not in ("milliseconds", "timed", "answers", "written")} for run in runs]


@pytest.mark.rest
def test_a_sweep_killed_and_continued_by_another_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran([*SWEEP, str(tmp_path / "one")])[0] == 0
    generate, asked = VLM.generate, [0]

    def killed(vlm: VLM, inputs: dict[str, Any], **options: Any) -> list[str]:
        asked[0] += options["max_new_tokens"] > 1
        if asked[0] == 7 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return generate(vlm, inputs, **options)

    monkeypatch.setattr(VLM, "generate", killed)
    assert together(2, lambda rank: ran([*SWEEP, str(tmp_path / "two")]))[1] is None
    monkeypatch.setattr(VLM, "generate", generate)
    cut = {name: lines for name, lines in written(tmp_path / "two").items() if name.endswith(".jsonl")}
    assert 1 < len(cut) < len(list((tmp_path / "one").glob("*.jsonl")))
    found = together(3, lambda rank: ran([*SWEEP, str(tmp_path / "two")]))
    assert [code for code, _, _ in found] == [0, 0, 0]
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert {name: two[name] for name in one if name.endswith("jsonl")} == {n: one[n] for n in one if n.endswith("jsonl")}
    assert one.keys() == two.keys()
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    assert "from an earlier run" in found[0][1]
    assert found[1][1] == ""
