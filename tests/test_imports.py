"""Imports run downward only: no module imports what stands above it, and no two modules of a package import each other.

Read from the source, imports inside functions and for type checkers included; nothing is imported here. The order is the house's plan
(docs/architecture.md); a new module or package has to be given its floor below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fitprune"
FLOORS = (  # from the ground up; what stands on one floor does not import its neighbours
    ("version", "errors"),
    ("files", "tables", "cost"),
    ("schedule", "recipes", "embedded"),
    ("recipe", "stats"),
    ("choose",),
    ("fit",),
    ("distributed",),
    ("kernels", "images"),
    ("scores", "trace"),
    ("decoder",),
    ("prune", "observe"),
    ("checkpoints",),
    ("llava_hr",),
    ("families",),
    ("questions",),
    ("calibrate",),
    ("resolve",),
    ("arguments", "entry"),
    ("evaluation", "draw"),
    ("studies",),
    ("bench",),
    ("web",),
    ("lmms", "vllm", "serve"),
    ("cli",),
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
DOORS = ("__init__", "__main__")  # of the whole package: they show what is inside


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name within the package; a package by its folder's."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The modules of ours that a module imports."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    if name == "__init__":
        package = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.removeprefix("fitprune.") for alias in node.names if alias.name.startswith("fitprune.")]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "fitprune"):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = (node.module or "") if node.level else (node.module or "").partition(".")[2]
            start = ".".join([*base, *([target] if target else [])])
            names = [f"{start}.{alias.name}".strip(".") for alias in node.names]
            names = [one if one in known else start for one in names]
        else:
            continue
        yield from (one for one in names if one and one != name)


def upward(root: Path = ROOT) -> list[str]:
    """Every import of something that stands above or beside the importer, as a sentence."""
    found, known = [], modules(root)
    for name, path in known.items():
        floor = name.split(".")[0]
        if name in DOORS or name.endswith("__main__"):
            continue
        for target in imports(name, path, set(known)):
            other = target.split(".")[0]
            if other != floor and HEIGHT[other] >= HEIGHT[floor]:
                found.append(f"fitprune.{name} imports fitprune.{target}, which does not stand below it")
    return found


def circles(root: Path = ROOT) -> list[str]:
    """Modules of one package that reach themselves; a package's own `__init__` is its door and not counted."""
    known = modules(root)
    edges = {
        name: {target for target in imports(name, path, set(known)) if known.get(target, path).name != "__init__.py"}
        for name, path in known.items()
        if path.name not in ("__init__.py", "__main__.py")
    }
    found = []
    for start in edges:
        seen, todo = set(), set(edges[start])
        while todo:
            here = todo.pop()
            seen.add(here)
            todo |= edges.get(here, set()) - seen
        if start in seen:
            found.append(start)
    return found


def test_every_module_has_its_floor() -> None:
    tops = {name.split(".")[0] for name in modules()} - set(DOORS)
    assert tops == set(HEIGHT)
    assert len(list(ROOT.glob("*.py"))) <= 20


def test_imports_run_downward() -> None:
    assert not upward(), "\n".join(upward())


def test_no_module_reaches_itself() -> None:
    assert not circles()


@pytest.mark.parametrize(
    ("at", "line", "names"),
    [
        ("cost/total.py", "from ..recipe import Recipe", ("fitprune.cost.total", "fitprune.recipe")),
        ("decoder/state.py", "def f():\n    from ..families import load", ("fitprune.decoder.state", "fitprune.families")),
        ("evaluation/scoring.py", "from fitprune.cli.eval import run", ("fitprune.evaluation.scoring", "fitprune.cli.eval")),
    ],
)
def test_an_upward_import_is_told_by_both_names(tmp_path: Path, at: str, line: str, names: tuple[str, str]) -> None:
    for path in ROOT.rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    changed = tmp_path / at
    changed.write_text(changed.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
    (said,) = set(upward(tmp_path)) - set(upward())
    assert all(name in said for name in names)
