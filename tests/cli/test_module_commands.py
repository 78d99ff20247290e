"""The command to try at the top of each module: Python runs, what is longer is parsed or looked up; none is unknown."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fitprune.cli import parser
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError

ROOT = Path(__file__).parents[2]
MODULES = sorted(file for name in ("fitprune", "embedded", "scripts") for file in (ROOT / name).rglob("*.py"))
COMMAND = re.compile(r"^\s*((?:cd \S+ && )?(?:python|fitprune|pytest|bash|make|torchrun) \S.*)$")
LONG = "measure("  # what times something, or builds a model of full size
SHOWS_AN_ERROR = ("0.65)", "from_deletions([3, -1]")  # the message is what there is to see


def docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def commands() -> list[tuple[str, str]]:
    """(module, command), continued lines joined, the explanation in a further column left out."""
    found = []
    for file in MODULES:
        for line in re.sub(r"\\\n\s*", " ", docstring(file)).splitlines():
            if matched := COMMAND.match(line):
                found.append((str(file.relative_to(ROOT)), matched[1]))
    return found


COMMANDS = commands()


@pytest.mark.parametrize(("module", "command"), COMMANDS, ids=[f"{m}-{i}" for i, (m, _) in enumerate(COMMANDS)])
def test_a_command_can_be_tried(
    module: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if any(mark in command for mark in ("…", " [", "SRC", "| ")) or re.match(r"python \S+\.py ", command):
        first = command.split()[1]
        assert first.startswith("-") or (ROOT / first).exists() or "fitprune" in command, command
        return
    words = shlex.split(command if '"' in command else re.split(r"\s{3,}", command)[0], comments=True)
    if words[0] == "cd":
        words = words[3:]
    if words[:2] == ["python", "-c"]:
        if LONG in words[2]:
            compile(words[2], module, "exec")
            return
        (tmp_path / "questions.jsonl").write_text(embedded().questions.read_text(encoding="utf-8").splitlines(True)[0])
        answer = '{"question_id": 1, "prompt": "a", "text": "b", "answer_id": "c", "model_id": "d", "metadata": {}}\n'
        (tmp_path / "answers.jsonl").write_text(answer)
        monkeypatch.chdir(tmp_path)
        code = compile(words[2].replace("/tmp/", f"{tmp_path}/"), module, "exec")
        if any(part in words[2] for part in SHOWS_AN_ERROR):
            with pytest.raises(FitPruneError):
                exec(code, {"__name__": "tried"})
            return
        exec(code, {"__name__": "tried"})
        assert "print(" not in words[2] or capsys.readouterr().out.strip()
    elif words[0] == "fitprune":
        if "--help" in words or "-h" in words:
            with pytest.raises(SystemExit, match="0"):
                parser().parse_args(words[1:])
        else:
            parser().parse_args(words[1:])
    elif words[0] == "pytest" or words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / next(word for word in words if word.startswith("tests/"))).exists()
    elif words[0] == "torchrun":
        parser().parse_args(words[words.index("fitprune") + 1 :])
    elif words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        assert words[2] == "lmms_eval" or find_spec(words[2]), command  # which has an environment of its own
    elif words[0] == "bash":
        assert (ROOT / words[1]).exists() or list(ROOT.glob(f"LLaVA_*/{words[1]}")), command
    else:
        assert words[0] == "python", command
        assert (ROOT / words[1]).exists(), command


def test_nearly_every_module_has_one() -> None:
    with_one = {module for module, _ in COMMANDS}
    without = [str(file.relative_to(ROOT)) for file in MODULES if str(file.relative_to(ROOT)) not in with_one and docstring(file)]
    assert len(COMMANDS) > 140
    assert len(without) <= 12, without
