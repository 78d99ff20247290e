"""Methods × reduction ratios × benchmarks, at equal cost, in one table and one plot.

The dense model answers each benchmark once, statistics are taken once, and every recipe comes from them (methods.py). The two
controls are always among the methods. Every run has its answers file in the output folder, and a rerun of the command goes on
wherever it was cut: answers are on disk before the next batch starts (answers.py), statistics are kept under a name that tells
calibration sets apart, and times of finished runs in `times.json`. Of a run that was cut the time is that of the questions
answered since.

Accuracy is set against three costs of a question: FLOPs of the whole prefill as the recipe runs it, bytes of its key-value
cache, and measured time of generation. What a method cannot save, or the model not run, is left out, with a line that says why. Methods
that choose tokens before the decoder run masked (before.py): their FLOPs and bytes are those of the tokens chosen, and they have no time.

Ablations (ablate.py) are methods as well: FitPrune with fewer samples, another criterion of the fit, another score.

Under torchrun or `accelerate launch` the processes share the questions (distributed/workers.py); the first one keeps everything.

Left out: published recipes (they save less than they are named for).

    fitprune sweep --ratios 0,30,60 --methods fitprune,fastv --benchmarks textvqa,gqa --limit 50 --output /tmp/sweep
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..distributed.workers import SINGLE, WorkerGroup, to_json
from ..errors import FitPruneError
from ..evaluation.answer import AnswerRun, answer, warm_up
from ..evaluation.benchmark import Benchmark
from ..evaluation.compare import prompt_sizes
from ..evaluation.rows import Plan, row_of
from ..families import VLM
from ..files import write_atomically
from ..questions import Question
from ..recipe import Recipe
from ..stats import AttentionStats
from . import ablate
from .before import Before
from .methods import Made, recipes
from .sweep_table import Point

Run = tuple[str, float, Plan]  # method, ratio, what is run
Tried = tuple[str, float, Made | FitPruneError]  # method, ratio, what runs or why nothing does


def _packed(tried: list[Tried]) -> bytes:
    def fields(one: Made | FitPruneError) -> tuple[str, ...]:
        if isinstance(one, FitPruneError):
            return (str(one),)
        return ("before", one.way, "") if isinstance(one, Before) else (one[0].to_bytes().decode(), one[1])

    return to_json([(method, ratio, fields(one)) for method, ratio, one in tried])


def _unpacked(data: bytes) -> list[Tried]:
    def made(ratio: float, text: str, name: str | None = None, before: str | None = None) -> Made | FitPruneError:
        if name is None:
            return FitPruneError(text)
        return (Recipe.from_bytes(text.encode()), name) if before is None else Before(name, ratio)

    return [(method, ratio, made(ratio, *fields)) for method, ratio, fields in json.loads(data)]


def schedule_runs(
    stats: AttentionStats | None,
    methods: Sequence[str],
    ratios: Sequence[float],
    axes: Sequence[ablate.Axis] = (),
    suffix: str = "",
    workers: WorkerGroup = SINGLE,
) -> tuple[list[Run], list[str], list[ablate.Difference]]:
    """The dense run and every method at every ratio, all from the same statistics.

    Args:
        stats: None without ratios, and in processes that do not lead.
        axes: Of an ablation.
        suffix: Ends the names of the answers files, so that runs on other questions of the same file stay apart.
    Returns:
        The runs, why others are left out, and (in the first process) how far the recipes of an ablation are apart.
    """
    runs, notes = [("dense", 0.0, Plan("dense", f"dense{suffix}", None, "fitprune"))], list[str]()
    compared: list[ablate.Difference] = []
    if not ratios:
        return runs, notes, compared

    def made() -> list[Tried]:
        assert stats is not None
        found = recipes(stats, methods, ratios)
        compared.extend(ablate.differences(stats, axes, found) if axes else [])
        return [(method, ratio, one) for (method, ratio), one in found.items()]

    for method, ratio, one in workers.first(made, _packed, _unpacked):
        if isinstance(one, FitPruneError):
            notes.append(str(one))
        else:
            name = f"{method.replace(' ', '-').replace('=', '-')}-r{100 * ratio:.6g}"
            recipe, score, before = (None, None, one) if isinstance(one, Before) else (*one, None)
            runs.append((method, ratio, Plan(name, f"{name}{suffix}", recipe, score, before)))
    return runs, notes, compared


def run_benchmark(
    vlm: VLM,
    benchmark: Benchmark,
    data: Path,
    questions: Sequence[Question],
    runs: Sequence[Run],
    output: Path,
    notes: list[str],
    settings: dict[str, Any],
    workers: WorkerGroup,
) -> list[Point]:
    """Every run on one benchmark, in order; what is answered already is only checked and scored, by the first process.

    Runs whose ratio is out of reach for an image of another size are left out, with a note.
    """
    images, times = data / benchmark.images, output / "times.json"
    illustrated = [q for q in questions if q.visual]
    prompts = prompt_sizes(vlm, illustrated, images, workers)
    warm = not illustrated  # text needs no warming up, nor does what is answered already
    points: list[Point] = []
    for method, ratio, plan in runs:
        path = output / f"{benchmark.name}-{plan.stem}.jsonl"
        try:
            entering = _entering(plan, vlm, illustrated, images, prompts, workers)
            cache = _kv_bytes(plan, vlm, prompts if entering is None else entering)
        except FitPruneError as error:
            notes.append(f"{method} on {benchmark.name}: {error}")
            continue

        def unfinished(path: Path = path) -> bool:
            return settings["overwrite"] or not path.exists() or path.read_bytes().count(b"\n") < len(questions)

        if not warm and workers.first(unfinished):
            warm_up(vlm, illustrated[: settings["batch_size"]], images, workers)
            warm = True
        now = answer(vlm, questions, images, path, recipe=plan.recipe, score=plan.score, before=plan.before, workers=workers, **settings)
        known = now, plan, method, ratio, cache, entering

        def scored(known: Any = known) -> None:
            now, plan, method, ratio, cache, entering = known
            answered, seconds = _timed(times, now.path.stem, now) if plan.before is None or plan.before.timed else (0, 0.0)
            result = benchmark.score(data, now.path, output / "upload")
            # averages over what was answered now would depend on where the run was cut: the recipe's are taken instead
            of_all = AnswerRun(now.path, answered, len(questions) - answered, seconds)
            row = row_of(plan, benchmark, result, of_all, vlm.cost, prompts, entering)
            points.append(Point(method, plan.score if plan.recipe else None, ratio, cache, answered, row))

        workers.first(scored)
    return points


def _entering(
    plan: Plan, vlm: VLM, questions: Sequence[Question], images: Path, prompts: Counter[tuple[int, int]], workers: WorkerGroup
) -> Counter[tuple[int, int]] | None:
    """How many questions have how many (visual, other) tokens as they enter the decoder; None where that is what the model makes.

    Raises:
        FitPruneError: for what the model cannot run, and for a ratio that is out of reach for an image.
    """
    if plan.before is None:
        return None
    with plan.before.applied(vlm) as asked:
        if asked is not vlm:
            return prompt_sizes(asked, questions, images, workers)
    found: Counter[tuple[int, int]] = Counter()
    for (visual, text), times in prompts.items():
        found[plan.before.keep(visual, vlm.cost), text] += times
    return found


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


def _kv_bytes(plan: Plan, vlm: VLM, prompts: Counter[tuple[int, int]]) -> float:
    """Bytes of the cache after the prefill, averaged over the questions with an image."""
    cost, total = vlm.cost, 0
    size = next(vlm.model.parameters()).element_size()
    for (visual, text), times in prompts.items():
        gone = plan.recipe.deletions(visual, cost.layers) if plan.recipe else [0] * cost.layers
        total += times * sum(cost.kv_bytes(gone, visual, text, size))
    return total / max(prompts.total(), 1)
