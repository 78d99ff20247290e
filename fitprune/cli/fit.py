"""`fitprune fit`, and the authors' fitting script with its flags: calibration questions → recipes, one file per ratio.

The model runs once, densely (observe.py), and all ratios are fitted from what was seen: `--by mass`, the paper's way, and that of the
authors' script. `fitprune fit` goes on from there by drift, which is recommended: it tries schedules of many shapes on the model and
takes the one that moves its answers least (choose.py), with the score that goes with it. It says before how many prefills that takes;
what was judged is kept beside the recipes, so that it goes on after an interruption. Kept statistics make further recipes without the
model (`--from-stats`), by mass alone. `--replay` is the released script's search, step by step (replay.py): it has one
criterion and takes no statistics.

    fitprune fit --reduction-ratio 0.4 0.6 --samples 16 --output /tmp/recipes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments, entry
from ..choose import Chosen, check_enough, choose_all, forecast
from ..cost import CostModel
from ..embedded import MODEL_NAME
from ..errors import FitPruneError
from ..files import check_writable, file_name
from ..questions import encode_questions
from ..recipe import Recipe
from ..schedule.validation import CRITERIA, SPREAD, WAYS

if TYPE_CHECKING:
    from ..distributed.workers import WorkerGroup

HELP = "fit recipes from one pass over calibration questions"
EXAMPLES = """examples:
  fitprune fit                                             the embedded model, ratio 0.6, by what moves its own answers least
  fitprune fit --by mass --reduction-ratio 0.4 0.6 0.8     the paper's way, for seconds instead of minutes
  fitprune fit --reduction-ratio 0.6 --stats stats.safetensors
  fitprune fit --model-path llava-hf/llava-1.5-7b-hf --calibration-file questions.jsonl --image-folder images
"""
SHARED = True  # the processes of torchrun or accelerate launch share the work


def add_options(fit: argparse.ArgumentParser, model: str = MODEL_NAME, way: str | None = None) -> None:
    """Options of `fitprune fit`, and of `statistical_analysis.py`, whose way is the paper's."""
    arguments.add_model(fit, model)
    arguments.add_data(fit)
    arguments.add_ratio(fit, "share of the visual compute to save, 0.6 or 60; several are fitted from one pass", nargs="+", default=[0.6])
    arguments.add_calibration(fit.add_argument_group("calibration"))
    arguments.add_merging(fit)
    fit.add_argument("--batch-size", type=arguments.positive, default=8, help="samples observed at a time")
    fit.add_argument("--output", default=None, help="recipe file (.json) or folder; default the current folder")
    fit.add_argument("--stats", default=None, help="also keep the statistics in this file")
    fit.add_argument("--from-stats", default=None, help="fit from kept statistics, without the model")
    fit.add_argument(
        "--criterion", default=way and CRITERIA[0], choices=CRITERIA,
        help=f"which list of the least attended tokens a token has to be on to go: the paper's is {CRITERIA[0]}",
    )  # fmt: skip
    fit.add_argument(
        "--by", default=way, choices=WAYS,
        help="judge schedules by the attention mass that is lost, as the paper does, or by how far they move the model's answers"
        + ("" if way else "; default drift, but with --from-stats, --criterion or --replay mass"),
    )  # fmt: skip
    fit.add_argument(
        "--score", type=arguments.score, nargs="+", default=None, metavar="NAME",
        help=f"by drift: what tokens may be ranked by, the first with every schedule; default {', '.join(SPREAD)}",
    )  # fmt: skip
    fit.add_argument(
        "--absorb", type=arguments.number(0, 1), default=None, metavar="COSINE",
        help="let deleted tokens live on in survivors whose values are as like theirs, 0.8 (not with flash attention)",
    )  # fmt: skip
    arguments.add_strict(fit)
    fit.add_argument("--replay", action="store_true", help="the released script's search, which runs the model again at every step")


