"""`fitprune convert`: a checkpoint of the original LLaVA layout in transformers layout (families/convert.py).

fitprune convert --help
"""

from __future__ import annotations

import argparse

from .. import arguments

HELP = "write a checkpoint of the original LLaVA layout in transformers layout"
EXAMPLES = """examples:
  fitprune convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf
  fitprune convert ./llava-hr-7b-sft-1024 ./llava-hr-7b-sft-1024-hf
  fitprune convert ./llava-v1.5-7b-lora ./merged --model-base lmsys/vicuna-7b-v1.5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune convert`."""
    parser.add_argument("source", help="folder or hub name of the original checkpoint")
    parser.add_argument("target", help="the folder to make")
    arguments.add_parts(parser)


def run(args: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    from ..families.convert import convert

    made = convert(args.source, args.target, model_base=args.model_base, vision_tower=args.vision_tower)
    print(f"{args.source} written in transformers layout as {made}")
    return 0
