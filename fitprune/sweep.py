"""`fitprune sweep`: methods × reduction ratios × benchmarks, at equal cost, in one table and one picture.

The dense model answers each benchmark once, statistics are taken once, and every recipe comes from them (methods.py). The two
controls are always among the methods. Every run has its answers file in the output folder, and a rerun of the command goes on
wherever it was cut: answers are on disk before the next batch starts (answers.py), statistics are kept under a name that tells
calibration sets apart, and times of finished runs in `times.json`. Of a run that was cut the time is that of the questions
answered since.

Accuracy is set against three costs of a question: FLOPs of the whole prefill as the recipe runs it, bytes of its key-value
cache, and measured time of generation. What a method cannot save is left out, with a line that says why.

Ablations (ablate.py) are methods as well: FitPrune with fewer samples, another criterion of the fit, another score.

Under torchrun or `accelerate launch` the processes share the questions (ranks.py); the first one keeps everything.

Left out: published recipes (they save less than they are named for).

    fitprune sweep --ratios 0,30,60 --methods fitprune,fastv --benchmarks textvqa,gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import ablate, options, sweep_plot
from .calibrate import Calibration, observe_questions
from .embedded import MODELS
from .errors import FitPruneError
from .evaluation.answer import AnswerRun, answer, warm_up
from .evaluation.benchmark import Benchmark
from .evaluation.benchmarks import BENCHMARKS
from .evaluation.benchmarks import find as find_benchmark
from .evaluation.command import PLAYGROUND, default_data
from .evaluation.compare import Plan, prompt_sizes, row_of
from .evaluation.questions import Question
from .families import Loaded, load
from .files import check_writable, write_atomically
from .methods import CONTROLS, METHODS, recipes
from .methods import find as find_method
from .ranks import ALONE, Ranks, to_json
from .recipe import Recipe
from .stats import AttentionStats
from .sweep_table import Point, markdown, write

SHOWN = ("fitprune", "fastv", "pyramiddrop", "vtw")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune sweep`."""
    options.add_model(parser)
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--ratios", type=options.ratios, default="0,10,...,90", help="shares of visual compute to save; 0: dense"
    )
    group.add_argument(
        "--methods",
        type=options.names,
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
    group.add_argument("--benchmarks", type=options.names, default="textvqa,gqa", help=", ".join(BENCHMARKS))
    group.add_argument("--playground", default=None, help=f"folder of the benchmarks' folders, default {PLAYGROUND}")
    group.add_argument("--limit", type=options.positive, default=None, help="only the first so many questions of each")
    options.add_calibration(group := parser.add_argument_group("calibration"))
    group.add_argument("--calibration-images", default=None, help="where the calibration file's images are")
    options.add_generation(parser)
    parser.set_defaults(batch_size=8, max_new_tokens=None)
    parser.add_argument("--output", default="runs/sweep", help="folder for everything; a rerun continues there")
    parser.add_argument("--overwrite", action="store_true", help="observe and answer anew instead of continuing")


def run(args: argparse.Namespace) -> int:
    """Answers, scores, writes sweep.md, sweep.csv, sweep.json and pictures; returns the exit code."""
    output = Path(args.output)
    args.ranks.first(partial(check_writable, output))
    if not args.benchmarks:
        raise FitPruneError(f"no benchmark to run: give --benchmarks some of {', '.join(BENCHMARKS)}")
    benchmarks = {name: find_benchmark(name) for name in args.benchmarks}
    folders = {name: default_data(args, benchmark) for name, benchmark in benchmarks.items()}
    for name, benchmark in benchmarks.items():
        benchmark.check(folders[name])
    decoding = options.generation(args)
    args.samples = ablate.most_samples(args.ablate, args.samples)
    calibration = _calibration(args, next(iter(benchmarks.values())), next(iter(folders.values())))
    methods = _methods(args, calibration)
    loaded = load(args.model_path, **options.load_options(args))
    ranks: Ranks = args.ranks
    pruned = [ratio for ratio in dict.fromkeys(args.ratios) if ratio]
    suffix = f"-first{args.limit}" if args.limit else ""
    plans, notes = [("dense", 0.0, Plan("dense", f"dense{suffix}", None, "fitprune"))], list[str]()
    compared: list[ablate.Difference] = []  # known to the first process
    if pruned:
        stats = statistics(loaded, calibration, output, args.overwrite, ranks)

        def made() -> list[Made]:
            assert stats is not None
            found = recipes(stats, methods, pruned)
            compared.extend(ablate.differences(stats, args.ablate, found) if args.ablate else [])
            return [(method, ratio, one) for (method, ratio), one in found.items()]

        for method, ratio, one in ranks.first(made, _packed, _unpacked):
            if isinstance(one, FitPruneError):
                notes.append(str(one))
            else:
                name = f"{method.replace(' ', '-').replace('=', '-')}-r{100 * ratio:.6g}"
                plans.append((method, ratio, Plan(name, f"{name}{suffix}", *one)))
    points: list[Point] = []
    about = {"model": loaded.name, "batch_size": args.batch_size, "limit": args.limit, **decoding}
    about |= {"calibration": Path(calibration.question_file).name, "samples": calibration.samples}
    for name, benchmark in benchmarks.items():
        settings = {"batch_size": args.batch_size, "overwrite": args.overwrite, **decoding}
        settings["max_new_tokens"] = args.max_new_tokens or benchmark.max_new_tokens
        questions = benchmark.first(benchmark.read(folders[name] / benchmark.questions), args.limit)
        points += _benchmark(loaded, benchmark, folders[name], questions, plans, output, notes, settings, ranks)
        ranks.first(partial(write, output, points, notes, about, compared))  # as far as it goes
    if ranks.leads:
        print(markdown(points, notes, about, compared))
        _draw(points, output, ablate.panels(args.ablate, len(calibration.questions())))
    return 0


Made = tuple[str, float, tuple[Recipe, str] | FitPruneError]  # method, ratio, recipe and score or why there is none


def _packed(made: list[Made]) -> bytes:
    return to_json(
        [
            (method, ratio, str(one), None)
            if isinstance(one, FitPruneError)
            else (method, ratio, one[0].to_bytes().decode(), one[1])
            for method, ratio, one in made
        ]
    )


def _unpacked(data: bytes) -> list[Made]:
    return [
        (method, ratio, FitPruneError(text) if score is None else (Recipe.from_bytes(text.encode()), score))
        for method, ratio, text, score in json.loads(data)
    ]


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
            raise FitPruneError(
                f"--ablate samples={most}: {calibration.question_file} has {observed} questions with a picture"
            )
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
    return Calibration(data / benchmark.questions, data / benchmark.images, args.samples, batch, benchmark.read)


def statistics(
    loaded: Loaded, calibration: Calibration, output: Path, anew: bool = False, ranks: Ranks = ALONE
) -> AttentionStats | None:
    """The statistics that are kept in `output` for this model and calibration set, else taken now and kept there.

    Returns:
        None in processes that do not lead, if they were kept.
    Raises:
        FitPruneError: as `observe_questions`.
    """
    asked = [(str(q.question_id), str(q.image), q.text) for q in calibration.questions()]
    about = (loaded.name, loaded.template, str(Path(calibration.image_folder).absolute()), asked)
    digest = hashlib.sha256(repr(about).encode()).hexdigest()[:12]
    path = output / f"statistics-{digest}.safetensors"
    known: list[AttentionStats] = []

    def kept() -> bool:
        if path.exists() and not anew:
            try:
                stats = AttentionStats.load(path)
                if stats.cost == loaded.cost and stats.samples == len(asked):
                    print(f"statistics of {stats.samples} samples from an earlier run, {path}")
                    known.append(stats)
            except FitPruneError:
                pass  # torn: they are ours to take again
        return bool(known)

    if ranks.first(kept):
        return known[0] if known else None
    stats = observe_questions(loaded, calibration, ranks=ranks)
    ranks.first(lambda: stats.save(path))
    return stats


def _benchmark(
    loaded: Loaded,
    benchmark: Benchmark,
    data: Path,
    questions: Sequence[Question],
    plans: Sequence[tuple[str, float, Plan]],
    output: Path,
    notes: list[str],
    settings: dict[str, Any],
    ranks: Ranks,
) -> list[Point]:
    """Every plan on one benchmark, in order; what is answered already is only checked and scored, by the first process.

    Plans whose ratio is out of reach for a picture of another size are left out, with a note.
    """
    images, times = data / benchmark.images, output / "times.json"
    illustrated = [q for q in questions if q.image]
    prompts = prompt_sizes(loaded, illustrated, images, ranks)
    warm = not illustrated  # text needs no warming up, nor does what is answered already
    points: list[Point] = []
    for method, ratio, plan in plans:
        path = output / f"{benchmark.name}-{plan.stem}.jsonl"
        try:
            cache = _kv_bytes(plan, loaded, prompts)
        except FitPruneError as error:
            notes.append(f"{method} on {benchmark.name}: {error}")
            continue

        def unfinished(path: Path = path) -> bool:
            return settings["overwrite"] or not path.exists() or path.read_bytes().count(b"\n") < len(questions)

        if not warm and ranks.first(unfinished):
            warm_up(loaded, illustrated[: settings["batch_size"]], images, ranks)
            warm = True
        now = answer(loaded, questions, images, path, recipe=plan.recipe, score=plan.score, ranks=ranks, **settings)

        def scored(
            now: AnswerRun = now, plan: Plan = plan, method: str = method, ratio: float = ratio, cache: float = cache
        ) -> None:
            answered, seconds = _timed(times, now.path.stem, now)
            result = benchmark.score(data, now.path, output / "upload")
            # averages over what was answered now would depend on where the run was cut: the recipe's are taken instead
            of_all = AnswerRun(now.path, answered, len(questions) - answered, seconds)
            row = row_of(plan, benchmark, result, of_all, loaded.cost, prompts)
            points.append(Point(method, plan.score if plan.recipe else None, ratio, cache, answered, row))

        ranks.first(scored)
    return points


def _timed(path: Path, stem: str, now: AnswerRun) -> tuple[int, float]:
    """Questions answered and seconds that took: now, which is kept for later, else as kept."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        kept = {}
    if now.answered:
        kept[stem] = [now.answered, now.seconds]
        write_atomically(path, json.dumps(kept, indent=1).encode())
    answered, seconds = kept.get(stem, (0, 0.0))
    return int(answered), float(seconds)


def _kv_bytes(plan: Plan, loaded: Loaded, prompts: Counter[tuple[int, int]]) -> float:
    """Bytes of the cache after the prefill, averaged over the questions with a picture."""
    cost, total = loaded.cost, 0
    size = next(loaded.model.parameters()).element_size()
    for (visual, text), times in prompts.items():
        gone = plan.recipe.deletions(visual, cost.layers) if plan.recipe else [0] * cost.layers
        total += times * sum(cost.kv_bytes(gone, visual, text, size))
    return total / max(prompts.total(), 1)


def _draw(points: Sequence[Point], output: Path, varied: Mapping[str, Mapping[str, str]]) -> None:
    if find_spec("matplotlib") is None:
        print("no picture: pip install 'fitprune[draw]' and run the same command again to get sweep.png")
        return
    if files := sweep_plot.save(points, output, varied):
        print(f"figures, {' and '.join(file.name for file in files)} in {output}")
