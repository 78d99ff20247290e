"""`fitprune bench`: options, and where the results go (fitprune/bench/ measures).

fitprune bench --repeats 5
"""

from __future__ import annotations

import argparse
import json

from .. import arguments
from ..bench import BASELINES, BREAKDOWN, METHODS
from ..bench.shapes import SHAPES
from ..draw import style
from ..files import write_atomically

HELP = "time random weights, dense and pruned in turn, against the ideal from FLOPs"
EXAMPLES = """examples:
  fitprune bench                                           32 layers x 1024, 35+576+64 tokens, ratio 0.6, both methods
  fitprune bench --reduction-ratio 0.4 0.6 0.8 --baseline eager-maps --json bench.json --plot bench.png
  fitprune bench --shape llava-1.5-7b --dtype bfloat16 --batch-size 8 --merge-steps --break-even
  fitprune bench --methods recommended --layers 8 --batch-size 8
  fitprune bench --schedule "1 step from layer 1" --score last
  fitprune bench --shape small-long --repeats 3 --skip vision decode
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune bench`."""
    parser.add_argument("--shape", default="small", choices=list(SHAPES), help="decoder, prompt and vision tower; weights are random")
    arguments.add_ratio(parser, "share of the visual compute to save; several are measured in one run", nargs="+", default=[0.6])
    parser.add_argument(
        "--recipe", default=None, help="a recipe file instead; default the published one, else a step at layer 1 that meets the ratio"
    )
    parser.add_argument("--schedule", default=None, help="a schedule that meets the ratio instead, such as '2 steps from layer 1'")
    arguments.add_score(parser)
    parser.add_argument(
        "--methods", nargs="+", default=None, choices=METHODS,
        help="paper: the published recipe, or what --recipe, --schedule and --score say; recommended: two steps ranked by spread, "
        "at the same reduction. Default both, but only the former with one of those three",
    )  # fmt: skip
    group = parser.add_argument_group("changes to the shape")
    group.add_argument("--visual-tokens", type=arguments.positive, default=None, help="tokens of the image (no vision tower then)")
    group.add_argument("--text-tokens", type=arguments.positive, default=None, help="tokens after the image")
    group.add_argument("--layers", type=arguments.positive, default=None, help="decoder layers (step recipes only)")
    group.add_argument("--batch-size", type=arguments.positive, default=1)
    group.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, …; default the first GPU, else the CPU")
    group.add_argument("--attn", default="sdpa", help="attention implementation, dense and pruned: sdpa, eager, flash_attention_2")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--baseline", nargs="+", action="extend", default=None, choices=BASELINES,
        help="compare with these besides plain dense (eager-maps: the authors' way of pruning); default on a GPU flash and compiled",
    )  # fmt: skip
    group.add_argument("--repeats", type=arguments.positive, default=7, help="rounds in which all variants take turns")
    group.add_argument("--decode-tokens", type=arguments.positive, default=16, help="tokens decoded after the prefill")
    group.add_argument("--skip", nargs="+", action="extend", default=[], choices=BREAKDOWN, help="measurements to leave out")
    group.add_argument(
        "--merge-steps", action="store_true", help="measure what a step costs and add the recipe with its steps merged for it"
    )
    group.add_argument("--break-even", action="store_true", help="search the number of visual tokens from which pruning pays")
    group = parser.add_argument_group("output")
    group.add_argument("--json", default=None, help="also write all results to this file")
    group.add_argument("--plot", default=None, help="also draw the prefill's times into this PNG file (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Benchmarks one shape and prints its tables."""
    from ..bench.measure import measure
    from ..bench.plot import plot
    from ..bench.report import report

    if args.plot:
        style.figure(1, 1)  # finds out before anything is timed whether matplotlib is there
    shape = SHAPES[args.shape].altered(visual=args.visual_tokens, after=args.text_tokens, layers=args.layers)
    results = measure(
        shape, args.reduction_ratio, recipe_file=args.recipe, schedule=args.schedule,
        score=args.score, methods=args.methods, batch=args.batch_size, repeats=args.repeats, dtype=args.dtype,
        device=args.device, attn=args.attn, baselines=args.baseline, skip=args.skip, decode_tokens=args.decode_tokens,
        merge_steps=args.merge_steps, find_break_even=args.break_even,
    )  # fmt: skip
    results = {"shape": args.shape, **results}
    print(report(results))
    if args.json:
        write_atomically(args.json, (json.dumps(results, indent=1) + "\n").encode())
    if args.plot:
        style.save(plot(results), args.plot)
    return 0
