"""The `fitprune` command: fit, eval, sweep, report, draw, show, convert, serve, bench, demo.

fitprune fit                                         fit a recipe for the embedded model, print and save it
fitprune eval --benchmark gqa                        dense against pruned on a benchmark, the embedded one for embedded models
fitprune report --question-file Q --image-folder I   drift of pruned from dense on questions of one's own, no labels needed
fitprune sweep --benchmarks textvqa,gqa              methods × ratios × benchmarks at equal cost, in a table and a picture
fitprune draw --image P --question Q                 which patches survive each layer: PNG, GIF, HTML page, heat maps
fitprune show llava-v1.5-7b 0.6                      print a published recipe
fitprune convert liuhaotian/llava-v1.5-7b DST        an original checkpoint in transformers layout
fitprune serve --reduction-ratio 0.6                 a pruned model behind transformers' HTTP server
fitprune bench                                       time and memory of dense and pruned runs against the FLOPs ideal
fitprune demo                                        a page on this machine: dense and pruned answers side by side
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from . import bench, options, serve, sweep
from . import report as command_report
from .calibrate import file_name, observe_questions
from .checkpoints.convert import convert
from .cost import CostModel
from .demo import command as command_demo
from .draw import command as draw
from .embedded import MODEL_NAME
from .errors import FitPruneError
from .evaluation import command as command_eval
from .evaluation.answer import encode_questions
from .families import load
from .files import nearest_existing
from .fit import fit_all
from .ranks import Ranks
from .ratio import parse_ratio
from .recipe import Recipe, published_ratios
from .replay import replay
from .stats import AttentionStats
from .version import __version__

TOGETHER = ("fit", "eval", "sweep", "report")  # what the processes of torchrun or accelerate launch share
EXAMPLES = {
    "fit": """examples:
  fitprune fit                                             the embedded model, ratio 0.6
  fitprune fit --reduction-ratio 0.4 0.6 0.8 --stats stats.safetensors
  fitprune fit --model-path llava-hf/llava-1.5-7b-hf --calibration-file questions.jsonl --image-folder images
""",
    "eval": """examples:
  fitprune eval                                            the embedded model on the embedded questions, ratio 0.6
  fitprune eval --reduction-ratio 0.3 0.5 0.7 --scores fitprune random
  fitprune eval --benchmark gqa --scores fitprune cross random
  fitprune eval --benchmark mme --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60 --data playground/data/eval/MME
""",
    "report": """examples:
  fitprune report                                          the embedded model on the embedded questions, ratios 0.3, 0.5, 0.7
  fitprune report --model-path llava-hf/llava-1.5-7b-hf --question-file questions.jsonl --image-folder images --limit 200
  fitprune report --reduction-ratio 0.2 0.4 0.6 0.8 --at-most 2% --json report.json
""",
    "sweep": """examples:
  fitprune sweep --limit 100                               the embedded model on embedded TextVQA and GQA, 10 to 90%
  fitprune sweep --ratios 0,20,...,80 --methods fitprune,fastv,vtw --benchmarks gqa,pope
  fitprune sweep --methods cross,self,fitprune --ratios 50,70 --benchmarks mme --output runs/scores
""",
    "draw": """examples:
  fitprune draw                                            an embedded question, ratio 0.6, everything into runs/draw
  fitprune draw --image photo.jpg --question "What is this?" --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60
  fitprune draw --formats html --output page.html --recipe my.recipe.json --score last
  fitprune draw --recipes llava-v1.5-7b:0.2,0.4,0.6,0.8 my.recipe.json --output recipes.png
""",
    "show": """examples:
  fitprune show llava-v1.5-7b 0.6                          a published recipe
  fitprune show llava-v1.5-7b                              which ratios are published
  fitprune show llava-v1.5-7b 0.6 --merge-steps 100        in fewer steps, where a step is dear
  fitprune show my.recipe.json --visual-tokens 1024        a recipe file, for images of another size
""",
    "convert": """examples:
  fitprune convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf
  fitprune convert ./llava-hr-7b-sft-1024 ./llava-hr-7b-sft-1024-hf
  fitprune convert ./llava-v1.5-7b-lora ./merged --model-base lmsys/vicuna-7b-v1.5
""",
    "serve": """examples:
  fitprune serve                                           the embedded model at ratio 0.6, at http://127.0.0.1:8000/v1
  fitprune serve --model-path liuhaotian/llava-v1.5-7b --reduction-ratio 0.6 --port 9000
  fitprune serve --model-path llava-hf/llava-1.5-13b-hf --recipe llava-1.5-13b-hf-r60.recipe.json
