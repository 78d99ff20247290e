"""A place in which the commands of the documentation can be typed as they are printed.

Checkpoints, data and pictures lie there under the names that the documentation uses: a hub's name is a folder that holds a
recorded miniature in the layout of the real one, data are the embedded questions in the official formats. Shell scripts run
in bash, with an interpreter that notes what it was asked to do; what it noted, and all other Python, runs in this process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from multimodal import PARITY, Recorded
from processes import ZERO3, together

import fitprune.cli
import fitprune.questions
from fitprune.bench import shapes
from fitprune.embedded import Embedded, embedded
from fitprune.errors import FitPruneError
from fitprune.families.convert import convert
from fitprune.lmms.arguments import Arguments
from fitprune.vllm.settings import Settings
from fitprune.web import serve

ROOT = Path(__file__).parents[2]

# What makes a command small enough, appended to it. A command of fitprune that is not here is not known to this test.
SMALL = {
    "fit": "--samples 8",  # fewer are not enough to choose by drift
    "eval": "--limit 2 --samples 8 --max_new_tokens 2",
    "sweep": "--limit 1 --samples 2 --max_new_tokens 1",
    "report": "--limit 2 --samples 2 --max_new_tokens 2",
    "draw": "--calibration-file questions.jsonl --image-folder images",  # a miniature is too shallow for the published recipe
    "demo": "",
    "show": "",
    "convert": "",
    "bench": "--repeats 1 --decode-tokens 1",
    "serve": "",
}
SMALL_MODULES = {
    "embedded": "--overwrite",
    "benchmarks": "--pictures 1 --overwrite",
    "statistical_analysis": "--samples 2",
    "model_vqa_loader": "--samples 2 --max_new_tokens 2",
    "eval_textvqa": "",
}
# Targets that take too long or would replace the environment: `make -n` must know what to do.
LONG_TARGETS = {
    "run",
    "test",
    "test-all",
    "test-demo",
    "test-lmms",
    "test-video",
    "test-vllm",
    "test-latest",
    "test-claimed",
    "check",
    "setup",
    "bench",
    "embedded",
    "evaluate",
    "docs",
}
# Modules that take hours, or a model that need not be there: their flags are checked.
LONG_MODULES = {"embedded.make", "embedded.train", "embedded.evaluate", "embedded.attention_facts"}

MINIATURES = {  # documented checkpoint: recorded miniature of the same layout
    "liuhaotian/llava-v1.5-7b": "llava15",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava_next",
    "llava-v1.6-vicuna-7b": "llava_next",
    "favor123/llava-hr-7b-sft-1024": "llava_hr",
    "llava-hr-7b-sft-1024": "llava_hr",
}
CONVERTED = {"llava-hf/llava-1.5-7b-hf": "llava15"}


def few(source: Path, target: Path, lines: int = 2) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(source.read_text(encoding="utf-8").splitlines(True)[:lines]), encoding="utf-8")


def linked(source: Path, target: Path) -> None:
    """A folder with the same entries, into which others can be written."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        (target / entry.name).symlink_to(entry)


