"""What a stranger gets: the wheel in an empty environment, with whatever resolves today, used in an empty folder.

It installs some gigabytes, so it runs where it is given a place for them: `make test-latest` does (scripts/latest.sh).

    WHEEL_ENVIRONMENT=/tmp/empty pytest tests/release/test_wheel.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = os.environ.get("WHEEL_ENVIRONMENT")
EXTRAS = re.findall(
    r"^([\w-]+) = \[",
    (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("optional-dependencies]")[1].split("\n[")[0],
    re.MULTILINE,
)

pytestmark = pytest.mark.skipif(PLACE is None, reason="installs gigabytes: make test-latest runs it")


def said(*command: str | Path, **how: object) -> str:
    """What a command prints, without anything of this environment in its own."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_CONSTRAINT", "VIRTUAL"))}
    done = subprocess.run([str(part) for part in command], env=outside, capture_output=True, text=True, timeout=1500, check=False, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment in which nothing but the wheel was asked for."""
    assert PLACE is not None
    place, built = Path(PLACE), tmp_path_factory.mktemp("wheel")
    if not (place / ".done").exists():
        said(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", built, ROOT)
        (wheel,) = built.glob("fitprune-*.whl")
        said(Path(sys.base_prefix) / "bin" / "python3", "-m", "venv", "--clear", place)
        said(place / "bin" / "python", "-m", "pip", "install", "-q", wheel)
        built.joinpath(wheel.name).rename(place / wheel.name)
        (place / ".done").touch()
    return place / "bin"


def test_questions_are_answered(programs: Path, tmp_path: Path) -> None:
    out = said(programs / "fitprune", "eval", "--limit", "8", cwd=tmp_path)
    assert "dense" in out
    assert "%" in out


def test_a_recipe_is_fitted(programs: Path, tmp_path: Path) -> None:
    said(programs / "fitprune", "fit", "--samples", "8", cwd=tmp_path)
    assert list(tmp_path.rglob("*.json"))


def test_nothing_of_the_tree_was_used(programs: Path, tmp_path: Path) -> None:
    where = said(programs / "python", "-c", "import fitprune; print(fitprune.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent.resolve())


def test_every_command_says_its_help(programs: Path, tmp_path: Path) -> None:
    names = re.search(r"^  ([a-z]+(?: \| [a-z]+)+)$", said(programs / "fitprune", "--help", cwd=tmp_path), re.MULTILINE)
    assert names
    assert len(names[1].split(" | ")) >= 10
    for name in names[1].split(" | "):
        assert "examples:" in said(programs / "fitprune", name, "--help", cwd=tmp_path), name


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["draw", "--recipes", "llava-v1.5-7b:0.6", "--output", "r.png"], "draw"),
        (["demo"], "demo"),
        (["serve"], "serve"),
        (["bench", "--plot", "b.png"], "draw"),
    ],
)
def test_what_an_extra_brings_is_said_in_a_line(programs: Path, command: list[str], extra: str, tmp_path: Path) -> None:
    done = subprocess.run([programs / "fitprune", *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout
    assert f"pip install 'fitprune[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_by_itself(programs: Path, extra: str) -> None:
    """As pip would install it on top of the wheel; nothing is installed."""
    (wheel,) = programs.parent.glob("fitprune-*.whl")
    said(programs / "python", "-m", "pip", "install", "-q", "--dry-run", f"{wheel}[{extra}]")
