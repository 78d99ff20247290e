"""`fitprune sweep`: options, and what is compared on what (studies/sweep.py runs it).

fitprune sweep --ratios 0,30,60 --methods fitprune,fastv --benchmarks textvqa,gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments
from ..embedded import MODELS
from ..errors import FitPruneError
from ..evaluation.benchmark import PLAYGROUND, Benchmark
from ..evaluation.benchmarks import BENCHMARKS, default_data
from ..evaluation.benchmarks import find as find_benchmark
from ..evaluation.layout import find_pictures, with_pictures
from ..evaluation.rehearsal import rehearse
from ..files import check_writable
from ..questions import Calibration, Question
from ..studies import ablate
from ..studies.methods import CONTROLS, METHODS
from ..studies.methods import find as find_method

if TYPE_CHECKING:
    from ..distributed.workers import WorkerGroup
    from ..studies.sweep_table import Point

HELP = "compare methods at several ratios on several benchmarks, at equal cost"
EXAMPLES = """examples:
  fitprune sweep --limit 100                               the embedded model on embedded TextVQA and GQA, 10 to 90%
  fitprune sweep --ratios 0,20,...,80 --methods fitprune,fastv,vtw --benchmarks gqa,pope
  fitprune sweep --methods cross,self,fitprune --ratios 50,70 --benchmarks mme --output runs/scores
