"""A first hour on a GPU, in nine minutes: every test that needs one, then how long things take, the most valuable first.

Each part is a process of its own with a limit of its own, so that neither a crash nor a hang takes the others along; what the whole may
take is bounded (`--budget`), and a part for which too little is left is named as skipped. After every part the results are written anew, so
that a run that is cut off leaves what it had found:

    OUT/gpu_check.json    every part: how it ended, how long it took, all its figures
    OUT/gpu_check.md      the figures that matter, as tables
    OUT/gpu_check.log     what the parts printed

Nothing is installed or fetched: it needs torch, transformers, accelerate and pytest, and runs with those that are there. Left out:
several GPUs, which docs/devices.md tries on CPUs.

    bash scripts/gpu_check.sh OUT
    bash scripts/gpu_check.sh OUT --rehearse        the same parts on a CPU, with tiny shapes
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fitprune import arguments, entry  # noqa: E402  (found beside this file, installed or not)
from fitprune.bench import scoring  # noqa: E402
from fitprune.errors import FitPruneError  # noqa: E402
from fitprune.files import write_atomically  # noqa: E402
from fitprune.tables import markdown  # noqa: E402

BUDGET = 9 * 60 - 10  # seconds for all parts; the rest of nine minutes is for beginning and ending
GRACE = 5  # seconds for a part that is out of time to write what it has: pytest does, when it is interrupted
LEAST = 12  # seconds below which a part is not begun: it would do nothing but import
TEXT = "29"  # tokens after the image, which with the 35 before it make 640 and 2944 of 576 and 2880
PATIENCE = 5  # times as long for each part of a rehearsal, beside whatever else runs on a CPU
DONE, FAILED, CUT, SKIPPED = "done", "failed", "cut off", "skipped: no time was left"


@dataclass(frozen=True)
class Part:
    """A piece of the work: at most so many seconds of a command, which writes its figures to the file that ends it."""

    name: str
    limit: int
    command: tuple[str, ...]


def tests(*what: str) -> tuple[str, ...]:
    """A command that runs tests, in several processes where pytest-xdist is there: most of the time goes into compiling kernels."""
    many = ("-n", str(min(8, os.cpu_count() or 1))) if find_spec("xdist") else ()
    return (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", *many, *what, "--junitxml")


def needing_a_gpu() -> list[str]:
    """The test files with tests that are skipped without a GPU."""
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def parts(rehearse: bool) -> list[Part]:
    """All parts, the most valuable first; in a rehearsal they are as many, and small."""

    def bench(name: str, limit: int, shape: str, batch: int, *baselines: str, repeats: int = 7) -> Part:
        size = ("--shape", shape, "--text-tokens", TEXT, "--dtype", "bfloat16", "--repeats", str(repeats))
        if rehearse:
            size = (
                "--layers", "4", "--visual-tokens", "24", "--text-tokens", "4", "--dtype", "float32", "--repeats", "1", "--device", "cpu",
            )  # fmt: skip
        command = (sys.executable, "-m", "fitprune", "bench", *size, "--batch-size", str(batch), "--baseline", *baselines)
        less = ("vision", "memory", "decode") if rehearse else ("vision",)
        return Part(name, limit, (*command, "--skip", *less, "--decode-tokens", "8", "--json"))

    layer = (sys.executable, "-m", "fitprune.bench.scoring", "--text-tokens", TEXT, "--dtype", "bfloat16", "--batch-size", "1", "8")
    small = ("--visual-tokens", "24", "--device", "cpu", "--repeats", "1") if rehearse else ()
    gpu = ("tests/kernels/test_trust.py",) if rehearse else ("-m", "gpu", *needing_a_gpu())
    kernels = ("tests/kernels/test_select.py",) if rehearse else ("-m", "not gpu and not rest", "tests/kernels/test_triton.py")
    near, far = ("small", "small-long") if rehearse else ("llava-1.5-7b", "llava-next-7b")
    return [
        bench("640 tokens, batch 1", 90, near, 1, "flash"),
        Part("tests that need a GPU", 120, tests(*gpu)),
        bench("640 tokens, batch 8", 75, near, 8, "flash"),
        bench("2944 tokens, batch 1", 75, far, 1, "flash"),
        Part("scoring, 640 tokens", 40, (*layer, "--shape", near, *small, "--json")),
        Part("scoring, 2944 tokens", 40, (*layer, "--shape", far, *small, "--json")),
        bench("2944 tokens, batch 8", 90, far, 8, "flash", repeats=3),
        bench("640 tokens, batch 1, compiled", 110, near, 1, *(("dense",) if rehearse else ("compiled",)), repeats=5),
        Part("tests of the kernels, compiled", 120, tests(*kernels)),
        bench("2944 tokens, batch 8, compiled", 120, far, 8, *(("dense",) if rehearse else ("compiled",)), repeats=3),
    ]  # fmt: skip


def run_part(part: Part, seconds: float, log: Path) -> dict[str, Any]:
    """Runs one part and reads what it wrote: how it ended, how long it took, its figures."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    with TemporaryDirectory() as folder, open(log, "a", encoding="utf-8") as said:
        file = Path(folder, "figures")
        print(f"\n==== {part.name}: {' '.join(part.command)}", file=said, flush=True)
        began = time.monotonic()
        process = subprocess.Popen(
            [*part.command, str(file)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:  # also when this process is told to stop: nothing goes on by itself
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        ended = CUT if code is None else DONE if code == 0 else FAILED
        found = {"name": part.name, "ended": ended, "exit_code": code, "seconds": round(time.monotonic() - began, 1)}
        return {**found, "figures": read_figures(file)}


def read_figures(file: Path) -> Any:
    """What a part wrote: JSON, or pytest's XML as counts and the names of what failed; None if there is nothing whole."""
    with suppress(OSError, ValueError, xml.ParseError):
        text = file.read_text(encoding="utf-8")
        if not text.startswith("<"):
            return json.loads(text)
        tree = xml.fromstring(text)
        cases, ended = list(tree.iter("testcase")), sum(int(suite.get("tests", 0)) for suite in tree.iter("testsuite"))
        kinds = {kind: [case for case in cases if case.find(kind) is not None] for kind in ("failure", "error", "skipped")}
        wrong = [*kinds["failure"], *kinds["error"]]
        skipped = sorted({str(case.find("skipped").get("message")) for case in kinds["skipped"]})  # type: ignore[union-attr]
        names = [f"{case.get('classname')}::{case.get('name')}" for case in wrong]
        passed = ended - len(wrong) - len(kinds["skipped"])  # a test that was cut off is a case, and has not ended
        return {"passed": passed, "failed": len(wrong), "skipped": len(kinds["skipped"]), "names": names, "reasons": skipped}
    return None


# Tables.


def prefills(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A row for each variant of each prefill that was timed."""
    yield ["tokens", "batch", "method", "variant", "median, ms", "× dense", "× best dense", "of the ideal", "of bare"]
    for figures in (part["figures"] for part in results if "best_dense" in (part["figures"] or {})):
        size = [str(sum(figures["tokens"])), str(figures["batch"])]
        dense, best = figures["dense"], figures["best_dense"]
        for name, row in dense.items():
            gain = f"{dense['dense']['seconds']['median'] / row['seconds']['median']:.2f}"
            yield [*size, "–", name, f"{1000 * row['seconds']['median']:.1f}", gain, "", "", ""]
        for recipe in figures["recipes"]:
            for name, row in recipe["prefill"].items():
                gains = [f"{row['speedup'][base]['median']:.2f}" for base in ("dense", best)]
                shares = [f"{row['share_of_ideal']['dense']:.0%} of {recipe['ideal_speedup']:.2f}", f"{row['share_of_bare']:.0%}"]
                yield [*size, f"{recipe['name']}", name, f"{1000 * row['seconds']['median']:.1f}", *gains, *shares]


def layers(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A row for each batch of each layer whose scoring was timed alone."""
    found = [scoring.table(part["figures"]) for part in results if "ceilings" in (part["figures"] or {})]
    yield from [row for number, rows in enumerate(found) for row in (rows if number == 0 else rows[1:])]


def ends(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """A row for each part: how it ended, and what its tests found."""
    yield ["part", "ended", "seconds", "tests passed / failed / skipped", "failed"]
    for part in results:
        figures = part["figures"] if "passed" in (part["figures"] or {}) else None
        counts = "" if figures is None else " / ".join(str(figures[name]) for name in ("passed", "failed", "skipped"))
        yield [part["name"], part["ended"], f"{part['seconds']:.0f}", counts, "" if figures is None else "<br>".join(figures["names"])]


def page(results: Sequence[dict[str, Any]], rehearsed: bool) -> str:
    """All tables as one markdown page."""
    lines = ["# GPU check" + (" (rehearsed on a CPU: the figures mean nothing)" if rehearsed else ""), ""]
    known = next((part["figures"] for part in results if "versions" in (part["figures"] or {})), None)
    if known:
        versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
        lines += [f"{known['date']}, {known['device']}; {versions}; {known['dtype']}", ""]
    tables: tuple[tuple[str, Callable[[Sequence[dict[str, Any]]], Iterator[list[str]]]], ...] = (
        ("Prefill", prefills), ("Scoring of one layer", layers), ("Parts", ends),
    )  # fmt: skip
    for title, rows in tables:
        cells = list(rows(results))
        if len(cells) > 1:
            lines += [f"## {title}", "", *markdown(cells), ""]
    notes = dict.fromkeys(note for part in results for note in (part["figures"] or {}).get("notes", ()))
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def run(args: argparse.Namespace) -> int:
    """Runs the parts one after the other; 0 if all that was begun is done, 1 if not. Raises FitPruneError for a part that is none."""
    chosen = parts(args.rehearse)
    if unknown := set(args.parts or ()) - {part.name for part in chosen}:
        raise FitPruneError(f"no part is called {sorted(unknown)[0]!r}: use some of {'; '.join(part.name for part in chosen)}")
    out, results, began = Path(args.out), [], time.monotonic()
    log = out / "gpu_check.log"
    write_atomically(log, b"")
    for part in chosen:
        if args.parts and part.name not in args.parts:
            continue
        left = args.budget - (time.monotonic() - began)
        if left < LEAST:
            results.append({"name": part.name, "ended": SKIPPED, "exit_code": None, "seconds": 0.0, "figures": None})
        else:
            results.append(run_part(part, min(part.limit * (PATIENCE if args.rehearse else 1), left), log))
        print(f"{part.name}: {results[-1]['ended']}, {results[-1]['seconds']:.0f} s", flush=True)
        write_atomically(out / "gpu_check.json", (json.dumps({"rehearsed": args.rehearse, "parts": results}, indent=1) + "\n").encode())
        write_atomically(out / "gpu_check.md", page(results, args.rehearse).encode())
    print(f"{out / 'gpu_check.md'}: {sum(part['ended'] == DONE for part in results)} of {len(results)} parts done")
    return int(any(part["ended"] in (FAILED, CUT) for part in results))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 1 if a part failed, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="gpu_check", description="Test and time FitPrune on this machine's GPU, in bounded time.")
    parser.add_argument("out", nargs="?", default="runs/gpu_check", help="folder for gpu_check.json, gpu_check.md and gpu_check.log")
    parser.add_argument("--budget", type=arguments.positive, default=BUDGET, help="seconds for all parts together")
    parser.add_argument("--parts", nargs="+", default=None, metavar="NAME", help="only these, by the names that the table has")
    parser.add_argument("--rehearse", action="store_true", help="the same parts on a CPU, with tiny shapes")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended as well
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
