"""The `fitprune` command.

fitprune fit                                         fit a recipe for the embedded model, print and save it
fitprune eval --benchmark gqa                        dense against pruned on a benchmark, the embedded one for embedded models
fitprune sweep --benchmarks textvqa,gqa              methods × ratios × benchmarks at equal cost, in a table and a picture
fitprune report --question-file Q --image-folder I   drift of pruned from dense on questions of one's own, no labels needed
fitprune draw --image P --question Q                 which patches survive each layer: PNG, GIF, HTML page, heat maps
fitprune demo                                        a page on this machine: dense and pruned answers side by side
fitprune serve --reduction-ratio 0.6                 a pruned model behind transformers' HTTP server
fitprune show llava-v1.5-7b 0.6                      print a published recipe
fitprune convert liuhaotian/llava-v1.5-7b DST        an original checkpoint in transformers layout
fitprune bench                                       time and memory of dense and pruned runs against the FLOPs ideal
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import bench, fit_command, options, report, serve, sweep
from .checkpoints.convert import convert
from .demo import command as demo_command
from .draw import command as draw_command
from .errors import FitPruneError
from .evaluation import command as eval_command
from .ratio import parse_ratio
from .recipe import Recipe, published_ratios
from .version import __version__


def _add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe file, or the name of a published model")
    parser.add_argument("ratio", nargs="?", default=None, help="reduction ratio of a published recipe")
    parser.add_argument(
        "--visual-tokens",
        type=options.positive,
        default=None,
        help="also print the deletions for images of this many tokens",
    )
    options.add_merging(parser)


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


def _add_convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder or hub name of the original checkpoint")
    parser.add_argument("target", help="the folder to make")
    options.add_parts(parser)


def _convert(args: argparse.Namespace) -> int:
    made = convert(args.source, args.target, model_base=args.model_base, vision_tower=args.vision_tower)
    print(f"{args.source} written in transformers layout as {made}")
    return 0


@dataclass(frozen=True)
class Command:
    """A subcommand; `together` if the processes of torchrun or accelerate launch share its work."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str
    together: bool = False


