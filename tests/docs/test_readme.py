"""The README's Python runs as it is printed, and its pictures and files exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fitprune.embedded import embedded

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_block_answers_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)  # as in an empty folder
    exec(compile(code, "README.md", "exec"), {})
    known = json.loads(embedded().annotations.read_text(encoding="utf-8"))["data"]
    here = [entry for entry in known if entry["image_id"] == embedded().picture.stem]
    (right,) = (entry for entry in here if entry["question"] == "What number is written?")
    assert capsys.readouterr().out.strip() == right["answers"][0]


def test_everything_it_names_is_there() -> None:
    named = re.findall(r"`((?:docs|scripts|tests|LLaVA_\w+\.?\d?|fitprune|embedded)/[\w./]*)`", README)
    named += re.findall(r"\]\((?!https|#)([^)#]+)", README)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name
