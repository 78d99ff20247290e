"""The `fitprune` command: one file per subcommand in this folder, found by name; this one puts them together.

A file says `HELP` (one line), `EXAMPLES`, `add_options(parser)`, `run(args)`, and `SHARED = True` where the processes of a
launcher share its work. None imports torch before its `run`, so that help and usage errors come at once.

    fitprune --help
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from .. import arguments, entry
from ..version import __version__

COMMANDS = ("fit", "eval", "sweep", "report", "draw", "demo", "serve", "show", "convert", "bench")

OVERVIEW = """fitprune fit                                         fit a recipe for the embedded model (--by mass: as the paper does)
fitprune eval --benchmark gqa                        dense against the paper's method (--by mass drift: and the recommended one)
fitprune sweep --benchmarks textvqa,gqa              methods × ratios × benchmarks at equal cost, in a table and a plot
fitprune report --question-file Q --image-folder I   drift of pruned from dense on questions of one's own, no labels needed
fitprune draw --image P --question Q                 which patches survive each layer: PNG, GIF, HTML page, heat maps
fitprune demo                                        a page on this machine: dense and pruned answers side by side
fitprune serve --reduction-ratio 0.6                 a pruned model behind transformers' HTTP server
fitprune show llava-v1.5-7b 0.6                      print a published recipe
fitprune convert liuhaotian/llava-v1.5-7b DST        an original checkpoint in transformers layout
fitprune bench                                       time and memory of dense and pruned runs against the FLOPs ideal
"""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows defaults and leaves examples as they are."""


def command(name: str) -> ModuleType:
    """The module of a subcommand."""
    return import_module(f".{name}", __name__)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = arguments.Parser(
        prog="fitprune", description="Fit and prune: training-free visual token pruning for multi-modal models.", epilog=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"fitprune {__version__}")
    made = top.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        found = command(name)
        about = f"{found.HELP[0].upper()}{found.HELP[1:]}."
        found.add_options(made.add_parser(name, help=found.HELP, description=about, epilog=found.EXAMPLES, formatter_class=_Help))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""

    def shared(args: argparse.Namespace) -> bool:
        return getattr(command(args.command), "SHARED", False)

    def run(args: argparse.Namespace) -> int:
        if not shared(args):
            entry.alone(f"fitprune {args.command}")
        return int(command(args.command).run(args))

    return entry.guarded(run, parser(), argv, together=shared)
