"""The scoring of one layer alone, against its bytes and FLOPs: how near the kernel comes to what the device can do.

Beside the attention call whose log-sum-exp it uses. FLOPs are two for each number of a head in each pair of a query and a visual key that
it sees; bytes are what has to be read and written once (queries and visual keys, the log-sum-exp, the sums). Ceilings are measured in the
same run: a large matrix product in the same precision, and a large copy. Left out: exponentials, one for all heads of a pair.

    python -m fitprune.bench.scoring --shape small --batch-size 1 2 --repeats 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import arguments, entry, kernels
from ..families.placement import dtype_named
from ..files import write_atomically
from ..tables import aligned
from .clock import Spread, timed
from .machine import machine
from .models import usable_device, within_memory
from .shapes import SHAPES, Shape

SIDE = {"cuda": 8192, "cpu": 1024}  # of the matrices whose product and copy are the ceilings
AT_ONCE = {"cuda": 10, "cpu": 1}  # calls that are timed together: a single one may be shorter than it takes to start it


@torch.inference_mode()
def measure(
    shape: Shape, *, batches: Sequence[int] = (1,), dtype: str = "float32", device: str | None = None, repeats: int = 7
) -> dict[str, Any]:
    """Times attention and scoring of one layer of a shape, before anything was deleted, as plain numbers.

    Args:
        batches: Numbers of rows, a line each.
        repeats: Times of each, of which the medians count.
    Raises:
        FitPruneError: a device or precision that cannot be used, out of memory.
    """
    place, precision = usable_device(device), dtype_named(dtype)
    assert precision is not None  # "auto" is not a choice here
    torch.manual_seed(0)
    with within_memory(f"batches of {', '.join(map(str, batches))}, {shape.length} tokens"):
        rows = [_layer(shape, batch, precision, place, repeats) for batch in batches]
        results = {**machine(place), "dtype": dtype, "tokens": [shape.before, shape.visual, shape.after], "heads": shape.cost.heads}
        return {**results, "head_dim": shape.cost.head_dim, "ceilings": _ceilings(precision, place, repeats), "rows": rows}


def _layer(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device, repeats: int) -> dict[str, Any]:
    """One line: seconds of the attention call, of scoring with its log-sum-exp and without, and what scoring has to do."""
    cost, length, first = shape.cost, shape.length, shape.before
    last = first + shape.visual

    def noise(heads: int) -> Tensor:
        return torch.randn(batch, heads, length, cost.head_dim, device=device, dtype=dtype)

    query, key, value = noise(cost.heads), noise(cost.kv_heads), noise(cost.kv_heads)
    group = torch.full((batch, length), kernels.TEXT, device=device)
    group[:, first:last] = 1
    scaling, share = cost.head_dim**-0.5, cost.heads // cost.kv_heads

    def attention() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=share > 1)

    def scoring(known: Tensor | None) -> Callable[[], Any]:
        hints: dict[str, Any] = {"images": 1, "rows": (first, length), "columns": (first, last), "logsumexp": known}
        return lambda: kernels.received_attention(query, key, scaling, None, group, group.clamp(min=0), **hints)

    found = kernels.attend(query, key, value, scaling, None)
    seen = sum(length - at for at in range(first, last))  # pairs of a query and a visual key that it sees
    numbers = batch * cost.head_dim * (cost.heads * (length - first) + cost.kv_heads * shape.visual)
    return {
        "batch": batch,
        "kernel": "chunked" if kernels.on_gpu(query) is None else "triton",
        "attention": _seconds(attention, device, repeats),
        "scoring": None if found is None else _seconds(scoring(found[1]), device, repeats),
        "scoring_alone": _seconds(scoring(None), device, repeats),
        "flops": 2 * batch * cost.heads * cost.head_dim * seen,
        "bytes": numbers * dtype.itemsize + 4 * batch * (cost.heads * (length - first) + 2 * length),
    }


def _ceilings(dtype: torch.dtype, device: torch.device, repeats: int) -> dict[str, float]:
    """FLOPs a second of a large matrix product, bytes a second (read and written) of a large copy."""
    side = SIDE.get(device.type, SIDE["cpu"])
    left, right, copy = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    product = _seconds(lambda: left @ right, device, repeats)["median"]
    moved = _seconds(lambda: copy.copy_(left), device, repeats)["median"]
    return {"flops_per_second": 2 * side**3 / product, "bytes_per_second": 2 * left.nbytes / moved}


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of one call, from several that follow each other without waiting; kernels are compiled before."""
    calls = AT_ONCE.get(device.type, 1)
    work()
    return Spread.of([timed(lambda: [work() for _ in range(calls)], device)[0] / calls for _ in range(repeats)]).to_dict()


def table(results: dict[str, Any]) -> list[list[str]]:
    """A head, then a row for each batch: what scoring takes, and how near it comes to both ceilings."""
    ceilings = results["ceilings"]
    cells = [["tokens", "batch", "kernel", "attention", "scoring", "alone", "TFLOP/s", "of product", "GB/s", "of copy"]]
    for row in results["rows"]:
        best = row["scoring"] or row["scoring_alone"]
        flops, moved = row["flops"] / best["median"], row["bytes"] / best["median"]
        times = ["" if row[name] is None else f"{1000 * row[name]['median']:.3f} ms" for name in ("attention", "scoring", "scoring_alone")]
        shares = f"{flops / ceilings['flops_per_second']:.1%}", f"{moved / ceilings['bytes_per_second']:.1%}"
        count = str(sum(results["tokens"]))
        cells.append([count, str(row["batch"]), row["kernel"], *times, f"{flops / 1e12:.3f}", shares[0], f"{moved / 1e9:.1f}", shares[1]])
    return cells


def report(results: dict[str, Any]) -> str:
    """The table and the ceilings, as text."""
    flops, moved = results["ceilings"]["flops_per_second"] / 1e12, results["ceilings"]["bytes_per_second"] / 1e9
    legend = (
        f"scoring with the attention's log-sum-exp, alone: without; product {flops:.1f} TFLOP/s, copy {moved:.0f} GB/s, {results['dtype']}"
    )
    return "\n".join([*aligned(table(results)), f"{results['device']}: {legend}"])


def run(args: argparse.Namespace) -> int:
    """Measures, prints and writes; returns the exit code."""
    shape = SHAPES[args.shape].altered(visual=args.visual_tokens, after=args.text_tokens)
    results = measure(shape, batches=args.batch_size, dtype=args.dtype, device=args.device, repeats=args.repeats)
    print(report(results))
    if args.json:
        write_atomically(args.json, (json.dumps(results, indent=1) + "\n").encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="fitprune.bench.scoring", description="Time the scoring of one layer against its bytes and FLOPs.")
    parser.add_argument("--shape", default="small", choices=list(SHAPES), help="heads and prompt")
    parser.add_argument("--visual-tokens", type=arguments.positive, default=None, help="tokens of the image")
    parser.add_argument("--text-tokens", type=arguments.positive, default=None, help="tokens after the image")
    parser.add_argument("--batch-size", type=arguments.positive, nargs="+", default=[1])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, …; default the first GPU, else the CPU")
    parser.add_argument("--repeats", type=arguments.positive, default=7)
    parser.add_argument("--json", default=None, help="also write the results to this file")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
