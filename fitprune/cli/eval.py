"""`fitprune eval`: a benchmark answered densely and pruned, scored, and compared in one table.

A benchmark is named; where its files are follows from the model (embedded models have embedded counterparts, others
`playground/data/eval`), or is said. Everything that a run needs is looked for before the model is loaded.

Several processes share a run under torchrun (which scripts/eval/benchmark.sh starts) or `accelerate launch`; or, started one by
one, in chunks: `--fit-only` once, `--num-chunks N --chunk-idx K` in each, and `--num-chunks N` to join, score and compare.

The method is the paper's unless said otherwise; `--by mass drift` puts the recommended one beside it.

    fitprune eval --benchmark gqa --reduction-ratio 60
    torchrun --nproc-per-node 4 -m fitprune eval --benchmark gqa
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import arguments
from ..embedded import embedded
from ..errors import FitPruneError
from ..evaluation.benchmark import PLAYGROUND, Benchmark
from ..evaluation.benchmarks import BENCHMARKS, default_data, find
from ..evaluation.benchmarks.sqa import AS_LLAVA_HR
from ..evaluation.benchmarks.sqa import BENCHMARK as SCIENCE_QA
from ..evaluation.benchmarks.textvqa import BENCHMARK as TEXTVQA
from ..evaluation.benchmarks.textvqa import scored_with
from ..evaluation.layout import find_pictures, with_pictures
from ..evaluation.rehearsal import rehearse
from ..files import check_writable
from ..questions import read_questions

if TYPE_CHECKING:
    from ..distributed.workers import WorkerGroup

HELP = "answer a benchmark densely and pruned, and compare accuracy, compute and time"
EXAMPLES = """examples:
  fitprune eval                                            the embedded model on the embedded questions, ratio 0.6
  fitprune eval --reduction-ratio 0.3 0.5 0.7 --scores fitprune random
  fitprune eval --by mass drift                            the paper's method, and the one that is recommended
  fitprune eval --benchmark gqa --scores fitprune cross random
  fitprune eval --benchmark mme --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60 --data playground/data/eval/MME
"""
SHARED = True  # the processes of torchrun or accelerate launch share the work


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune eval`."""
    arguments.add_model(parser)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--benchmark",
        default=None,
        metavar="NAME",
        help=f"what is asked and how it is scored, textvqa unless given: {', '.join(BENCHMARKS)}",
    )
    group.add_argument(
        "--data",
        default=None,
        help="the benchmark's folder (docs/evaluation.md lists what is in it); default that of an embedded model's "
        "embedded counterpart, else the one in --playground",
    )
    group.add_argument("--playground", default=None, help=f"folder of the benchmarks' folders, {PLAYGROUND} unless given")
    group.add_argument("--question-file", default=None, help="other questions than the benchmark's; alone, they are not scored")
    group.add_argument("--image-folder", default=None, help="where the questions' images are, if elsewhere")
    group.add_argument("--annotation-file", default=None, help="TextVQA annotations to score with, if elsewhere")
    group.add_argument(
        "--any-start",
        action="store_true",
        help="ScienceQA as LLaVA-HR's scripts have it: a first letter counts without a period behind it, 64 new tokens at most",
    )
    arguments.add_recipe(parser, many=True)
    parser.add_argument("--scores", nargs="+", default=None, type=arguments.score, help="compare several rankings at the same schedule")
    arguments.add_generation(parser)
    parser.set_defaults(batch_size=8, max_new_tokens=None)
    parser.add_argument(
        "--output",
        default=None,
        help="folder for answers, recipes and results.json, a rerun continues there; default runs/NAME, with "
        "--playground answers/ in the benchmark's folder there",
    )
    parser.add_argument("--limit", type=arguments.positive, default=None, help="only the first so many questions")
    arguments.add_strict(parser)
    parser.add_argument("--no-dense", action="store_true", help="leave the dense run out")
    parser.add_argument("--overwrite", action="store_true", help="answer anew instead of continuing")
    group = parser.add_argument_group("several processes")
    group.add_argument("--fit-only", action="store_true", help="fit and keep the recipes, answer nothing")
    group.add_argument("--num-chunks", type=arguments.positive, default=1, help="how many processes answer")
    group.add_argument("--chunk-idx", type=int, default=None, help="which of them this is, from 0; without it, their answers are joined")


