"""scripts/beside.sh: when it makes its environment anew, and that it does not run without a browser what needs one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAY = 86400
BASH = shutil.which("bash") or "bash"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of what the script reads, all of one age, with environments whose Python does nothing."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/beside.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in (".venv", ".venv-demo"):
        (tmp_path / name / "bin").mkdir(parents=True)
        program(tmp_path / name / "bin" / "python")
    program(tmp_path / "browser" / "chromium")
    for name in (".venv/.stamp", ".venv/pyvenv.cfg", ".venv-demo/.done"):
        (tmp_path / name).touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (DAY, DAY))
    return tmp_path


def program(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)


def beside(place: Path, path: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, "scripts/beside.sh", ".venv", "demo"]
    return subprocess.run(command, cwd=place, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def test_what_is_new_enough_is_kept(place: Path) -> None:
    done = beside(place, f"{place / 'browser'}:/usr/bin:/bin")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("newer", ["scripts/beside.sh", "pyproject.toml", "constraints.txt", ".venv/.stamp", ".venv/pyvenv.cfg"])
def test_it_is_made_anew_after(newer: str, place: Path) -> None:
    os.utime(place / newer, (2 * DAY, 2 * DAY))
    assert "setup: making" in beside(place, f"{place / 'browser'}:/usr/bin:/bin").stdout
    assert not (place / ".venv-demo" / ".done").exists()


def test_it_is_made_where_there_is_none(place: Path) -> None:
    (place / ".venv-demo" / ".done").unlink()
    assert "setup: making" in beside(place, f"{place / 'browser'}:/usr/bin:/bin").stdout


def test_without_a_browser_the_demos_tests_fail_instead_of_being_skipped(place: Path) -> None:
    shutil.rmtree(place / "browser")
    done = beside(place, str(place / "browser"))
    assert done.returncode == 2
    assert "apt-get install chromium" in done.stderr
    assert done.stderr.count("\n") == 1
    looked_for = re.search(r"map\(shutil\.which, \(([^)]*)\)", (ROOT / "tests" / "web" / "test_demo.py").read_text())
    assert looked_for
    for name in re.findall(r'"([\w-]+)"', looked_for[1]):  # each that the tests would take is enough here
        program(place / "browser" / name)
        assert beside(place, f"{place / 'browser'}").returncode == 0, name
        (place / "browser" / name).unlink()


def test_the_methods_tests_are_there() -> None:
    named = (ROOT / "scripts" / "method_tests.txt").read_text(encoding="utf-8").split()
    assert len(named) == len(set(named)) > 20
    for name in named:
        assert (ROOT / name).exists(), name