class Stage:
    """The place, and how a command is run in it; `skipped` collects what could not be."""

    def __init__(self, folder: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.names: dict[str, Any] = {"__name__": "docs"}  # of the page's Python blocks
        self.at = ""  # where the server listens, if one was started
        self.skipped: list[str] = []
        self._servers: list[tuple[Any, threading.Thread]] = []
        for family in ("LLaVA_1.5", "LLaVA_NEXT", "LLaVA_HR"):
            shutil.copytree(ROOT / family, folder / family, ignore=shutil.ignore_patterns("playground", "__pycache__"))
        shutil.copytree(ROOT / "scripts" / "eval", folder / "scripts" / "eval")
        for place in (folder, *(folder / family for family in ("LLaVA_1.5", "LLaVA_NEXT", "LLaVA_HR"))):
            self._furnish(place, converted)
        noted = folder / "noted.sh"
        noted.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\037" "$a"; done >> "$NOTED"; printf "\\036" >> "$NOTED"\n')
        noted.chmod(0o755)
        few(embedded().calibration, folder / "few" / "calibration" / embedded().calibration.name, 8)
        (folder / "few" / "calibration" / "images").symlink_to(embedded().calibration_images)
        monkeypatch.setattr(fitprune.questions, "embedded", lambda: Embedded(embedded().model, folder / "few"))
        small = {
            name: shape.altered(visual=shape.visual // 24) for name, shape in shapes.SHAPES.items()
        }  # the real ones take minutes or a GPU
        for name, shape in small.items():
            cost = fitprune.CostModel(shape.cost.layers, 32, 64, 2, 2, 16, vocab=99)
            monkeypatch.setitem(shapes.SHAPES, name, type(shape)(cost, 3, 24, 5, shape.recipes))

    def _furnish(self, place: Path, converted: Path) -> None:
        """What the documentation takes for granted in the folder where a command is typed."""
        for name, miniature in MINIATURES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(PARITY / miniature / "checkpoint")
        for name in CONVERTED:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).symlink_to(converted)
        (place / "models").mkdir()
        (place / "models" / "clip-336").symlink_to(PARITY / "llava15" / "checkpoint" / "clip_tower")
        data = embedded()
        few(data.questions, place / "questions.jsonl", 8)
        shutil.copytree(data.images, place / "images", copy_function=os.symlink)
        pictures = sorted(data.images.iterdir())
        for name, picture in zip(("a.jpg", "b.jpg"), pictures, strict=False):
            (place / "images" / name).symlink_to(picture)
        for name in ("picture.jpg", "picture.png", "photo.jpg"):
            (place / name).symlink_to(pictures[0])
        fitprune.Recipe.published("llava-v1.5-7b", 0.6).save(place / "my.recipe.json")
        (place / "TextVQA_0.5.1_val.json").symlink_to(data.annotations)
        for benchmark in ("textvqa", "MME"):
            linked(data.data / benchmark, place / "playground" / "data" / "eval" / benchmark)
        linked(data.data / "textvqa", place / "DATA")

    def lora(self) -> None:
        """The LoRA checkpoint and its base, made when a command asks for them."""
        made = self.folder / "lora"
        if not made.exists():
            self.patch.syspath_prepend(str(ROOT / "tests" / "checkpoints"))
            from test_checkpoint_lora import adapter, base_and_projector

            made.mkdir()
            base, projector = base_and_projector(made)
            lora = adapter(made, projector)
            for place in (self.folder, *self.folder.glob("LLaVA_*")):
                for name, target in (("lmsys/vicuna-7b-v1.5", base), ("liuhaotian/llava-v1.5-7b-lora", lora)):
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    (place / name).symlink_to(target)

    # ---- commands -------------------------------------------------------------------------------------------------

    def run(self, line: str, place: Path) -> None:
        """One line of a bash block, typed in a folder; an unknown command fails."""
        if "lora" in line:
            self.lora()
        line = line.replace("=/models/", "=models/")
        while found := re.match(r"cd (\S+) && (.*)", line, re.DOTALL):
            place, line = place / found[1], found[2]
        words = shlex.split(line, comments=True)
        variables = {}
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, variables[name] = words.pop(0).partition("=")
        self.patch.chdir(place)
        runners: dict[str, Callable[[list[str], dict[str, str]], None]] = {
            "fitprune": self._fitprune, "python": self._python, "bash": self._bash, "make": self._make, "pip": self._pip,
            "torchrun": self._launched, "accelerate": self._launched, "vllm": self._vllm,
        }  # fmt: skip
        if not words or words[0] not in runners:
            pytest.fail(f"no way to run {line!r}: tell {Path(__file__).name} how")
        runners[words[0]](words[1:], variables)

    def _fitprune(self, words: list[str], variables: dict[str, str]) -> None:
        if words[0] not in SMALL:
            pytest.fail(f"no way to make `fitprune {words[0]}` small: tell {Path(__file__).name} how")
        if words[0] == "serve":
            return self._serve(words)
        if words[0] == "demo":
            return self._demo(words)
        words = [re.sub(r"^samples=[\d,]+$", "samples=1,2", word) for word in words]  # there are few to observe
        assert fitprune.cli.main([*words, *shlex.split(SMALL[words[0]])]) == 0, words

    def _launched(self, words: list[str], variables: dict[str, str]) -> None:
        """By a launcher: as many processes as it says, forked here."""
        at = words.index("-m")
        flags, module, command = words[:at], words[at + 1], words[at + 2 :]
        assert module == "fitprune", words
        (size,) = (int(flags[flags.index(name) + 1]) for name in ("--nproc-per-node", "--num_processes") if name in flags)
        assert size > 1
        zero3 = flags[flags.index("--zero_stage") :][:2] == ["--zero_stage", "3"] if "--zero_stage" in flags else False
        if zero3 and find_spec("deepspeed") is None:
            return self.skipped.append("needs deepspeed")
        argv = [*command, *shlex.split(SMALL[command[0]])]
        assert together(size, lambda rank: fitprune.cli.main(argv), **(ZERO3 if zero3 else {})) == [0] * size, words

    def _demo(self, words: list[str]) -> None:
        """Without Gradio, which does not go with the other packages (tests/web/test_demo.py has it), it says what to install."""
        fitprune.cli.parser().parse_args(words)
        if find_spec("gradio") is None:
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                assert fitprune.cli.main(words) == 2
            assert "pip install 'fitprune[demo]'" in said.getvalue()

    def _lmms_eval(self, words: list[str]) -> None:
        """Not here (tests/lmms/test_lmms_eval.py): what of the command is ours."""
        assert words[words.index("--model") + 1] == "fitprune"
        pairs = dict(pair.split("=", 1) for pair in words[words.index("--model_args") + 1].split(","))
        Arguments.read(pairs)

    def _vllm(self, words: list[str], variables: dict[str, str]) -> None:
        """Not here (tests/vllm): what of the command is ours, but for the recipe, which another command made elsewhere."""
        assert words[0] == "serve"
        said = json.loads(words[words.index("--additional-config") + 1])
        assert str(said["fitprune"].pop("recipe")).endswith(".recipe.json")
        assert Settings.read({"fitprune": {**said["fitprune"], "recipe": json.loads(fitprune.Recipe.none(9).to_bytes())}})

    def _python(self, words: list[str], variables: dict[str, str]) -> None:
        name = words.pop(0)
        if module := name == "-m":
            name = words.pop(0)
        if name == "lmms_eval":
            return self._lmms_eval(words)
        if name in LONG_MODULES:
            return self.flags(name, words)
        self._script(name, words, module)

    def _script(self, name: str, words: list[str], module: bool) -> None:
        """A script or module as `python` would run it, in this process."""
        stem = name.rsplit("." if module else "/", 1)[-1].removesuffix(".py")
        if stem not in SMALL_MODULES:
            pytest.fail(f"no way to make {name} small: tell {Path(__file__).name} how")
        self.patch.setattr(sys, "argv", [name, *words, *shlex.split(SMALL_MODULES[stem])])
        self.patch.syspath_prepend(str(Path.cwd()))
        for known in [known for known in sys.modules if known.split(".")[0] in ("llava", "llava_hr")]:
            del sys.modules[known]  # another family's
        with pytest.raises(SystemExit) as left:
            runpy.run_module(name, run_name="__main__") if module else runpy.run_path(name, run_name="__main__")
        assert left.value.code in (0, None), (name, words)

    def _bash(self, words: list[str], variables: dict[str, str]) -> None:
        noted = self.folder / "noted"
        noted.unlink(missing_ok=True)
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(self.folder / "noted.sh"), "NOTED": str(noted)}
        done = subprocess.run(["bash", *words], env={**environment, **variables}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        asked = [call.split("\037")[:-1] for call in noted.read_text().split("\036")[:-1]]
        assert asked
        for call in asked:
            assert call[:2] == ["-m", "fitprune"]
            self._fitprune(call[2:], {})

    def _make(self, words: list[str], variables: dict[str, str]) -> None:
        assert words[0] in LONG_TARGETS | {"help"}, words
        options = ["-n"] if words[0] in LONG_TARGETS else []
        done = subprocess.run(["make", *options, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()

    def _pip(self, words: list[str], variables: dict[str, str]) -> None:
        """Installing is not tried: what is named must be here, or an extra of ours."""
        assert words[0] == "install"
        extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        for word in (word for word in words[1:] if not word.startswith("-")):
            name, _, extra = word.partition("[")
            assert name == "fitprune" or (Path(name) / "pyproject.toml").exists() or name in (".", ".."), word
            assert not extra or extra.removesuffix("]") in extras, word

    def _serve(self, words: list[str]) -> None:
        """Started for good, on a free port; the page's Python may then ask it."""
        try:
            serve.needed()
        except FitPruneError as error:
            fitprune.cli.parser().parse_args(words)
            self.skipped.append(str(error))
            return
        import uvicorn

        def started(server: Any, sockets: list[socket.socket]) -> None:
            kept = [opened.dup() for opened in sockets]  # the command closes its own
            self.at = "{}:{}".format(*kept[0].getsockname())
            thread = threading.Thread(target=uvicorn.Server.serve_in_thread, args=(server, kept), daemon=True)  # type: ignore[attr-defined]
            thread.start()
            self._servers.append((server, thread))
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.05)

        self.patch.setattr(uvicorn.Server, "serve_in_thread", uvicorn.Server.run, raising=False)
        self.patch.setattr(uvicorn.Server, "run", started)
        assert fitprune.cli.main([*words, "--port", "0"]) == 0

    def close(self) -> None:
        for server, thread in self._servers:
            server.should_exit = True
            thread.join(20)

    # ---- Python ---------------------------------------------------------------------------------------------------

    def execute(self, code: str, page: str) -> None:
        """A Python block, with the names that earlier blocks of the page made."""
        self.patch.chdir(self.folder)
        if "127.0.0.1:8000" in code:
            if not self.at:
                return
            code = code.replace("127.0.0.1:8000", self.at)
        exec(compile(code, page, "exec"), self.names)

    def flags(self, module: str, words: Sequence[str]) -> None:
        """Of what takes too long: that the module is there and knows these flags."""
        wanted = [word for word in words if word.startswith("--")]
        self.patch.setattr(sys, "argv", [module, "--help"])
        said = io.StringIO()
        if wanted:
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
                runpy.run_module(module, run_name="__main__")
        assert not [word for word in wanted if not re.search(rf"{word}\b", said.getvalue())], module


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLaVA-1.5 miniature in transformers layout."""
    return convert(Recorded("llava15").checkpoint, tmp_path_factory.mktemp("converted") / "llava-1.5-7b-hf")


def commands(block: str) -> list[str]:
    """The lines of a bash block, continued ones joined, comments and empty ones left out."""
    joined = re.sub(r"\\\n\s*", " ", block)
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of a page's fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
