"""Everything of vLLM that the plugin touches stands in one list, and is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fitprune.vllm
from fitprune.vllm import interfaces

SOURCES = sorted(Path(fitprune.vllm.__file__).parent.glob("*.py"))
PUBLIC = {"vllm", "vllm.config", "vllm.distributed"}


def imported() -> set[str]:
    """`module:name` of everything that is imported from vLLM."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "vllm":
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {f"{alias.name}:" for alias in node.names if alias.name.split(".")[0] == "vllm"}
    return found


def test_what_is_imported_is_listed() -> None:
    names = (name.partition(":") for name in (*interfaces.TOUCHED, *interfaces.GROUPS))
    listed = {f"{module}:{path.split('.')[0]}" for module, _, path in names}
    assert {name for name in imported() if name.partition(":")[0] not in PUBLIC} <= listed


def test_what_is_listed_is_there() -> None:
    pytest.importorskip("vllm.version")
    assert interfaces.missing((*interfaces.TOUCHED, *interfaces.GROUPS)) == []
    interfaces.check_version()


def test_what_is_not_there_is_named() -> None:
    assert interfaces.missing(["json:loads", "json:JSONDecoder.decode", "json:no", "no.such:thing"]) == ["json:no", "no.such:thing"]