def run(args: argparse.Namespace) -> int:
    """Answers, scores and prints; returns the exit code."""
    from ..evaluation.compare import answer_chunk, compare, plan
    from ..evaluation.rows import table
    from ..evaluation.usable import EMPTY, WRONG, screen, screened, skipped_line
    from ..families import load
    from ..studies.judge import DriftJudge, journal_in

    own_images = args.image_folder is not None
    benchmark, data = _where(args)
    output = _output(args, benchmark)
    workers: WorkerGroup = args.workers
    workers.first(partial(check_writable, output))
    read = benchmark.asked if benchmark else read_questions
    given = read(Path(args.question_file))
    questions = benchmark.first(given, args.limit) if benchmark else given[: args.limit]
    images = Path(args.image_folder)
    among = images if own_images or benchmark is None else data
    questions = find_pictures(questions, images, among, args.strict, workers.leads)
    if benchmark:
        workers.first(partial(rehearse, benchmark, data, questions))
    if args.scores and args.score:
        raise FitPruneError("give either --score or --scores, not both")
    by = arguments.ways(args)
    if args.max_new_tokens is None:
        args.max_new_tokens = benchmark.max_new_tokens if benchmark else arguments.DEFAULTS["max_new_tokens"]
    decoding = arguments.generation(args)
    calibration = arguments.calibration(args)
    if calibration.question_file == args.question_file:  # fitted on the questions themselves: read alike
        calibration = replace(calibration, read=with_pictures(read, images, among))
    chunked = args.num_chunks > 1 or args.chunk_idx is not None
    if chunked and workers.size > 1:
        raise FitPruneError("--num-chunks is for processes that are started one by one: under torchrun or accelerate leave it out")
    vlm = load(args.model_path, **arguments.load_options(args))
    questions = screen(vlm, questions, args.image_folder, args.strict, workers)
    calibration = screened(vlm, calibration, args.strict, workers)

    def judge() -> DriftJudge:
        return DriftJudge(vlm, calibration, journal=journal_in(output, vlm, calibration), workers=workers)

    plans = plan(
        vlm, questions, output, ratios=args.reduction_ratio, scores=args.scores or [args.score], calibration=calibration,
        recipe_file=args.recipe, by=by, judge=judge, dense=not args.no_dense, refit=args.overwrite and (args.fit_only or not chunked),
        suffix=f"-first{args.limit}" if args.limit else "", workers=workers,
    )  # fmt: skip
    if args.fit_only:
        return 0
    if args.chunk_idx is not None:
        answer_chunk(
            vlm, plans, questions, args.image_folder, output, num_chunks=args.num_chunks, chunk_idx=args.chunk_idx,
            batch_size=args.batch_size, overwrite=args.overwrite, **decoding,
        )  # fmt: skip
        return 0
    rows = compare(
        vlm, plans, questions, args.image_folder, output, benchmark=benchmark, data=data, num_chunks=args.num_chunks,
        batch_size=args.batch_size, overwrite=args.overwrite, workers=workers, **decoding,
    )  # fmt: skip
    for row in rows:
        if row.report:
            print(f"{row.name}:", row.report.rstrip(), sep="\n", end="\n\n")
    print(f"{vlm.name} on {len(questions)} questions of {args.question_file}")
    print(table(rows))
    if skipped := skipped_line(questions, WRONG if benchmark else EMPTY):
        print(skipped)
    return 0


def _where(args: argparse.Namespace) -> tuple[Benchmark | None, Path]:
    """The benchmark, None for questions that nothing scores, and its folder; fills in the question file and image folder.

    Raises:
        FitPruneError: for an unknown benchmark, and one whose files are not all there.
    """
    benchmark = find(args.benchmark or TEXTVQA.name)
    data = Path(args.data) if args.data else default_data(args.model_path, args.playground, benchmark)
    if args.any_start:
        if benchmark is not SCIENCE_QA:
            raise FitPruneError(f"--any-start is how LLaVA-HR reads ScienceQA's answers: leave it out for {benchmark.title}")
        benchmark = AS_LLAVA_HR
    if args.annotation_file is not None:
        if benchmark is not TEXTVQA:
            raise FitPruneError(f"--annotation-file is for TextVQA: give {benchmark.title}'s folder with --data instead")
        benchmark = scored_with(Path(args.annotation_file))
    if args.question_file and not (args.benchmark or args.data):  # questions of one's own
        args.image_folder = args.image_folder or str(embedded().images)
        if args.annotation_file is None:
            return None, data
    if args.question_file:
        benchmark = replace(benchmark, questions=str(Path(args.question_file).absolute()))
    if args.image_folder:
        benchmark = replace(benchmark, images=str(Path(args.image_folder).absolute()))
    benchmark.check(data)
    if args.image_folder and not Path(args.image_folder).is_dir():
        raise FitPruneError(f"{benchmark.title} needs the images in {args.image_folder}, which does not exist: check --image-folder")
    args.question_file = args.question_file or str(data / benchmark.questions)
    args.image_folder = args.image_folder or str(data / benchmark.images)
    return benchmark, data


def _output(args: argparse.Namespace, benchmark: Benchmark | None) -> Path:
    if args.output is not None:
        return Path(args.output)
    if benchmark is None:
        return Path("runs")
    return Path(args.playground) / benchmark.folder / "answers" if args.playground else Path("runs") / benchmark.name