def run(args: argparse.Namespace) -> int:
    """Fits, prints and keeps the recipes; returns the exit code."""
    from ..calibrate import observe_timed
    from ..evaluation.usable import screened
    from ..families import load
    from ..fit import fit_all
    from ..stats import AttentionStats
    from ..studies.judge import DriftJudge, journal_in

    workers: WorkerGroup = args.workers
    workers.first(lambda: _check_output(args))
    by = _way(args)
    if args.replay:
        entry.alone("--replay")
        return _replay(args)
    if args.from_stats:
        entry.alone("--from-stats, which needs no model,")
        stats = AttentionStats.load(args.from_stats)
        recipes = fit_all(stats, None, args.reduction_ratio, args.criterion or CRITERIA[0], absorb=args.absorb)
    else:
        calibration = arguments.calibration(args)
        if by == "drift":
            check_enough(len(calibration.questions()))  # before the model is loaded
        vlm = load(args.model_path, **arguments.load_options(args))
        calibration = screened(vlm, calibration, args.strict, workers)
        stats, seconds = observe_timed(vlm, calibration, workers=workers)
        recipes = fit_all(stats, None, args.reduction_ratio, args.criterion or CRITERIA[0], absorb=args.absorb)
    chosen: dict[float, Chosen] = {}
    if by == "drift":
        scores = list(dict.fromkeys(args.score or SPREAD))
        print(forecast(recipes, len(calibration.questions()), scores, seconds), flush=True)
        judge = DriftJudge(vlm, calibration, journal=journal_in(_folder(args), vlm, calibration), workers=workers)
        chosen = choose_all(recipes, judge, scores, progress=workers.leads)

    def keep() -> None:
        if args.stats and not args.from_stats:
            stats.save(args.stats)
            print(f"statistics of {stats.samples} samples saved as {args.stats}")
        more = [name for name in (args.criterion or CRITERIA[0], by) if name not in (CRITERIA[0], WAYS[0])]
        more += [f"absorb{args.absorb:g}"] if args.absorb is not None else []
        for ratio, recipe in recipes.items():
            if ratio and ratio in chosen:
                recipe = chosen[ratio].recipe
                print(chosen[ratio])
            _keep(recipe, args, file_name(stats.model or "model", ratio, *more))

    workers.first(keep)
    return 0


def _way(args: argparse.Namespace) -> str:
    """By what schedules are judged; where nobody said so and it is not by drift, a line says why.

    Raises:
        FitPruneError: for flags that do not go with it.
    """
    by = args.by
    if by is None:
        by = "drift"
        paper = {
            "--replay": (args.replay, "is the released script's search"),
            "--from-stats": (args.from_stats, "runs no model"),
            "--criterion": (args.criterion, "is of the paper's fit"),
        }
        for flag, (given, why) in paper.items():
            if given:
                print(f"by mass, the paper's way, as {flag} {why}")
                by = "mass"
                break
    if args.score and by != "drift":
        raise FitPruneError("--score is what schedules are judged with: fit by drift (--by drift), or leave it out")
    if args.from_stats and by == "drift":
        raise FitPruneError("--by drift runs the model: leave out --from-stats")
    return by


def _replay(args: argparse.Namespace) -> int:
    from ..evaluation.usable import screened
    from ..families import load
    from ..studies.replay import replay

    ours = {
        "--by": args.by not in (None, WAYS[0]),
        "--criterion": args.criterion not in (None, CRITERIA[0]),
        "--stats": args.stats,
        "--from-stats": args.from_stats,
        "--absorb": args.absorb is not None,
    }
    for flag, given in ours.items():
        if given:
            raise FitPruneError(f"--replay is the released script's search, which has no {flag}: leave one of them out")
    vlm = load(args.model_path, **arguments.load_options(args))
    calibration = screened(vlm, arguments.calibration(args), args.strict)
    samples = [encode_questions(vlm, [q], calibration.image_folder) for q in calibration.questions()]
    for ratio in args.reduction_ratio:
        recipe, _ = replay(vlm.model, samples, ratio)
        _keep(recipe, args, file_name(vlm.name, ratio, "replayed"), vlm.cost)
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """Finds out before the model runs whether its results can be kept."""
    if args.output and len(args.reduction_ratio) > 1 and Path(args.output).suffix == ".json":
        raise FitPruneError(f"--output {args.output} is one file but there are {len(args.reduction_ratio)} ratios: name a folder")
    for needed in (_folder(args), *([Path(args.stats).parent] if args.stats else [])):
        check_writable(needed)


def _folder(args: argparse.Namespace) -> Path:
    """Where recipes go."""
    folder = Path(args.output or ".")
    return folder.parent if folder.suffix == ".json" else folder


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


def statistical_analysis(argv: Sequence[str] | None = None, model: str = MODEL_NAME) -> int:
    """The authors' fitting script, `llava/eval/statistical_analysis.py`: their flags and a family's default model,
    `fitprune fit --by mass` behind them."""
    made = arguments.Parser(
        prog="statistical_analysis.py", description="Fit a recipe: how many visual tokens each layer deletes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add_options(made, model, WAYS[0])
    made.add_argument("--num-chunks", type=arguments.positive, default=1, help="kept for compatibility; fitting uses all of --samples")
    made.add_argument("--chunk-idx", type=int, default=0, help="kept for compatibility")
    made.set_defaults(stored=True)  # pictures, as the original reads them
    return entry.guarded(run, made, argv, together=entry.always)
