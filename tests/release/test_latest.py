"""scripts/latest.sh: what blocks a landing, and what is only shown."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "bash"

# Stands for the environment's Python: says versions and whether they are claimed; its tests end as they are told.
PYTHON = """#!/bin/sh
case "$*" in
"-m pip"*) ;;
*metadata*) echo "transformers 9.9.0" ;;
*version_numbers*) echo "$CLAIMED" ;;
*pytest*) exit "$STATUS" ;;
esac
"""

# Stands for .venv's: its only task is the wheel's test, which makes the environment.
MAKER = """#!/bin/sh
mkdir -p "$WHEEL_ENVIRONMENT/bin" && cp python.sh "$WHEEL_ENVIRONMENT/bin/python" && exit "$WHEEL"
"""


def latest(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("python.sh", PYTHON), (".venv/bin/python", MAKER)):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    (place / "scripts").mkdir(exist_ok=True)
    for name in ("scripts/latest.sh", "scripts/method_tests.txt"):
        shutil.copy(ROOT / name, place / name)
    return subprocess.run(
        [BASH, "scripts/latest.sh", ".venv"],
        cwd=place, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("claimed", "status", "code", "words"),
    [
        ("yes", "0", 0, "green on transformers 9.9.0"),
        ("no", "0", 0, "green on transformers 9.9.0"),
        ("no", "1", 0, "CANARY, red on transformers 9.9.0"),
        ("yes", "1", 1, "red on transformers 9.9.0, which is claimed"),
    ],
)
def test_only_what_is_claimed_blocks(claimed: str, status: str, code: int, words: str, tmp_path: Path) -> None:
    done = latest(tmp_path, CLAIMED=claimed, STATUS=status, WHEEL="0")
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


def test_a_wheel_that_does_not_work_blocks_in_any_case(tmp_path: Path) -> None:
    assert latest(tmp_path, CLAIMED="no", STATUS="0", WHEEL="1").returncode == 1