""",
    "bench": """examples:
  fitprune bench                                           32 layers x 1024, 35+576+64 tokens, ratio 0.6
  fitprune bench --reduction-ratio 0.4 0.6 0.8 --baseline eager-maps --json bench.json --plot bench.png
  fitprune bench --shape llava-1.5-7b --dtype bfloat16 --batch-size 8 --merge-steps --break-even
  fitprune bench --shape small-long --repeats 3 --skip vision decode
""",
    "demo": """examples:
  fitprune demo                                            the embedded model on http://127.0.0.1:7860
  fitprune demo --port 0 --model-path liuhaotian/llava-v1.5-7b
  fitprune demo --model-path llava-hf/llava-1.5-13b-hf --calibration-file questions.jsonl --calibration-images images
""",
}


def _fit(args: argparse.Namespace) -> int:
    ranks: Ranks = args.ranks
    ranks.first(lambda: _check_output(args))
    if args.replay:
        options.alone("--replay")
        return _replay(args)
    if args.from_stats:
        options.alone("--from-stats, which needs no model,")
        stats = AttentionStats.load(args.from_stats)
    else:
        loaded = load(args.model_path, **options.load_options(args))
        stats = observe_questions(loaded, options.calibration(args), ranks=ranks)

    def keep() -> None:
        if args.stats and not args.from_stats:
            stats.save(args.stats)
            print(f"statistics of {stats.samples} samples saved as {args.stats}")
        for ratio, recipe in fit_all(stats, None, args.reduction_ratio).items():
            _keep(recipe, args, file_name(stats.model or "model", ratio))

    ranks.first(keep)
    return 0


def _replay(args: argparse.Namespace) -> int:
    loaded = load(args.model_path, **options.load_options(args))
    calibration = options.calibration(args)
    samples = [encode_questions(loaded, [q], calibration.image_folder) for q in calibration.questions()]
    for ratio in args.reduction_ratio:
        recipe, _ = replay(loaded.model, samples, ratio)
        _keep(recipe, args, file_name(loaded.name, ratio, "replayed"), loaded.cost)
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """Finds out before the model runs whether its results can be kept."""
    if args.output and len(args.reduction_ratio) > 1 and Path(args.output).suffix == ".json":
        raise FitPruneError(
            f"--output {args.output} is one file but there are {len(args.reduction_ratio)} ratios: name a folder"
        )
    folder = Path(args.output or ".")
    folder = folder.parent if folder.suffix == ".json" else folder
    for needed in (folder, *([Path(args.stats).parent] if args.stats else [])):
        there = nearest_existing(needed)
        if not there.is_dir():
            raise FitPruneError(f"{there} is a file, not a folder: choose another place for the results")
        if not os.access(there, os.W_OK):
            raise FitPruneError(f"{there} cannot be written to: choose another place for the results")


def _keep(recipe: Recipe, args: argparse.Namespace, stem: str, cost: CostModel | None = None) -> None:
    """Prints the scheme and the recipe, and saves it, its steps merged first if that was asked for."""
    if args.merge_steps:
        recipe, stem = recipe.merge_steps(args.merge_steps, cost), f"{stem}-merged"
    path = Path(args.output or ".")
    if path.suffix != ".json":
        path /= f"{stem}.recipe.json"
    recipe.save(path)
    print(list(recipe.counts))  # the scheme, as the released script prints it
    print(recipe)
    print(f"saved as {path}")


def _show(args: argparse.Namespace) -> int:
    if args.recipe.endswith(".json") or Path(args.recipe).is_file():
        if args.ratio is not None:
            raise FitPruneError(f"{args.recipe} is a recipe file and has its own ratio: leave {args.ratio} out")
        recipe = Recipe.load(args.recipe)
    elif args.ratio is None:
        ratios = ", ".join(f"{ratio:g}" for ratio in published_ratios(args.recipe))
        print(f"published ratios of {args.recipe}: {ratios}")
        return 0
    else:
        recipe = Recipe.published(args.recipe, parse_ratio(args.ratio))
    recipe = recipe.merge_steps(args.merge_steps)
    print(recipe)
    if args.visual_tokens is not None:
        print(f"deletions per layer for an image of {args.visual_tokens} tokens:")
        print(recipe.deletions(args.visual_tokens))
    return 0


def _convert(args: argparse.Namespace) -> int:
    made = convert(args.source, args.target, model_base=args.model_base, vision_tower=args.vision_tower)
    print(f"{args.source} written in transformers layout as {made}")
    return 0


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults and leaves examples as they are."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="fitprune", description="Fit and prune: training-free visual token pruning for multi-modal models.", epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fitprune {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="fit | eval | sweep | report | draw | show | convert | serve | bench | demo"
    )

    def command(name: str, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", epilog=EXAMPLES[name],
            formatter_class=_Help,
        )  # fmt: skip
        return made

    fit = command("fit", "fit recipes from one pass over calibration questions")
    add_fit_options(fit)

    evaluate = command("eval", "answer a benchmark densely and pruned, and compare accuracy, compute and time")
    command_eval.add_options(evaluate)

    drift = command(
        "report", "measure how far pruning drifts from the dense model on your own questions, without labels"
    )
    command_report.add_options(drift)

    sweeping = command("sweep", "compare methods at several ratios on several benchmarks, at equal cost")
    sweep.add_options(sweeping)

    drawing = command("draw", "draw what a recipe deletes from a picture, layer by layer, and what was attended to")
    draw.add_options(drawing)

    show = command("show", "print a recipe: a file, or a published one by model and ratio")
    show.add_argument("recipe", help="a recipe file, or the name of a published model")
    show.add_argument("ratio", nargs="?", default=None, help="reduction ratio of a published recipe")
    show.add_argument(
        "--visual-tokens",
        type=options.positive,
        default=None,
        help="also print the deletions for images of this many tokens",
    )
    add_merging(show)

    conversion = command("convert", "write a checkpoint of the original LLaVA layout in transformers layout")
    conversion.add_argument("source", help="folder or hub name of the original checkpoint")
    conversion.add_argument("target", help="the folder to make")
    options.add_parts(conversion)

    serving = command("serve", "answer over HTTP, pruned, behind transformers' server")
    serve.add_options(serving)

    timing = command("bench", "time random weights, dense and pruned in turn, against the ideal from FLOPs")
    bench.add_options(timing)

    showing = command("demo", "serve a page on this machine that answers dense and pruned side by side")
    command_demo.add_options(showing)
    return top


def add_fit_options(fit: argparse.ArgumentParser, model: str = MODEL_NAME) -> None:
    """Options of `fitprune fit` and of `statistical_analysis.py`."""
    options.add_model(fit, model)
    options.add_data(fit)
    options.add_ratio(
        fit,
        "share of the visual compute to save, 0.6 or 60; several are fitted from one pass",
        nargs="+",
        default=[0.6],
    )
    options.add_calibration(fit.add_argument_group("calibration"))
    add_merging(fit)
    fit.add_argument("--batch-size", type=options.positive, default=8, help="samples observed at a time")
    fit.add_argument("--output", default=None, help="recipe file (.json) or folder; default the current folder")
    fit.add_argument("--stats", default=None, help="also keep the statistics in this file")
    fit.add_argument("--from-stats", default=None, help="fit from kept statistics, without the model")
    fit.add_argument(
        "--replay", action="store_true", help="the released script's search, which runs the model again at every step"
    )


def add_merging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--merge-steps",
        type=options.number(0, math.inf),
        default=0.0,
        metavar="TOKEN_LAYERS",
        help="fold small deletions into fewer steps of the same budget: how many tokens pass one layer in the time of a step",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    commands = {
        "fit": _fit,
        "eval": command_eval.run,
        "sweep": sweep.run,
        "report": command_report.run,
        "draw": draw.run,
        "show": _show,
        "convert": _convert,
        "serve": serve.run,
        "bench": bench.run,
        "demo": command_demo.run,
    }

    def run(args: argparse.Namespace) -> int:
        if args.command not in TOGETHER:
            options.alone(f"fitprune {args.command}")
        return commands[args.command](args)

    return options.guarded(run, parser(), argv, together=True)


def statistical_analysis(argv: Sequence[str] | None = None, model: str = MODEL_NAME) -> int:
    """The authors' fitting script, `llava/eval/statistical_analysis.py`: their flags and a family's default model,
    `fitprune fit` behind them."""
    made = argparse.ArgumentParser(
        prog="statistical_analysis.py", description="Fit a recipe: how many visual tokens each layer deletes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add_fit_options(made, model)
    made.add_argument(
        "--num-chunks", type=options.positive, default=1, help="kept for compatibility; fitting uses all of --samples"
    )
    made.add_argument("--chunk-idx", type=int, default=0, help="kept for compatibility")
    return options.guarded(_fit, made, argv, together=True)


if __name__ == "__main__":
    raise SystemExit(main())
