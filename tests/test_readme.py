"""The README's Python runs as it is printed, and its pictures and files exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fitprune.embedded import embedded
from fitprune.evaluation.questions import read_questions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_answers_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    asked = next(q for q in read_questions(embedded().questions) if q.category == "number")
    assert asked.text.splitlines()[0] in code
    shutil.copy(embedded().images / str(asked.image), tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().isdigit()


def test_everything_it_names_is_there() -> None:
    named = re.findall(r"`((?:docs|scripts|tests|LLaVA_\w+\.?\d?|fitprune|embedded)/[\w./]*)`", README)
    named += re.findall(r"\]\((?!https)([^)]+)\)", README)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name