"""
SHARED = True  # the processes of torchrun or accelerate launch share the work
SHOWN = ("fitprune", "fastv", "pyramiddrop", "vtw")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune sweep`."""
    arguments.add_model(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument("--ratios", type=arguments.ratios, default="0,10,...,90", help="shares of visual compute to save; 0: dense")
    group.add_argument(
        "--methods",
        type=arguments.names,
        default=None,
        help=f"{', '.join(METHODS)}; the controls {' and '.join(CONTROLS)} always come along; default {','.join(SHOWN)}, "
        "with --ablate none but what it asks for",
    )
    group.add_argument(
        "--ablate",
        type=ablate.axis,
        nargs="+",
        default=[],
        metavar="CHOICE=VALUES",
        help="FitPrune with one choice varied at a time: samples=4,16,64 criterion=both,cross,self score=fitprune,last",
    )
    group.add_argument("--benchmarks", type=arguments.names, default="textvqa,gqa", help=", ".join(BENCHMARKS))
    group.add_argument("--playground", default=None, help=f"folder of the benchmarks' folders, default {PLAYGROUND}")
    group.add_argument("--limit", type=arguments.positive, default=None, help="only the first so many questions of each")
    arguments.add_calibration(group := parser.add_argument_group("calibration"))
    group.add_argument("--calibration-images", default=None, help="where the calibration file's images are")
    arguments.add_generation(parser)
    parser.set_defaults(batch_size=8, max_new_tokens=None)
    arguments.add_strict(parser)
    parser.add_argument("--output", default="runs/sweep", help="folder for everything; a rerun continues there")
    parser.add_argument("--overwrite", action="store_true", help="observe and answer anew instead of continuing")


def run(args: argparse.Namespace) -> int:
    """Answers, scores, writes sweep.md, sweep.csv, sweep.json and plots; returns the exit code."""
    output = Path(args.output)
    args.workers.first(partial(check_writable, output))
    if not args.benchmarks:
        raise FitPruneError(f"no benchmark to run: give --benchmarks some of {', '.join(BENCHMARKS)}")
    benchmarks = {name: find_benchmark(name) for name in args.benchmarks}
    folders = {name: default_data(args.model_path, args.playground, one) for name, one in benchmarks.items()}
    asked: dict[str, list[Question]] = {}
    for name, benchmark in benchmarks.items():
        benchmark.check(data := folders[name])
        given = benchmark.first(benchmark.asked(data / benchmark.questions), args.limit)
        asked[name] = find_pictures(given, data / benchmark.images, data, args.strict, args.workers.leads)
        args.workers.first(partial(rehearse, benchmark, data, asked[name]))
    decoding = arguments.generation(args)
    args.samples = ablate.most_samples(args.ablate, args.samples)
    calibration = _calibration(args, next(iter(benchmarks.values())), next(iter(folders.values())))
    methods = _methods(args, calibration)
    from ..calibrate import kept_statistics
    from ..evaluation.usable import WRONG, screen, screened, skipped_line
    from ..families import load
    from ..studies.sweep import run_benchmark, schedule_runs
    from ..studies.sweep_table import markdown, write

    vlm = load(args.model_path, **arguments.load_options(args))
    workers: WorkerGroup = args.workers
    calibration = screened(vlm, calibration, args.strict, workers)
    pruned = [ratio for ratio in dict.fromkeys(args.ratios) if ratio]
    stats = kept_statistics(vlm, calibration, output, args.overwrite, workers) if pruned else None
    suffix = f"-first{args.limit}" if args.limit else ""
    runs, notes, compared = schedule_runs(stats, methods, pruned, args.ablate, suffix, workers)
    points: list[Point] = []
    about = {"model": vlm.name, "batch_size": args.batch_size, "limit": args.limit, **decoding}
    about |= {"calibration": Path(calibration.question_file).name, "samples": calibration.samples}
    for name, benchmark in benchmarks.items():
        settings = {"batch_size": args.batch_size, "overwrite": args.overwrite, **decoding}
        settings["max_new_tokens"] = args.max_new_tokens or benchmark.max_new_tokens
        questions = screen(vlm, asked[name], folders[name] / benchmark.images, args.strict, workers)
        if skipped := skipped_line(questions, WRONG):
            notes.append(f"{name}: {skipped}")
        points += run_benchmark(vlm, benchmark, folders[name], questions, runs, output, notes, settings, workers)
        workers.first(partial(write, output, points, notes, about, compared))  # as far as it goes
    if workers.leads:
        print(markdown(points, notes, about, compared))
        _draw(points, output, ablate.panels(args.ablate, len(calibration.questions())))
    return 0


def _methods(args: argparse.Namespace, calibration: Calibration) -> list[str]:
    """Names of what is run, each once: asked for, of the ablation, controls.

    Raises:
        FitPruneError: for unknown ones, and for more samples than there are.
    """
    if args.methods == []:
        raise FitPruneError(f"no method to run: give --methods some of {', '.join(METHODS)}")
    found = list(SHOWN if args.methods is None and not args.ablate else args.methods or [])
    if args.ablate:
        observed = len(calibration.questions())
        if (most := ablate.most_samples(args.ablate, 1)) > observed:
            raise FitPruneError(f"--ablate samples={most}: {calibration.question_file} has {observed} questions with an image")
        found += ablate.methods(args.ablate, observed)
    found = list(dict.fromkeys([*found, *CONTROLS]))
    for method in found:
        find_method(method)
    return found


def _calibration(args: argparse.Namespace, benchmark: Benchmark, data: Path) -> Calibration:
    """Named, or embedded for an embedded model, else the first benchmark's own questions, whose answers are not looked at."""
    batch = max(args.batch_size, 8)
    if args.calibration_file:
        images = args.calibration_images or data / benchmark.images
        return Calibration(args.calibration_file, images, args.samples, batch)
    if args.model_path in MODELS:
        return Calibration.shipped(args.samples, batch)
    images = data / benchmark.images
    return Calibration(data / benchmark.questions, images, args.samples, batch, with_pictures(benchmark.asked, images, data))


def _draw(points: Sequence[Point], output: Path, varied: Mapping[str, Mapping[str, str]]) -> None:
    if find_spec("matplotlib") is None:
        print("no plot: pip install 'fitprune[draw]' and run the same command again to get sweep.png")
        return
    from ..studies import sweep_plot

    if files := sweep_plot.save(points, output, varied):
        print(f"figures, {' and '.join(file.name for file in files)} in {output}")
