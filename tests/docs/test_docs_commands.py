"""Every command and every piece of Python in README and docs runs; one that this test cannot run fails it.

Blocks run in order, as printed, in a place where the names that they use exist (docs_stage.py, which also says how long ones are made
small, and which are only looked at). Commands within sentences are parsed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_stage import LONG_TARGETS, ROOT, Stage, blocks, commands, converted

from fitprune.cli import parser

__all__ = ["converted"]  # a fixture

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("LLaVA_*/README.md")),
    ROOT / "embedded" / "README.md",
]
NOT_COMMANDS = {"", "bibtex", "json", "text", "toml"}
BEFORE = {  # what a page's fragments of Python take for granted
    "docs/how_it_works.md": """
import fitprune
from fitprune import Recipe
from fitprune.images.reading import read_image
llava = fitprune.load("embedded")
model = llava.model
inputs = llava.encode([(llava.prompt("What number is written?"), [read_image("picture.jpg")])])
""",
    "docs/drawing.md": """
import fitprune
from fitprune.images.reading import read_image
llava, image = fitprune.load("embedded"), read_image("picture.jpg")
recipe = fitprune.Recipe.from_deletions([60, 0, 0, 20, 0, 0, 0, 0, 10], visual_tokens=144)
""",
    "docs/new_family.md": """
import fitprune, torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = LlamaConfig(num_hidden_layers=3, hidden_size=32, intermediate_size=64, num_attention_heads=2, vocab_size=9)
decoder = LlamaForCausalLM(sizes).eval()
embeds, mask = torch.randn(1, 20, 32), torch.zeros(1, 20, dtype=torch.bool)
mask[:, 3:15] = True
recipe, samples = fitprune.Recipe.step(layer=1, keep=0.5), [(embeds, mask)]
torch.set_grad_enabled(False)
""",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning", "ignore:.*max_length.*:UserWarning")
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def stage(tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    import torch

    made = Stage(tmp_path, converted, monkeypatch)
    yield made
    made.close()
    torch.set_grad_enabled(True)


@named
def test_blocks_run(page: Path, stage: Stage) -> None:
    name = str(page.relative_to(ROOT))
    place = stage.folder / page.parent.name if page.parent.name.startswith("LLaVA_") else stage.folder
    if name in BEFORE:
        stage.execute(BEFORE[name], name)
    for language, text in blocks(page):
        if language == "python":
            stage.execute(text, name)
        elif language == "bash":
            for line in commands(text):
                stage.run(line, place)
        else:
            assert language in NOT_COMMANDS, f"{name} has a block of {language!r}"
    if stage.skipped:
        pytest.skip(f"all but this ran: {'; '.join(stage.skipped)}")


@named
def test_commands_within_sentences_can_be_typed(page: Path, stage: Stage) -> None:
    """What a parser can know: subcommands, options, modules, targets; what stands for something (…, [X], NAME) is left out."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    subcommands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for text in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose):
        first, _, rest = text.partition(" ")
        options = re.findall(r"(?<!\S)\[?(--[\w-]+)", rest)
        if first == "fitprune" and rest:
            for command in re.findall(r"[a-z]+", rest.split(" -")[0]) if " | " in rest else [rest.split()[0]]:
                assert command in subcommands, text
                for option in options:
                    assert option in subcommands[command]._option_string_actions, (text, option)
            if not options and re.fullmatch(r"show [\w.-]+( [\d.]+)?", rest):
                parser().parse_args(shlex.split(rest))
        elif first == "make" and rest:
            target = rest.split()[0]
            assert target in LONG_TARGETS | {"help", "clean", "distclean"}, text
            assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE), text
        elif text.startswith("python -m ") and "…" not in text:
            module = text.split()[2]
            assert find_spec(module), text
            if module.startswith("embedded."):
                stage.flags(module, options)


def test_an_unknown_command_fails(stage: Stage) -> None:
    for line in ("curl http://127.0.0.1", "fitprune frobnicate", "python -m embedded.nothing"):
        with pytest.raises(pytest.fail.Exception, match=r"docs_stage\.py"):
            stage.run(line, stage.folder)
