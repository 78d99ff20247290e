"""NOTICE states a licence for every file that is shipped, and each of its lines is about one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (\S+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "NOTICE").read_text(encoding="utf-8"), re.MULTILINE)[1:]
KNOWN = {"Apache-2.0", "CC0-1.0", "facts, no licence claimed"}


def shipped() -> list[str]:
    """Every file of the repository, by git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def pattern(glob: str) -> re.Pattern[str]:
    """`*` is anything within a folder, `**` anything."""
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", glob)))


def row_of(name: str) -> tuple[str, str, str]:
    return next(row for row in ROWS if pattern(row[0]).fullmatch(name))


def test_every_file_has_a_line_and_every_line_a_file() -> None:
    used = {row_of(name) for name in shipped()}
    assert used == set(ROWS)
    assert {licence for _, licence, _ in ROWS} <= KNOWN


def test_what_is_not_text_of_ours_is_named_by_its_folder() -> None:
    """Weights, pictures and data never fall to the last line, which speaks of what was written here."""
    written = {".py", ".sh", ".md", ".toml", ".yml", ".yaml", ".cff", ".txt", ".css", ".html", ".in", ".typed", ""}
    loose = [name for name in shipped() if row_of(name)[0] == "**" and Path(name).suffix not in written]
    assert not loose


def test_globs_are_told_apart() -> None:
    assert row_of("fitprune/recipes/llava-v1.5-7b.json")[1] == "facts, no licence claimed"
    assert row_of("fitprune/embedded/model_hr/model.safetensors")[2].startswith("weights trained by this project")
    assert row_of("embedded/glyphs.png")[1] == "CC0-1.0"
    assert row_of("fitprune/prune.py")[0] == "**"
    assert not pattern("docs/*.png").fullmatch("docs/figures/a.png")