COMMANDS = {
    "fit": Command(
        "fit recipes from one pass over calibration questions",
        fit_command.add_options,
        fit_command.run,
        """examples:
  fitprune fit                                             the embedded model, ratio 0.6
  fitprune fit --reduction-ratio 0.4 0.6 0.8 --stats stats.safetensors
  fitprune fit --model-path llava-hf/llava-1.5-7b-hf --calibration-file questions.jsonl --image-folder images
""",
        together=True,
    ),
    "eval": Command(
        "answer a benchmark densely and pruned, and compare accuracy, compute and time",
        eval_command.add_options,
        eval_command.run,
        """examples:
  fitprune eval                                            the embedded model on the embedded questions, ratio 0.6
  fitprune eval --reduction-ratio 0.3 0.5 0.7 --scores fitprune random
  fitprune eval --benchmark gqa --scores fitprune cross random
  fitprune eval --benchmark mme --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60 --data playground/data/eval/MME
""",
        together=True,
    ),
    "sweep": Command(
        "compare methods at several ratios on several benchmarks, at equal cost",
        sweep.add_options,
        sweep.run,
        """examples:
  fitprune sweep --limit 100                               the embedded model on embedded TextVQA and GQA, 10 to 90%
  fitprune sweep --ratios 0,20,...,80 --methods fitprune,fastv,vtw --benchmarks gqa,pope
  fitprune sweep --methods cross,self,fitprune --ratios 50,70 --benchmarks mme --output runs/scores
""",
        together=True,
    ),
    "report": Command(
        "measure how far pruning drifts from the dense model on your own questions, without labels",
        report.add_options,
        report.run,
        """examples:
  fitprune report                                          the embedded model on the embedded questions, ratios 0.3, 0.5, 0.7
  fitprune report --model-path llava-hf/llava-1.5-7b-hf --question-file questions.jsonl --image-folder images --limit 200
  fitprune report --reduction-ratio 0.2 0.4 0.6 0.8 --at-most 2% --json report.json
""",
        together=True,
    ),
    "draw": Command(
        "draw what a recipe deletes from a picture, layer by layer, and what was attended to",
        draw_command.add_options,
        draw_command.run,
        """examples:
  fitprune draw                                            an embedded question, ratio 0.6, everything into runs/draw
  fitprune draw --image photo.jpg --question "What is this?" --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60
  fitprune draw --formats html --output page.html --recipe my.recipe.json --score last
  fitprune draw --recipes llava-v1.5-7b:0.2,0.4,0.6,0.8 my.recipe.json --output recipes.png
""",
    ),
    "demo": Command(
        "serve a page on this machine that answers dense and pruned side by side",
        demo_command.add_options,
        demo_command.run,
        """examples:
  fitprune demo                                            the embedded model on http://127.0.0.1:7860
  fitprune demo --port 0 --model-path liuhaotian/llava-v1.5-7b
  fitprune demo --model-path llava-hf/llava-1.5-13b-hf --calibration-file questions.jsonl --calibration-images images
""",
    ),
    "serve": Command(
        "answer over HTTP, pruned, behind transformers' server",
        serve.add_options,
        serve.run,
        """examples:
  fitprune serve                                           the embedded model at ratio 0.6, at http://127.0.0.1:8000/v1
  fitprune serve --model-path liuhaotian/llava-v1.5-7b --reduction-ratio 0.6 --port 9000
  fitprune serve --model-path llava-hf/llava-1.5-13b-hf --recipe llava-1.5-13b-hf-r60.recipe.json
""",
    ),
    "show": Command(
        "print a recipe: a file, or a published one by model and ratio",
        _add_show_options,
        _show,
        """examples:
  fitprune show llava-v1.5-7b 0.6                          a published recipe
  fitprune show llava-v1.5-7b                              which ratios are published
  fitprune show llava-v1.5-7b 0.6 --merge-steps 100        in fewer steps, where a step is dear
  fitprune show my.recipe.json --visual-tokens 1024        a recipe file, for images of another size
""",
    ),
    "convert": Command(
        "write a checkpoint of the original LLaVA layout in transformers layout",
        _add_convert_options,
        _convert,
        """examples:
  fitprune convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf
  fitprune convert ./llava-hr-7b-sft-1024 ./llava-hr-7b-sft-1024-hf
  fitprune convert ./llava-v1.5-7b-lora ./merged --model-base lmsys/vicuna-7b-v1.5
""",
    ),
    "bench": Command(
        "time random weights, dense and pruned in turn, against the ideal from FLOPs",
        bench.add_options,
        bench.run,
        """examples:
  fitprune bench                                           32 layers x 1024, 35+576+64 tokens, ratio 0.6
  fitprune bench --reduction-ratio 0.4 0.6 0.8 --baseline eager-maps --json bench.json --plot bench.png
  fitprune bench --shape llava-1.5-7b --dtype bfloat16 --batch-size 8 --merge-steps --break-even
  fitprune bench --shape small-long --repeats 3 --skip vision decode
""",
    ),
}


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults and leaves examples as they are."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = options.Parser(
        prog="fitprune", description="Fit and prune: training-free visual token pruning for multi-modal models.", epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fitprune {__version__}")
    made = top.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        about = f"{command.help[0].upper()}{command.help[1:]}."
        command.add_options(
            made.add_parser(name, help=command.help, description=about, epilog=command.examples, formatter_class=_Help)
        )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""

    def run(args: argparse.Namespace) -> int:
        command = COMMANDS[args.command]
        if not command.together:
            options.alone(f"fitprune {args.command}")
        return command.run(args)

    return options.guarded(run, parser(), argv, together=lambda args: COMMANDS[args.command].together)


if __name__ == "__main__":
    raise SystemExit(main())
