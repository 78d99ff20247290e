"""One command that makes an embedded model and the data: train, export, evaluate, write the card and the benchmarks.

Every step can be interrupted and goes on with the same command: training from its checkpoint, the others anew (minutes).
Nothing is installed unless `--install` names the folder, whose `model` and `data` are then replaced. The other families
start from the installed LLaVA-1.5 and share its data, so they write none.

    python -m embedded.make runs/embedded                                  # everything, below runs/embedded
    python -m embedded.make runs/embedded --install fitprune/embedded      # and put it where the package has it
    python -m embedded.make runs/next --family next --install fitprune/embedded    # or hr, or qwen
    python -m embedded.make runs/judge --family judge --install embedded           # the judge, which does not ship
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fitprune
from fitprune import arguments, entry
from fitprune.embedded import MODELS as FOLDERS
from fitprune.embedded import model_path
from fitprune.families import VLM

from . import attention_facts, benchmarks, card, evaluate, train
from .canvas import place
from .export import export
from .models import MODELS

PICTURES, DENSE_PICTURES = 100, 400  # held-out pictures behind the card's figures, pruned and dense
SAMPLES = 128  # calibration questions
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.9)


def make(args: argparse.Namespace) -> int:
    """All steps; returns the exit code."""
    train.train(*train.settings(args))
    model = export(args.folder, args.folder / "model")
    vlm = fitprune.load(str(model), device=args.device)
    print(card.write(args.folder, model, figures(vlm, args)).read_text(encoding="utf-8"))
    whole = args.family == "llava"
    if whole:
        benchmarks.write(args.folder / "data", overwrite=True)
    if args.install:
        shutil.copytree(model, args.install / FOLDERS.get(MODELS[args.family].name, args.family), dirs_exist_ok=True)
        if whole:
            benchmarks.write(args.install / "data", overwrite=True)
    return 0


def figures(vlm: VLM, args: argparse.Namespace) -> dict[str, Any]:
    """What the card tells."""
    kind = MODELS[args.family]
    tried = evaluate.methods(vlm, args.ratios, args.scores, SAMPLES, kind.draw)
    found = evaluate.evaluate(vlm, evaluate.asked("held-out", args.pictures, draw=kind.draw), tried)
    found["dense"] = evaluate.evaluate(vlm, evaluate.asked("held-out", args.dense_pictures, draw=kind.draw), tried[:1])
    found["tokens"] = vlm.tokens_for(place(kind.draw("held-out", 0)))
    if canvas := kind.canvas:
        questions = evaluate.asked("held-out", args.pictures, size=canvas)
        found["canvas"] = {**evaluate.evaluate(vlm, questions, tried[:1]), "size": canvas}
    if kind.beside:
        asked = attention_facts.in_turn(args.pictures, kind.draw)
        found["attention"] = {kind.name: attention_facts.facts(vlm, asked)}
        asked = attention_facts.in_turn(args.pictures)
        for name in filter(lambda name: model_path(name).exists(), kind.beside):
            found["attention"][name] = attention_facts.facts(fitprune.load(name, device=args.device), asked)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 2 with one line on stderr for bad input, 130 when interrupted."""
    parser = arguments.Parser(prog="embedded.make", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    train.add_options(parser)
    parser.add_argument("--pictures", type=arguments.positive, default=PICTURES, help="held-out pictures for the card")
    parser.add_argument("--dense-pictures", type=arguments.positive, default=DENSE_PICTURES, help="the same, for the model without pruning")
    parser.add_argument("--ratios", type=arguments.ratio, nargs="+", default=RATIOS, help="for the card")
    parser.add_argument("--scores", nargs="+", choices=list(arguments.SCORES), default=evaluate.SCORES, help="for the card")
    parser.add_argument("--install", type=Path, default=None, help="folder that gets the model, and the data of llava")
    return entry.guarded(make, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
