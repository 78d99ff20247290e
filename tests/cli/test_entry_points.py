"""The commands that people's scripts and the paper's README use, each by subprocess from the family's folder.

Miniature checkpoints of the original layout stand for the real ones: what the authors' own code answered with them was
recorded (tests/parity/), and the commands have to answer the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from multimodal import Recorded

from fitprune import load
from fitprune.cli import main
from fitprune.embedded import embedded
from fitprune.evaluation.benchmarks import BENCHMARKS
from fitprune.families.conversation import build_prompt

ROOT = Path(__file__).parents[2]
CHOICES = ("MODEL", "DATA", "RATIO", "OUTPUT", "EXTRA", "PYTHON", "MODEL_BASE", "VISION_TOWER", "CHUNKS", "BY", "CUDA_VISIBLE_DEVICES")
SCRIPTS = ("textvqa", "gqa", "mme", "pope", "sqa", "vqav2", "vizwiz", "seed", "mmvet", "mmbench", "mmbench_cn")


@dataclass(frozen=True)
class Place:
    """A family's folder, what people type in it, and its recorded miniature; `largest` is a case of that many tokens."""

    folder: str
    package: str
    script: str
    default: str
    miniature: str
    largest: str

    @property
    def recorded(self) -> Recorded:
        return Recorded(self.miniature)


V15 = Place("LLaVA_1.5", "llava", "scripts/v1_5/eval/textvqa.sh", "embedded", "llava15", "square")
NEXT = Place("LLaVA_NEXT", "llava", "scripts/v1_5/eval/textvqa.sh", "embedded-next", "llava_next", "square")
HR = Place("LLaVA_HR", "llava_hr", "scripts/v1_5/eval_full/textvqa.sh", "embedded-hr", "llava_hr", "exact")
each_family = pytest.mark.parametrize("place", [V15, NEXT, HR], ids=lambda place: place.folder)
new_families = pytest.mark.parametrize("place", [NEXT, HR], ids=lambda place: place.folder)


