"""One command that makes the embedded model and its data: train, export, evaluate, write the card and the benchmarks.

Every step can be interrupted and goes on with the same command: training from its checkpoint, the others anew (minutes).
Nothing is installed unless `--install` names the folder, whose `model` and `data` are then replaced.

    python -m embedded.make runs/embedded                                  # everything, below runs/embedded
    python -m embedded.make runs/embedded --install fitprune/embedded      # and put it where the package has it
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import fitprune
from fitprune import options

from . import benchmarks, card, evaluate, train
from .export import export

PICTURES, DENSE_PICTURES = 100, 400  # held-out pictures behind the card's figures, pruned and dense
SAMPLES = 128  # calibration questions
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.9)
SCORES = ("fitprune", "cross", "last", "random")


def make(args: argparse.Namespace) -> int:
    """All steps; returns the exit code."""
    train.train(*train.settings(args))
    model = export(args.folder, args.folder / "model")
    loaded = fitprune.load(str(model), device=args.device)
    tried = evaluate.methods(loaded, RATIOS, SCORES, SAMPLES)
    figures = evaluate.evaluate(loaded, evaluate.asked("held-out", args.pictures), tried)
    figures["dense"] = evaluate.evaluate(loaded, evaluate.asked("held-out", DENSE_PICTURES), tried[:1])
    print(card.write(args.folder, model, figures).read_text(encoding="utf-8"))
    benchmarks.write(args.folder / "data", overwrite=True)
    if args.install:
        shutil.copytree(model, args.install / "model", dirs_exist_ok=True)
        benchmarks.write(args.install / "data", overwrite=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 2 with one line on stderr for bad input, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="embedded.make", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_options(parser)
    parser.add_argument("--pictures", type=options.positive, default=PICTURES, help="held-out pictures for the card")
    parser.add_argument("--install", type=Path, default=None, help="folder that gets model/ and data/")
    return options.guarded(make, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
