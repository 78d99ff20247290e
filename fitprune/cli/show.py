"""`fitprune show`: a recipe as text, from a file or a published one.

fitprune show llava-v1.5-7b 0.6 --visual-tokens 1024
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import arguments
from ..errors import FitPruneError
from ..recipe import Recipe, published_ratios
from ..schedule.ratio import parse_ratio

HELP = "print a recipe: a file, or a published one by model and ratio"
EXAMPLES = """examples:
  fitprune show llava-v1.5-7b 0.6                          a published recipe
  fitprune show llava-v1.5-7b                              which ratios are published
  fitprune show llava-v1.5-7b 0.6 --merge-steps 100        in fewer steps, where a step is dear
  fitprune show my.recipe.json --visual-tokens 1024        a recipe file, for images of another size
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune show`."""
    parser.add_argument("recipe", help="a recipe file, or the name of a published model")
    parser.add_argument("ratio", nargs="?", default=None, help="reduction ratio of a published recipe")
    parser.add_argument(
        "--visual-tokens", type=arguments.positive, default=None, help="also print the deletions for images of this many tokens"
    )
    arguments.add_merging(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the recipe; returns the exit code."""
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