def call(place: Place, *command: str | Path, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in CHOICES}
    variables = {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
    return subprocess.run(
        [str(part) for part in command], cwd=root / place.folder, env=variables, capture_output=True, text=True, timeout=300
    )  # fmt: skip


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


# The embedded models


@pytest.mark.parametrize(
    "place", [V15, *(pytest.param(place, marks=pytest.mark.rest) for place in (NEXT, HR))], ids=lambda place: place.folder
)
def test_textvqa_sh_with_nothing_given(place: Place, tmp_path: Path) -> None:
    done = call(place, "bash", place.script, OUTPUT=str(tmp_path), EXTRA="--limit 10 --samples 6")
    assert done.returncode == 0, done.stderr
    for part in ("recipe fitted now", "dense", "60%", "accuracy", "visual tokens alive after each layer", "ms/question", "GFLOPs"):
        assert part in done.stdout
    assert f"{place.default} on 10 questions" in done.stdout
    assert len((tmp_path / f"{place.default}-60-first10.jsonl").read_text().splitlines()) == 10


@pytest.mark.rest
def test_loader_then_scorer_as_modules(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    done = call(
        V15, sys.executable, "-m", "llava.eval.model_vqa_loader", "--model-path", "embedded", "--answers-file", answers,
        "--num-chunks", "40", "--temperature", "0", "--conv-mode", "vicuna_v1", "--reduction_ratio", "60", "--samples", "4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = call(
        V15, sys.executable, "-m", "llava.eval.eval_textvqa", "--annotation-file", embedded().annotations, "--result-file", answers,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == f"Samples: {len(answers.read_text().splitlines())}"
    assert done.stdout.splitlines()[2].startswith("Accuracy: ")


def test_statistical_analysis_as_a_file(tmp_path: Path) -> None:
    done = call(
        V15, sys.executable, "llava/eval/statistical_analysis.py", "--model-path", "embedded", "--samples", "4",
        "--reduction_ratio", "0.6", "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scheme = json.loads(done.stdout.splitlines()[0])
    assert len(scheme) == load("embedded", device="cpu").cost.layers
    assert json.loads((tmp_path / "embedded-r60.recipe.json").read_text())["counts"] == scheme


# Checkpoints of the original layout, in every family


@pytest.mark.rest
@each_family
def test_textvqa_sh_takes_model_data_and_ratio(place: Place, tmp_path: Path) -> None:
    data = Path("..") / (embedded().data / "textvqa").relative_to(ROOT)  # from where the command is typed
    done = call(
        place, "bash", place.script, place.recorded.checkpoint, data, "0.4", OUTPUT=str(tmp_path),
        EXTRA="--samples 2 --limit 3 --max_new_tokens 4 --conv-mode vicuna_v1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"on 3 questions of {data}" in done.stdout
    recipe = json.loads((tmp_path / "checkpoint-r40.recipe.json").read_text())
    assert [recipe["visual_tokens"]] == place.recorded.cases[place.largest]["num_visual_tokens"]  # of embedded pictures too
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())] == ["dense", "40%"]
    dense, pruned = texts(tmp_path / "checkpoint-dense-first3.jsonl"), texts(tmp_path / "checkpoint-40-first3.jsonl")
    assert len(dense) == len(pruned) == 3
    assert dense != pruned


@pytest.mark.rest
@each_family
def test_the_loader_answers_as_the_original_code(place: Place, tmp_path: Path) -> None:
    """Greedy answers about the recorded pictures, decoded here with the tokenizer as it lies in the folder."""
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(place.recorded.checkpoint)
    questions, expected = [], []
    for name, case in place.recorded.cases.items():
        text = case["prompt"].partition("USER: <image>\n")[2].removesuffix(" ASSISTANT:")
        whole = case["prompt"] == build_prompt("vicuna_v1", [(f"<image>\n{text}", None)])
        if whole and len(case["images"]) == 1 and name != "single_view":  # which was given without its tiles
            questions.append({"question_id": name, "image": case["images"][0], "text": text})
            expected.append(tokenizer.decode(case["generated_ids"], skip_special_tokens=True).strip())
    assert len(questions) >= 3
    file, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    done = call(
        place, sys.executable, "-m", f"{place.package}.eval.model_vqa_loader", "--model-path", place.recorded.checkpoint,
        "--question-file", file, "--image-folder", place.recorded.folder, "--answers-file", answers, "--max_new_tokens", "8",
        "--batch-size", "3", "--temperature", "0", "--conv-mode", "vicuna_v1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert texts(answers) == expected


@pytest.mark.rest
@new_families
def test_statistical_analysis_fits_the_checkpoint_that_is_named(place: Place, tmp_path: Path) -> None:
    done = call(
        place, sys.executable, f"{place.package}/eval/statistical_analysis.py", "--model-path", place.recorded.checkpoint,
        "--samples", "2", "--reduction_ratio", "0.6", "--output", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "checkpoint-r60.recipe.json").read_text())
    assert json.loads(done.stdout.splitlines()[0]) == recipe["counts"]
    assert [recipe["visual_tokens"]] == place.recorded.cases[place.largest]["num_visual_tokens"]


@new_families
def test_the_scorer_is_there(place: Place, tmp_path: Path) -> None:
    line = json.loads(embedded().questions.read_text(encoding="utf-8").splitlines()[0])
    known = json.loads(embedded().annotations.read_text(encoding="utf-8"))["data"][0]
    answer = {"question_id": line["question_id"], "prompt": line["text"], "text": known["answers"][0]}
    (tmp_path / "one.jsonl").write_text(json.dumps(answer) + "\n")
    done = call(
        place, sys.executable, "-m", f"{place.package}.eval.eval_textvqa", "--annotation-file", embedded().annotations,
        "--result-file", tmp_path / "one.jsonl",
    )  # fmt: skip
    assert done.stdout.splitlines() == ["one", "Samples: 1", "Accuracy: 100.00%", ""], done.stderr


# What the paper's README points at, and mistakes


def test_the_pruned_decoder_can_be_found_where_the_paper_says() -> None:
    code = """
import importlib, sys
for place in sys.argv[1:]:
    folder, package = place.split(":")
    sys.path[0] = folder
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    module = importlib.import_module(f"{package}.model.language_model.modeling_llama")
    print(module.__file__.startswith(folder), "Modifications" in module.__doc__, module.prune.__module__, module.attach.__module__)
"""
    places = [f"{ROOT / place.folder}:{place.package}" for place in (V15, NEXT, HR)]
    done = call(V15, sys.executable, "-c", code, *places)
    assert done.stdout.splitlines() == ["True True fitprune.prune fitprune.prune"] * 3, done.stderr


@pytest.mark.parametrize(
    "arguments", [["--reduction_ratio", "1.7"], pytest.param(["--question-file", "missing.jsonl"], marks=pytest.mark.rest)]
)
def test_bad_input_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = call(V15, sys.executable, "-m", "llava.eval.model_vqa_loader", "--answers-file", tmp_path / "a", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.rest
def test_data_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    said = r"fitprune: error: TextVQA needs nowhere/llava_textvqa_.*docs/evaluation.md.*\n"
    done = call(V15, "bash", V15.script, "some/model", "nowhere", OUTPUT=str(tmp_path))
    assert done.returncode == 2
    assert re.fullmatch(said, done.stderr)
    done = call(V15, "bash", V15.script, "some/model", "nowhere", OUTPUT=str(tmp_path), CHUNKS="2")
    assert done.returncode != 0
    assert len(re.findall(said, done.stderr)) == 1  # torchrun says more behind it
    assert not list(tmp_path.iterdir())


@pytest.mark.rest
@new_families
def test_a_checkpoint_that_is_not_there_exits_with_2_and_one_line(place: Place, tmp_path: Path) -> None:
    done = call(place, "bash", place.script, "./missing", embedded().data / "textvqa", OUTPUT=str(tmp_path))
    assert done.returncode == 2
    assert re.fullmatch(r"fitprune: error: no checkpoint at \./missing: .+\n", done.stderr)


# The shell scripts by themselves: PYTHON is a script that prints what it is given


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The scripts of a checkout, in a folder whose name has a space."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts" / "eval", root / "scripts" / "eval")
    for place in (V15, NEXT, HR):
        shutil.copytree(ROOT / place.folder / "scripts", root / place.folder / "scripts")
    python = root / "python"
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    return root


def asked(tree: Path, place: Place, *arguments: str, script: str = "", **environment: str) -> list[str]:
    """What the script would run, without `-m fitprune eval`."""
    environment = {"PYTHON": str(tree / "python"), **environment}
    done = call(place, "bash", script or place.script, *arguments, root=tree, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["-m", "fitprune", "eval"]
    return lines[3:]


@each_family
def test_defaults_are_the_familys(place: Place, tree: Path) -> None:
    playground = str(tree / place.folder / "playground/data/eval")
    assert asked(tree, place) == [
        "--benchmark", "textvqa", "--model-path", place.default, "--reduction_ratio", "60", "--playground", playground,
    ]  # fmt: skip
    python = tree / ".venv" / "bin" / "python"  # and the interpreter is the repository's
    python.parent.mkdir(parents=True)
    shutil.copy(tree / "python", python)
    assert asked(tree, place, PYTHON="")[3] == place.default


@each_family
def test_every_benchmark_has_its_script(place: Place, tree: Path) -> None:
    folder = Path(place.script).parent
    found = {path.stem for path in (ROOT / place.folder / folder).glob("*.sh")}
    assert found == set(SCRIPTS) == set(BENCHMARKS)
    for name in SCRIPTS:
        assert os.access(ROOT / place.folder / folder / f"{name}.sh", os.X_OK)
        command = asked(tree, place, "a/model", script=str(folder / f"{name}.sh"))
        assert command[:4] == ["--benchmark", name, "--model-path", "a/model"]
        assert ("--any-start" in command) == (place is HR and name == "sqa")  # its authors' own rule
    if place is HR:
        assert asked(tree, place, script=str(folder / "sqa.sh"), EXTRA="--limit 2")[-3:] == ["--any-start", "--limit", "2"]


@each_family
def test_every_choice_reaches_the_command(place: Place, tree: Path) -> None:
    environment = {
        "MODEL": "a model", "DATA": "my data", "RATIO": "0.3", "MODEL_BASE": "the base", "VISION_TOWER": "a clip",
        "OUTPUT": "an output", "BY": "mass drift", "EXTRA": "--batch-size 2 --overwrite", "CUDA_VISIBLE_DEVICES": "3",
    }  # fmt: skip
    given = asked(tree, place, **environment)
    assert given[2:8] == ["--model-path", "a model", "--data", "my data", "--reduction_ratio", "0.3"]
    assert given[10:] == [
        "--model-base", "the base", "--vision-tower", "a clip", "--output", "an output", "--by", "mass", "drift",
        "--batch-size", "2", "--overwrite",
    ]  # fmt: skip
    named = asked(tree, place, "first", "second", "0.5", **environment)
    assert named[2:8] == ["--model-path", "first", "--data", "second", "--reduction_ratio", "0.5"]


# Several processes


LAUNCHED = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node"]
NOTING = '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@" "devices ${CUDA_VISIBLE_DEVICES-unset}" "threads ${OMP_NUM_THREADS-unset}"\n'


@pytest.mark.parametrize(
    ("environment", "processes", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "4, 0,GPU-1f"}, 3, "4,0,GPU-1f"),
        ({"CHUNKS": "2"}, 2, "unset"),
        ({"CHUNKS": "3", "CUDA_VISIBLE_DEVICES": "1,0"}, 3, "1,0"),
        ({"CHUNKS": "1", "CUDA_VISIBLE_DEVICES": "1,0"}, 1, "1,0"),  # one model over both
        ({"CUDA_VISIBLE_DEVICES": "2"}, 1, "2"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, ""),
    ],
)
def test_the_devices_or_chunks_say_how_many_processes_torchrun_starts(
    tree: Path, environment: dict[str, str], processes: int, devices: str
) -> None:
    (tree / "python").write_text(NOTING)
    done = call(V15, "bash", V15.script, root=tree, PYTHON=str(tree / "python"), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    *command, shown, threads = done.stdout.splitlines()
    assert (shown, threads) == (f"devices {devices}", "threads 1")  # as `call` has it
    launcher = [*LAUNCHED, str(processes)] if processes > 1 else []
    assert command[: len(launcher) + 5] == [*launcher, "-m", "fitprune", "eval", "--benchmark", "textvqa"]
    assert "--num-chunks" not in command


def test_processes_share_the_cores_unless_it_is_said(tree: Path) -> None:
    (tree / "python").write_text(NOTING)
    done = call(V15, "bash", V15.script, root=tree, PYTHON=str(tree / "python"), CHUNKS="2", OMP_NUM_THREADS="")
    assert done.stdout.splitlines()[-1] == f"threads {max((os.cpu_count() or 1) // 2, 1)}"


@pytest.mark.parametrize("chunks", ["0", "two", "-1", "1.5"])
def test_a_number_of_processes_that_is_none(tree: Path, chunks: str) -> None:
    done = call(V15, "bash", V15.script, root=tree, PYTHON=str(tree / "python"), CHUNKS=chunks)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"CHUNKS={chunks}" in done.stderr


WORKER = """import os, pathlib, sys, time
here = pathlib.Path(os.environ["NOTES"])
(here / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
if os.environ["RANK"] == os.environ.get("FAILING"):
    while len([file for file in here.glob("pid-*") if file.read_text()]) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)
    sys.exit("fitprune: error: no such image")
time.sleep(250)
"""


@pytest.fixture
def worker(tree: Path) -> dict[str, str]:
    """The environment in which torchrun starts, instead of ours, a `fitprune` that notes its process and fails or sleeps."""
    (tree / "fitprune").mkdir()
    (tree / "fitprune" / "__main__.py").write_text(WORKER)
    return {"PYTHONPATH": str(tree), "NOTES": str(tree), "PYTHON": sys.executable}


def noted(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("pid-*") if (text := file.read_text())]


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("failing", ["0", "1"])
def test_the_first_failure_stops_all_with_its_message(worker: dict[str, str], tree: Path, failing: str) -> None:
    done = call(V15, "bash", V15.script, root=tree, CHUNKS="2", FAILING=failing, **worker)
    assert done.returncode != 0
    assert done.stderr.splitlines().count("fitprune: error: no such image") == 1
    assert len(noted(tree)) == 2
    assert_gone(noted(tree))


def test_stopping_the_script_stops_its_processes(worker: dict[str, str], tree: Path) -> None:
    environment = {**os.environ, **worker, "CHUNKS": "2"}
    script = subprocess.Popen(["bash", V15.script], cwd=tree / V15.folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while len(noted(tree)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        script.terminate()
        assert script.wait(60) != 0
    finally:
        script.kill()
    assert len(noted(tree)) == 2
    assert_gone(noted(tree))


FEW = ["--limit", "5", "--samples", "2", "--max_new_tokens", "4"]
STEMS = ("embedded-dense-first5", "embedded-60-first5")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process answers."""
    output = tmp_path_factory.mktemp("alone")
    assert main(["eval", *FEW, "--output", str(output)]) == 0
    return output


def assert_alike(one: Path, two: Path) -> None:
    rows = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    assert [row["headline"] for row in rows[0]] == [row["headline"] for row in rows[1]]


@pytest.mark.rest
def test_two_processes_continue_and_answer_as_one(alone: Path, tmp_path: Path) -> None:
    first = (alone / f"{STEMS[0]}.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (tmp_path / f"{STEMS[0]}.jsonl").write_bytes(b"".join(first) + b'{"question_id"')  # as if a run had been cut off
    done = call(V15, "bash", V15.script, OUTPUT=str(tmp_path), EXTRA=" ".join(FEW), CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{STEMS[0]}.jsonl").read_bytes().startswith(b"".join(first))  # nothing was answered twice
    for stem in STEMS:
        assert texts(tmp_path / f"{stem}.jsonl") == texts(alone / f"{stem}.jsonl")
        assert not (tmp_path / stem).exists()
    assert_alike(alone, tmp_path)


@pytest.mark.rest
def test_chunks_that_an_earlier_run_began_are_continued(alone: Path, tmp_path: Path) -> None:
    """Files of `--num-chunks 2 --chunk-idx 0`, as the script wrote them before it left processes to torchrun."""
    assert main(["eval", *FEW, "--output", str(tmp_path), "--num-chunks", "2", "--chunk-idx", "0"]) == 0
    first = tmp_path / STEMS[1] / "2_0.jsonl"
    kept = first.read_bytes()
    done = call(V15, "bash", V15.script, OUTPUT=str(tmp_path), EXTRA=" ".join(FEW), CHUNKS="2")
    assert done.returncode == 0, done.stderr
    assert first.read_bytes() == kept  # nothing was answered twice
    for stem in STEMS:
        assert sorted(path.name for path in (tmp_path / stem).iterdir()) == ["2_0.jsonl", "2_1.jsonl", "merge.jsonl"]
        assert [len(texts(tmp_path / stem / f"2_{k}.jsonl")) for k in (0, 1)] == [3, 2]
        assert texts(tmp_path / stem / "merge.jsonl") == texts(alone / f"{stem}.jsonl")
    assert_alike(alone, tmp_path)


# Files for servers


@pytest.mark.parametrize("name", ["convert_vqav2_for_submission", "convert_vizwiz_for_submission", "convert_mmvet_for_eval"])
def test_the_converters_are_where_people_expect_them(name: str) -> None:
    done = call(V15, sys.executable, f"scripts/{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name} ")
    assert len({(ROOT / place.folder / "scripts" / f"{name}.py").read_bytes() for place in (V15, NEXT, HR)}) == 1
