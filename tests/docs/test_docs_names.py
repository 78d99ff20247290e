"""README and docs name only what is there: files, tests, functions, options; the tables of docs/faq.md are the code's."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from test_imports import FLOORS, HEIGHT

import fitprune
from fitprune import cli, decoder
from fitprune.evaluation import loader
from fitprune.studies import conventions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("LLaVA_*/README.md"))]
FOLDERS = r"(?:docs|scripts|tests|embedded|fitprune|LLaVA_1\.5|LLaVA_NEXT|LLaVA_HR)"
SUFFIXES = {"csv", "py", "sh", "md", "json", "jinja", "jsonl", "png", "safetensors", "zip"}
HISTORY = {"LOG.md"}  # speaks of what was
ELSEWHERE = {
    "docs/Evaluation.md",
    "tflops.py",
    "layer_prune.py",
    *(f"{name}_IntraLLM.py" for name in ("FastV", "Pdrop", "methods/FitPrune")),
}  # of other projects
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in (*ROOT.glob("LLaVA_*"), *(ROOT / name for name in ("embedded", "fitprune", "scripts", "tests")))
    for path in folder.rglob("*.py")
]
APART = ("lmms_eval", "vllm")  # have environments of their own
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
SPANS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def alternatives(path: str) -> list[str]:
    """a/{b,c}.py as two paths."""
    found = re.search(r"\{([^}]*)\}", path)
    return [path] if not found else [path.replace(found[0], one) for one in found[1].split(",")]


@named
def test_files_are_there(page: Path) -> None:
    text = prose(page)
    for span in SPANS.findall(text) if page.name not in HISTORY else ():
        for path in re.findall(rf"(?<![\w/.])((?:\.\./)?{FOLDERS}/[\w./{{}},-]*)(?!\S*[…*])", span):
            for one in set(alternatives(path)) - ELSEWHERE:
                if "NAME" in one:  # stands for any
                    one = str(Path(one).parent)
                places = (page.parent, ROOT, *ROOT.glob("LLaVA_*"))
                assert any((place / one).exists() for place in places), (span, one)
        if re.fullmatch(r"[\w./]+\.py", span) and "NAME" not in span and span not in ELSEWHERE:  # by the end of its path
            assert any(f"/{path}".endswith(f"/{span.removeprefix('../')}") for path in SOURCES), span
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def modules() -> dict[str, Any]:
    """Modules of fitprune by their last name, and by their whole one."""
    found: dict[str, Any] = {"fitprune": fitprune}
    for info in pkgutil.walk_packages(fitprune.__path__, "fitprune."):
        if not info.name.endswith(("triton", "__main__")):
            try:
                module = importlib.import_module(info.name)
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] not in APART:  # the folder tests/vllm passes for a package
                    raise
                continue
            found[info.name] = module
            found[info.name.removeprefix("fitprune.")] = module
            found.setdefault(info.name.rpartition(".")[2], module)
    return found


CLASSES = ("Recipe", "CostModel", "Trace", "Attended", "AttentionStats", "VLM")
VARIABLES = {"recipe": "Recipe", "trace": "Trace", "seen": "Attended", "llava": "VLM", "stats": "AttentionStats"}


@named
def test_functions_are_there(page: Path) -> None:
    """`module.function`, `Class.method` and `file.py`, where the first part is a module or class of ours."""
    if page.name in HISTORY:
        pytest.skip("speaks of what was")
    known = modules()
    classes = {name: getattr(home, name) for name in CLASSES for home in known.values() if hasattr(home, name)}
    for span in SPANS.findall(prose(page)):
        if span.startswith(("python ", "fitprune ")):
            continue  # commands: test_docs_commands.py
        for dotted in re.findall(r"(?<![\w./-])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?=$|[\s(,)])", span):
            path, _, name = dotted.rpartition(".")
            last = path.rpartition(".")[2]
            homes = [home for home in (known.get(path), classes.get(VARIABLES.get(last, last))) if home]
            if homes and name not in SUFFIXES:
                assert any(hasattr(home, name) or name in getattr(home, "__dataclass_fields__", {}) for home in homes), dotted


def test_the_page_on_architecture_is_the_code() -> None:
    """Its tree has every module, its order is that of test_imports.py, its pruned layer that of the package's docstring."""
    tree, order, layer = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)
    named = [name for line in tree.splitlines()[1:] for name in re.findall(r"(\w+)(?:\.py|/)", line.strip().partition("   ")[0])]
    assert sorted(named) == sorted(HEIGHT)
    assert [tuple(line.split()) for line in order.splitlines()] == list(FLOORS)
    steps = [line.partition("#")[0].split() for line in layer.splitlines()]
    own = [line.partition("#")[0].replace("`", "").split() for line in (decoder.__doc__ or "").splitlines()]
    assert all(step in own for step in steps), [step for step in steps if step not in own]
    assert len(steps) > 7


def test_the_table_of_conventions_is_what_the_code_prints() -> None:
    assert conventions.example() in (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), (
        "python -m fitprune.studies.conventions prints it"
    )


def commands_of_flags() -> dict[str, set[str]]:
    """By flag, the commands that take it; `loader` is the authors' answering script."""
    (made,) = (action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    found: dict[str, set[str]] = {}
    for name, parser in {**made.choices, "loader": loader.parser()}.items():
        for flag in parser._option_string_actions:
            found.setdefault(flag, set()).add(name)
    return found


def test_the_table_of_flags_is_that_of_the_parsers() -> None:
    """`all`, `all but a and b`, or a list of commands, each perhaps with its default in brackets."""
    known = commands_of_flags()
    every = known["--help"]
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    _, _, *rows = text.partition("| flag | where | meaning |")[2].partition("\n\n")[0].splitlines()
    described: set[str] = set()
    for row in rows:
        flags, where, _ = row.strip("| ").split(" | ", 2)
        listed, but, left_out = where.partition("all but ")
        words = set(re.findall(r"[a-z]+", re.sub(r"\([^)]*\)", "", left_out or listed))) - {"and"}
        told = every if words == {"all"} else every - words if but else words
        for flag in SPANS.findall(flags):
            assert known[flag] == told, flag
            assert flag not in described, flag
            described.add(flag)
    assert len(described) > 40


def test_published_savings_named_in_the_guides_are_true() -> None:
    for nominal, said in ((20, "15.3"), (60, "59.7")):
        saved = fitprune.Recipe.published("llava-v1.5-7b", nominal).achieved
        assert saved is not None
        assert f"{100 * saved:.1f}" == said


def test_the_ideals_of_the_engineers_guide_are_computed() -> None:
    """Rows: visual tokens | other tokens | ideal | cache before → after, MiB."""
    from fitprune.cost import VICUNA_7B as COST

    text = (ROOT / "docs" / "engineers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+)× \| (\d+) → (\d+) MiB \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for visual, others, ideal, before, after in rows:
        n, t = int(visual), int(others)
        recipe = fitprune.Recipe.published("llava-v1.6-vicuna-7b" if n == 2880 else "llava-v1.5-7b", 0.6)
        assert f"{COST.speedup(recipe.alive(n), n, t):.2f}" == ideal
        for deletions, said in (([0] * COST.layers, before), (recipe.deletions(n), after)):
            assert abs(sum(COST.kv_bytes(deletions, n, t)) / 2**20 - int(said)) <= 0.5
