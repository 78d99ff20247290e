"""The commands that people's scripts and the paper's README use, each by subprocess from the family's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitprune import load
from fitprune.embedded import embedded

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "LLaVA_1.5"


def call(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [str(part) for part in command], cwd=FOLDER, env=variables, capture_output=True, text=True, timeout=300
    )


def test_textvqa_sh_with_nothing_given(tmp_path: Path) -> None:
    done = call("bash", "scripts/v1_5/eval/textvqa.sh", OUTPUT=str(tmp_path), EXTRA="--limit 10 --samples 6")
    assert done.returncode == 0, done.stderr
    for part in (
        "recipe fitted now",
        "dense",
        "60%",
        "accuracy",
        "visual tokens alive after each layer",
        "ms/question",
        "GFLOPs",
    ):
        assert part in done.stdout
    assert len((tmp_path / "embedded-60-first10.jsonl").read_text().splitlines()) == 10


def test_textvqa_sh_takes_model_data_and_ratio(tmp_path: Path) -> None:
    done = call(
        "bash", "scripts/v1_5/eval/textvqa.sh", embedded().model, embedded().data / "textvqa", "0.4", OUTPUT=str(tmp_path / "out"),
        EXTRA="--samples 4 --limit 6 --conv-mode vicuna_v1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "40%" in done.stdout
    assert "model on 6 questions" in done.stdout


def test_loader_then_scorer_as_modules(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    done = call(
        sys.executable, "-m", "llava.eval.model_vqa_loader", "--model-path", "embedded", "--answers-file", answers,
        "--num-chunks", "40", "--temperature", "0", "--conv-mode", "vicuna_v1", "--reduction_ratio", "60", "--samples", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call(
        sys.executable, "-m", "llava.eval.eval_textvqa", "--annotation-file", embedded().annotations, "--result-file", answers
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"Samples: {len(answers.read_text().splitlines())}"
    assert done.stdout.splitlines()[2].startswith("Accuracy: ")


def test_statistical_analysis_as_a_file(tmp_path: Path) -> None:
    done = call(
        sys.executable, "llava/eval/statistical_analysis.py", "--model-path", "embedded", "--samples", "4",
        "--reduction_ratio", "0.6", "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scheme = json.loads(done.stdout.splitlines()[0])
    assert len(scheme) == load("embedded", device="cpu").cost.layers
    assert json.loads((tmp_path / "embedded-r60.recipe.json").read_text())["counts"] == scheme


def test_the_pruned_decoder_can_be_found_where_the_paper_says() -> None:
    code = "from llava.model.language_model import modeling_llama as m; print('Modifications' in m.__doc__, m.prune.__module__)"
    done = call(sys.executable, "-c", code)
    assert done.stdout.strip() == "True fitprune.prune", done.stderr


@pytest.mark.parametrize("arguments", [["--reduction_ratio", "1.7"], ["--question-file", "missing.jsonl"]])
def test_bad_input_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = call(sys.executable, "-m", "llava.eval.model_vqa_loader", "--answers-file", tmp_path / "a", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
