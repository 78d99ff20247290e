"""scripts/gpu_check.sh: one part's crash or hang does not take the others along, what was found is written each time, time is bounded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_check
from scripts.gpu_check import CUT, DONE, FAILED, SKIPPED, Part

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"
SPREAD = {"median": 0.02, "low": 0.02, "high": 0.02}


def python(code: str) -> tuple[str, ...]:
    """A command that is given its file as the only argument."""
    return (sys.executable, "-c", code)


ABSENT = ("shortuuid", "deepspeed", "gradio", "openpyxl", "peft")  # what a machine with torch, transformers and pytest need not have


def without(packages: tuple[str, ...], folder: Path) -> dict[str, str]:
    """An environment in which these packages are not installed, whichever are."""
    code = f"""
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda _, name, *more: None if name.partition(".")[0] in {packages} else found(name, *more))
"""
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": str(folder)}


WRITES = python("import sys; open(sys.argv[1], 'w').write('{\"notes\": [\"a note\"]}')")


def checked(monkeypatch: pytest.MonkeyPatch, out: Path, parts: list[Part], *flags: str) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr(gpu_check, "parts", lambda rehearse: parts)
    code = gpu_check.main([str(out), *flags])
    return code, json.loads((out / "gpu_check.json").read_text())["parts"]


def test_what_fails_or_hangs_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        f"import subprocess, sys; subprocess.Popen(['sleep', '4321'], start_new_session=False); print('{tmp_path}'); sys.stdout.flush(); "
    )
    parts = [
        Part("crashes", 30, python("import os; os.abort()")),
        Part("hangs", 1, python(f"{child} import time; time.sleep(60)")),
        Part("writes", 30, WRITES),
        Part("writes nonsense", 30, python("import sys; open(sys.argv[1], 'w').write('{')")),
    ]
    began = time.monotonic()
    code, found = checked(monkeypatch, tmp_path / "out", parts)
    assert time.monotonic() - began < 30
    assert code == 1
    assert [part["ended"] for part in found] == [FAILED, CUT, DONE, DONE]
    assert [part["figures"] for part in found] == [None, None, {"notes": ["a note"]}, None]
    said = (tmp_path / "out" / "gpu_check.log").read_text()
    assert str(tmp_path) in said
    assert all(f"==== {part.name}" in said for part in parts)
    page = (tmp_path / "out" / "gpu_check.md").read_text()
    assert all(re.search(rf"^\| {part.name} \|", page, re.MULTILINE) for part in parts)
    assert "- a note" in page
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"4321" in read(path)]
    assert not left  # what a part had started was ended with it


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_tests_that_are_cut_off_leave_what_they_had_found(tmp_path: Path) -> None:
    """In one process: how fast several are gone depends on what else runs here."""
    file = tmp_path / "test_these.py"
    file.write_text("import time\ndef test_quick(): pass\ndef test_wrong(): assert 0\ndef test_hangs(): time.sleep(1000)\n")
    command = (sys.executable, "-m", "pytest", str(file), "--junitxml")
    found = gpu_check.run_part(Part("tests", 12, command), 12, tmp_path / "log")
    assert found["ended"] == CUT
    assert 12 <= found["seconds"] < 12 + gpu_check.GRACE + 3
    assert (found["figures"]["passed"], found["figures"]["failed"]) == (1, 1)  # the one that hung is neither


def test_results_are_there_while_later_parts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    looks = python(f"import json, sys; found = json.load(open({str(out / 'gpu_check.json')!r})); json.dump(found, open(sys.argv[1], 'w'))")
    code, found = checked(monkeypatch, out, [Part("first", 30, WRITES), Part("looks", 30, looks)])
    assert code == 0
    assert [part["name"] for part in found[1]["figures"]["parts"]] == ["first"]


def test_the_whole_takes_no_longer_than_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LEAST", 1)
    parts = [Part(name, 60, python("import time; time.sleep(60)")) for name in ("one", "two", "three")]
    began = time.monotonic()
    code, found = checked(monkeypatch, tmp_path, parts, "--budget", "3")
    assert time.monotonic() - began < 6
    assert code == 1
    assert [part["ended"] for part in found] == [CUT, SKIPPED, SKIPPED]


def test_a_part_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [Part("first", 30, python("raise SystemExit(3)")), Part("second", 30, WRITES)]
    code, found = checked(monkeypatch, tmp_path, parts, "--parts", "second")
    assert (code, [part["name"] for part in found]) == (0, ["second"])
    assert gpu_check.main([str(tmp_path), "--parts", "third"]) == 2
    said = capsys.readouterr().err
    assert "third" in said
    assert said.count("\n") == 1


def test_every_test_that_needs_a_gpu_is_run() -> None:
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"^@pytest\.mark\.gpu$", path.read_text(), re.MULTILINE)}
    asked = next(part for part in gpu_check.parts(False) if part.name == "tests that need a GPU").command
    assert len(marked) >= 4
    assert {ROOT / word for word in asked if word.startswith("tests/")} >= marked
    assert asked[-1] == "--junitxml"


def test_a_rehearsal_has_the_same_parts_and_nine_minutes_are_enough_for_most() -> None:
    real, rehearsed = gpu_check.parts(False), gpu_check.parts(True)
    assert [(part.name, part.limit) for part in real] == [(part.name, part.limit) for part in rehearsed]
    assert len({part.name for part in real}) == len(real)
    assert gpu_check.BUDGET < 9 * 60
    assert sum(part.limit for part in real[:7]) <= gpu_check.BUDGET  # even if each of them takes all it may
    assert not [word for part in rehearsed for word in part.command if word.startswith("llava-")]


@pytest.mark.parametrize("module", ["fitprune bench", "fitprune.bench.scoring"])
def test_what_is_timed_needs_no_package_that_only_answers_need(tmp_path: Path, module: str) -> None:
    environment = without(ABSENT, tmp_path)
    absent = subprocess.run([sys.executable, "-c", "import shortuuid"], env=environment, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in absent.stderr
    command = [sys.executable, "-m", *module.split(), "--help"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)


def test_pytests_file_becomes_counts_and_names(tmp_path: Path) -> None:
    file = tmp_path / "figures"
    cases = '<testcase classname="tests.a" name="x"/><testcase classname="tests.a" name="y"><failure message="no"/></testcase>'
    skipped = '<testcase classname="tests.b" name="z"><skipped message="needs the package"/></testcase>'
    file.write_text(f'<testsuites><testsuite tests="3">{cases}{skipped}</testsuite></testsuites>')
    found = gpu_check.read_figures(file)
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "names": ["tests.a::y"], "reasons": ["needs the package"]}
    page = gpu_check.page([{"name": "tests", "ended": FAILED, "seconds": 2.0, "figures": found}], rehearsed=False)
    assert "| tests | failed | 2 | 1 / 1 / 1 | tests.a::y |" in page
    file.write_text("<testsuites><testsuite>")  # cut off
    assert gpu_check.read_figures(file) is None


def test_a_test_file_that_cannot_be_imported_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_here.py").write_text("def test_it(): pass")
    (tmp_path / "test_gone.py").write_text("import a_package_that_is_not_there")
    files = [str(tmp_path / name) for name in ("test_gone.py", "test_here.py")]
    found = gpu_check.run_part(Part("tests", 60, gpu_check.tests(*files)), 60, tmp_path / "log")
    assert found["ended"] == FAILED
    assert found["figures"]["passed"] == 1
    assert found["figures"]["failed"] == 1


def test_prefills_are_told_with_what_they_are_compared_with() -> None:
    row = {
        "seconds": SPREAD,
        "speedup": {"dense": {"median": 2.0}, "flash": {"median": 1.5}},
        "share_of_ideal": {"dense": 0.9},
        "share_of_bare": 0.95,
    }
    figures = {
        "tokens": [35, 576, 29], "batch": 8, "best_dense": "flash",
        "dense": {"dense": {"seconds": {**SPREAD, "median": 0.04}}, "flash": {"seconds": {**SPREAD, "median": 0.03}}},
        "recipes": [{"name": "60%", "ideal_speedup": 2.1, "prefill": {"graphs": row}}],
    }  # fmt: skip
    cells = list(gpu_check.prefills([{"figures": figures}, {"figures": None}]))
    assert cells[1] == ["640", "8", "–", "dense", "40.0", "1.00", "", "", ""]
    assert cells[-1] == ["640", "8", "60%", "graphs", "20.0", "2.00", "1.50", "90% of 2.10", "95%"]


def test_it_is_rehearsed(tmp_path: Path) -> None:
    """The command itself, on this machine's CPU: every part is begun, done, and has figures in the tables."""
    environment = {**without(ABSENT, tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    command = [BASH, str(ROOT / "scripts" / "gpu_check.sh"), str(out), "--rehearse", "--budget", "900"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + (out / "gpu_check.log").read_text()[-3000:]
    found = json.loads((out / "gpu_check.json").read_text())
    assert found["rehearsed"]
    assert [part["ended"] for part in found["parts"]] == [DONE] * len(gpu_check.parts(True))
    assert all(part["figures"] for part in found["parts"])
    page = (out / "gpu_check.md").read_text()
    for title in ("## Prefill", "## Scoring of one layer", "## Parts"):
        assert title in page
    assert "rehearsed on a CPU" in page
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.json", "gpu_check.log", "gpu_check.md"]
