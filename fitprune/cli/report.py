"""`fitprune report`: how far pruning drifts on questions of one's own, and which ratio to take (studies/report.py).

Tokens are ranked by the recommended score, whether the schedule is published, fitted by mass or, with `--by drift`, chosen on the model;
`--score fitprune` is the paper's. What is fitted here is not kept: `fitprune fit` does that, and its files go to `--recipe`.

    fitprune report --reduction-ratio 0.3 0.5 0.7 --limit 64
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments
from ..errors import FitPruneError
from ..files import writable, write_atomically
from ..questions import read_questions
from ..recipe import RECOMMENDED

if TYPE_CHECKING:
    from ..distributed.workers import WorkerGroup

HELP = "measure how far pruning drifts from the dense model on your own questions, without labels"
EXAMPLES = """examples:
  fitprune report                                          the embedded model on the embedded questions, ratios 0.3, 0.5, 0.7
  fitprune report --model-path llava-hf/llava-1.5-7b-hf --question-file questions.jsonl --image-folder images --limit 200
  fitprune report --reduction-ratio 0.2 0.4 0.6 0.8 --at-most 2% --json report.json
  fitprune report --score fitprune                         the paper's method
"""
SHARED = True  # the processes of torchrun or accelerate launch share the work


def share(text: str) -> float:
    """argparse type of a share of answers: 0.05, 5%, 5 (from 1 on a percentage)."""
    try:
        value = float(text.strip().removesuffix("%"))
        value = value / 100 if "%" in text or value >= 1 else value
        if 0 <= value <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a share of the answers: give 0.05 or 5%")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune report`."""
    arguments.add_model(parser)
    arguments.add_data(parser)
    arguments.add_recipe(parser, many=True, recommended=True)
    parser.set_defaults(reduction_ratio=[0.3, 0.5, 0.7])
    parser.add_argument(
        "--at-most", type=share, default=0.05, help="advise the largest ratio that changes no larger share of the answers, 0.05 or 5%%"
    )
    parser.add_argument("--limit", type=arguments.positive, default=None, help="only the first so many questions")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=arguments.positive, default=arguments.DEFAULTS["max_new_tokens"])
    parser.add_argument("--batch-size", type=arguments.positive, default=8, help="questions at a time")
    arguments.add_strict(parser)
    parser.add_argument("--json", default=None, metavar="FILE", help="also write all figures and the changed answers there")


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    from ..evaluation.layout import find_pictures
    from ..evaluation.usable import screen, screened, skipped_line
    from ..families import load
    from ..resolve import resolve
    from ..studies.against_dense import compare_to_dense
    from ..studies.drift import CONFIDENCE
    from ..studies.judge import DriftJudge
    from ..studies.report import advice, advise, summarise, table

    workers: WorkerGroup = args.workers
    workers.first(partial(_check_json, args.json))
    by = arguments.ways(args)
    given = read_questions(args.question_file)[: args.limit]
    questions = [question for question in given if question.visual]
    if not questions:
        raise FitPruneError(f"{args.question_file} has no question with an image, so there is nothing to prune: give others")
    images = Path(args.image_folder)
    questions = find_pictures(questions, images, images, args.strict, workers.leads)
    vlm = load(args.model_path, **arguments.load_options(args))
    screening = screen(vlm, questions, args.image_folder, args.strict, workers)
    questions = [question for question in screening if question.visual]
    calibration = screened(vlm, arguments.calibration(args), args.strict, workers)
    choices = resolve(
        vlm, sorted(args.reduction_ratio), calibration, recipe_file=args.recipe, by=by, score=None if args.score else RECOMMENDED,
        judge=lambda: DriftJudge(vlm, calibration, workers=workers), workers=workers,
    )  # fmt: skip
    drifts = compare_to_dense(
        vlm, questions, args.image_folder, [choice.recipe for choice in choices], score=args.score,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, workers=workers,
    )  # fmt: skip
    rows = [summarise(choice, found, vlm.cost) for choice, found in zip(choices, drifts, strict=True)]
    advised = advise(rows, args.at_most)
    scores = ", ".join(dict.fromkeys(choice.recipe.ranked_by(args.score) for choice in choices if choice.recipe)) or "none"
    if args.json and workers.leads:
        figures = {
            "model": vlm.name, "question_file": str(args.question_file), "questions": len(questions),
            "without_picture": len(given) - len(screening), "skipped": len(screening) - len(questions),
            "score": scores, "max_new_tokens": args.max_new_tokens,
            "confidence": CONFIDENCE, "at_most": args.at_most, "advice": advised.name if advised else None,
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        write_atomically(args.json, json.dumps(figures, indent=1).encode())
    print(f"{vlm.name} on {len(questions)} questions of {args.question_file}, pruned by score {scores}")
    if len(given) > len(screening):
        print(f"left out: {len(given) - len(screening)} without an image")
    print(*(f"{row.name}: {row.source}" for row in rows), "", table(rows), "", advice(advised, args.at_most), sep="\n")
    if skipped := skipped_line(screening, "all figures are of the others"):
        print(skipped)
    return 0


def _check_json(path: str | None) -> None:
    """Finds out before the model runs whether the figures can be kept."""
    if path and (Path(path).is_dir() or not writable(Path(path))):
        raise FitPruneError(f"--json {path} cannot be written: name a file in a folder of yours")
