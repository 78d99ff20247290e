"""`fitprune bench`: how long things take, dense and pruned in the same run, beside what FLOPs promise.

No weights are needed: decoder, vision tower and prompt are random, at a named shape. Nothing that pruning costs is left out of
its time (hooks, scores, selection, gathering), it runs the same attention as plain dense, and the share of the ideal is
told against the fastest dense kind of the run as well.

    shapes.py      named sizes, and a recipe for each
    models.py      random weights and a prompt
    kinds.py       what takes turns: dense, flash, compiled, pruned, bare, the authors' way (eager_maps.py)
    clock.py       alternating rounds, medians and quartiles, peak memory
    parts.py       vision tower, scoring and selection, decoding, the cache's bytes
    break_even.py  from which length on pruning pays
    figures.py     one run, as plain figures
    report.py, plot.py, machine.py     tables, picture, what it was measured on

    fitprune bench --repeats 5
"""

from __future__ import annotations

import argparse
import json

from .. import options
from ..files import write_atomically
from . import plot
from .figures import PARTS, measure
from .kinds import BASELINES
from .report import report
from .shapes import SHAPES, Shape, recipe_for

__all__ = ["SHAPES", "Shape", "add_options", "measure", "recipe_for", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune bench`."""
    parser.add_argument(
        "--shape", default="small", choices=list(SHAPES), help="decoder, prompt and vision tower; weights are random"
    )
    options.add_ratio(
        parser, "share of the visual compute to save; several are measured in one run", nargs="+", default=[0.6]
    )
    parser.add_argument(
        "--recipe",
        default=None,
        help="a recipe file instead; default the published one, else a step at layer 1 that meets the ratio",
    )
    group = parser.add_argument_group("changes to the shape")
    group.add_argument(
        "--visual-tokens", type=options.positive, default=None, help="tokens of the image (no vision tower then)"
    )
    group.add_argument("--text-tokens", type=options.positive, default=None, help="tokens after the image")
    group.add_argument("--layers", type=options.positive, default=None, help="decoder layers (step recipes only)")
    group.add_argument("--batch-size", type=options.positive, default=1)
    group.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, …; default the first GPU, else the CPU")
    group.add_argument(
        "--attn", default="sdpa", help="attention implementation, dense and pruned: sdpa, eager, flash_attention_2"
    )
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--baseline",
        nargs="+",
        action="extend",
        default=None,
        choices=BASELINES,
        help="compare with these besides plain dense (eager-maps: the authors' way of pruning); default on a GPU flash and compiled",
    )
    group.add_argument("--repeats", type=options.positive, default=7, help="rounds in which all kinds take turns")
    group.add_argument("--decode-tokens", type=options.positive, default=16, help="tokens decoded after the prefill")
    group.add_argument("--skip", nargs="+", action="extend", default=[], choices=PARTS, help="parts to leave out")
    group.add_argument(
        "--merge-steps",
        action="store_true",
        help="measure what a step costs and add the recipe with its steps merged for it",
    )
    group.add_argument(
        "--break-even", action="store_true", help="search the number of visual tokens from which pruning pays"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", default=None, help="also write all figures to this file")
    group.add_argument(
        "--plot", default=None, help="also draw the prefill's times into this PNG file (needs matplotlib)"
    )


def run(args: argparse.Namespace) -> int:
    """Benchmarks one shape and prints its tables."""
    if args.plot:
        plot.check()
    shape = SHAPES[args.shape].altered(visual=args.visual_tokens, after=args.text_tokens, layers=args.layers)
    figures = measure(
        shape, args.reduction_ratio, recipe_file=args.recipe, batch=args.batch_size, repeats=args.repeats, dtype=args.dtype,
        device=args.device, attn=args.attn, baselines=args.baseline, skip=args.skip, decode_tokens=args.decode_tokens,
        merge_steps=args.merge_steps, find_break_even=args.break_even,
    )  # fmt: skip
    figures = {"shape": args.shape, **figures}
    print(report(figures))
    if args.json:
        write_atomically(args.json, (json.dumps(figures, indent=1) + "\n").encode())
    if args.plot:
        plot.save(figures, args.plot)
    return 0
