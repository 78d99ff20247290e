"""Dense against pruned on one benchmark: its score, tokens kept, compute, time. The heart of `fitprune eval`.

`plan` settles what is run: the dense model and every (ratio, score) pair. Each answers the same questions into its own
answers file, so each can be interrupted and continued, shared by the processes of torchrun, or cut into chunks. Time is that of
generation (vision tower, prefill, decoding), over the questions answered in this call, after one warm-up batch. Compute is named by
its convention: the paper's visual multiply-accumulates, and the FLOPs of the whole prefill (cost.py).

    fitprune eval --reduction-ratio 0.5 0.7
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..calibrate import Calibration
from ..choose import Judge
from ..cost import CostModel
from ..distributed.workers import SINGLE, WorkerGroup
from ..errors import FitPruneError
from ..families import VLM
from ..files import file_name, write_atomically
from ..questions import Question, prompt_of, shown
from ..recipe import Recipe
from ..resolve import DRIFT, MASS, Choice, resolve
from ..tables import aligned, format_counts
from .answer import AnswerRun, Reduction, answer, warm_up
from .benchmark import Benchmark, Result
from .chunks import begun, chunk_file, merge, slices


@dataclass(frozen=True)
class Plan:
    """One run of a comparison: its name in the table, the stem of its files, what is pruned and how tokens are ranked.

    before: What shrinks images before the decoder; then there is no recipe.
    """

    name: str
    stem: str
    recipe: Recipe | None
    score: str | None
    before: Reduction | None = None


@dataclass
class Row:
    """One line of the table: reductions are shares of the dense cost; time and tokens alive are per question.

    `headline`, `details`, `report` and `written` are the benchmark's `Result`, `metric` says what the headline is, `standard_error`
    how far chance moves it. `questions` counts those answered, now or before.
    """

    name: str
    benchmark: str | None
    metric: str | None
    headline: float | None
    standard_error: float | None
    questions: int
    details: dict[str, float]
    visual_reduction: float
    prefill_gflops: float
    prefill_reduction: float
    visual_tokens: float
    alive: list[float]
    milliseconds: float | None
    answers: str
    written: list[str]
    report: str


def plan(
    vlm: VLM,
    questions: Sequence[Question],
    output: str | Path,
    *,
    ratios: Sequence[float],
    scores: Sequence[str],
    calibration: Calibration,
    recipe_file: str | Path | None = None,
    by: Sequence[str] = (MASS,),
    judge: Callable[[], Judge] | None = None,
    dense: bool = True,
    refit: bool = False,
    suffix: str = "",
    workers: WorkerGroup = SINGLE,
) -> list[Plan]:
    """What to run: densely, and with every recipe and score; prints which recipes are used.

    Where recipes of both ways are compared, rows say whose method they are; files have the same names then as of either by itself.

    Args:
        output: Folder that keeps fitted recipes.
        recipe_file: One recipe instead of the ratios.
        by, judge: As `resolve`.
        refit: Fit anew although recipes are kept there.
        suffix: Ends the names of the answers files, so that runs on other questions of the same file stay apart.
    Raises:
        FitPruneError: as `resolve`; if nothing is left to run.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise FitPruneError(f"--output {output} is a file: name a folder")
    if not any(question.visual for question in questions):
        ratios, recipe_file = [], None  # text has nothing to prune

    def named(name: str, stem: str, recipe: Recipe | None = None, score: str | None = None) -> Plan:
        return Plan(name, f"{file_name(vlm.name)}-{stem.replace(' ', '-').replace('%', '')}{suffix}", recipe, score)

    def keep_at(ratio: float, way: str) -> Path:
        return output / f"{file_name(vlm.name, ratio, *([] if way == MASS else [way]))}.recipe.json"

    plans = [named("dense", "dense")] if dense else []
    choices = resolve(
        vlm, ratios, calibration, recipe_file=recipe_file, by=by, judge=judge, refit=refit, workers=workers, keep_at=keep_at,
    )  # fmt: skip
    for choice in choices:
        if choice.recipe is None:
            continue
        print(choice.source, choice.recipe, sep="\n", end="\n\n")
        own = choice.recipe.ranked_by()
        for score in dict.fromkeys(map(choice.recipe.ranked_by, scores)):
            stem = choice.name if score == own else f"{choice.name} {score}"
            plans.append(named(_method(choice, score, score == own) if DRIFT in by else stem, stem, choice.recipe, score))
    if not plans:
        raise FitPruneError("nothing to run: give a reduction ratio above 0, or leave the dense run in")
    return plans


def _method(choice: Choice, score: str, own: bool) -> str:
    """A row's name where methods are compared: `60% fitprune`, `60% recommended (spread theta=0.25, by drift)`."""
    if choice.by == MASS:
        return f"{choice.name} {score}"
    percent = choice.name.partition(" ")[0]
    return f"{percent} recommended ({score}, by drift)" if own else f"{choice.name}, {score}"


def answer_chunk(
    vlm: VLM,
    plans: Sequence[Plan],
    questions: Sequence[Question],
    image_folder: str | Path,
    output: str | Path,
    *,
    num_chunks: int,
    chunk_idx: int,
    batch_size: int = 1,
    overwrite: bool = False,
    **generation: Any,
) -> None:
    """Answers one chunk of every plan, each into its folder; only the first chunk shows its progress; errors as `answer`."""
    if not 0 <= chunk_idx < num_chunks:
        raise FitPruneError(f"--chunk-idx {chunk_idx} is out of range: with --num-chunks {num_chunks} it goes from 0 to {num_chunks - 1}")
    parts = slices(questions, num_chunks)
    ask = _asking(vlm, image_folder, batch_size=batch_size, overwrite=overwrite, progress=chunk_idx == 0, **generation)
    for one in plans if chunk_idx < len(parts) else []:  # few questions leave nothing for the last chunks
        ask(one, parts[chunk_idx], chunk_file(Path(output) / one.stem, num_chunks, chunk_idx))


def _asking(vlm: VLM, image_folder: str | Path, **settings: Any) -> Callable[[Plan, Sequence[Question], Path], AnswerRun]:
    """`answer` for the runs of a comparison, which differ in recipe, score and file."""
    return lambda one, questions, path: answer(
        vlm, questions, image_folder, path, recipe=one.recipe, score=one.score, before=one.before, **settings
    )


def compare(
    vlm: VLM,
    plans: Sequence[Plan],
    questions: Sequence[Question],
    image_folder: str | Path,
    output: str | Path,
    *,
    benchmark: Benchmark | None = None,
    data: str | Path = ".",
    num_chunks: int = 1,
    batch_size: int = 1,
    overwrite: bool = False,
    workers: WorkerGroup = SINGLE,
    **generation: Any,
) -> list[Row]:
    """Answers and scores every plan; returns the table's rows.

    Args:
        output: Folder for answers and `results.json`; files for servers go to `upload` beside the answers.
        benchmark: What scores the answers, with the files in its folder, `data`; None leaves them unscored.
        num_chunks: Above 1, nothing is answered here: that many processes have (`answer_chunk`), and their files are joined.
        workers: The processes that answer together; the first one scores and writes, all get the rows.
        generation: As `VLM.generate`.
    Raises:
        FitPruneError: as `answer`, `merge` and the benchmark's scorer.
    """
    output = Path(output)
    fresh, progress = overwrite and num_chunks == 1, num_chunks == 1
    ask = _asking(vlm, image_folder, batch_size=batch_size, overwrite=fresh, progress=progress, workers=workers, **generation)
    illustrated = [question for question in questions if question.visual]
    prompts = prompt_sizes(vlm, illustrated, image_folder, workers)
    if illustrated and num_chunks == 1:
        warm_up(vlm, illustrated[:batch_size], image_folder, workers)

    def whole(one: Plan) -> Path:
        """Where all answers of a run are or come: in its own file, or joined from chunks; those that an earlier run began are continued."""
        path, folder, chunks = output / f"{one.stem}.jsonl", output / one.stem, num_chunks
        if num_chunks == 1:
            chunks = workers.first(lambda: 0 if overwrite or path.exists() else begun(folder))
            for number, part in enumerate(slices(questions, chunks) if chunks else []):
                ask(one, part, chunk_file(folder, chunks, number))
        return Path(workers.first(lambda: str(merge(folder, questions, chunks)))) if chunks else path

    rows = []
    for one in plans:
        path = whole(one)
        run = ask(one, questions, path)  # of a joined file this checks every line, and finds nothing left to answer

        def scored(one: Plan = one, path: Path = path, run: AnswerRun = run) -> dict[str, Any]:
            result = benchmark.score(Path(data), path, path.parent / "upload") if benchmark else None
            return asdict(row_of(one, benchmark, result, run, vlm.cost, prompts))

        rows.append(Row(**workers.first(scored)))
    if workers.leads:
        write_atomically(output / "results.json", json.dumps([asdict(row) for row in rows], indent=1).encode())
    return rows


def prompt_sizes(
    vlm: VLM, questions: Sequence[Question], image_folder: str | Path, workers: WorkerGroup = SINGLE
) -> Counter[tuple[int, int]]:
    """How many questions have how many (visual, other) tokens; of their images only the sizes are read, by the first process."""

    def count() -> list[tuple[int, int, int]]:
        found: Counter[tuple[int, int]] = Counter()
        for question in questions:
            ids = vlm.token_ids(prompt_of(vlm, question), shown(question, image_folder, pixels=False))
            visual = vlm.count_visual(ids)
            found[visual, len(ids) - visual] += 1
        return [(visual, text, times) for (visual, text), times in found.items()]

    return Counter({(visual, text): times for visual, text, times in workers.first(count)})


def row_of(
    plan: Plan,
    benchmark: Benchmark | None,
    result: Result | None,
    run: AnswerRun,
    cost: CostModel,
    prompts: Counter[tuple[int, int]],
    entering: Counter[tuple[int, int]] | None = None,
) -> Row:
    """Compute is summed over the questions that have an image, before shares are taken of it.

    Args:
        prompts: Of the dense run, as `prompt_sizes`.
        entering: Of this one, where fewer visual tokens enter the decoder.
    """
    recipe, result = plan.recipe, result or Result(None)
    count = max(prompts.total(), 1)
    macs, flops = [0.0, 0.0], [0.0, 0.0]  # dense, as run
    alive = [0.0] * cost.layers
    for at, sizes in enumerate((prompts, prompts if entering is None else entering)):
        for (visual, text), times in sizes.items():
            kept = recipe.alive(visual, cost.layers) if at and recipe else [visual] * cost.layers
            macs[at] += times * sum(cost.visual_macs(kept, visual))
            flops[at] += times * sum(cost.prefill_flops(kept, visual, text))
            if at:
                alive = [total + times * here / count for total, here in zip(alive, kept, strict=True)]
    return Row(
        name=plan.name,
        benchmark=benchmark.name if benchmark else None,
        metric=benchmark.metric if benchmark else None,
        headline=result.headline,
        standard_error=standard_error(result),
        questions=run.answered + run.resumed,
        details=result.details,
        visual_reduction=1 - macs[1] / macs[0] if macs[0] else 0.0,
        prefill_gflops=flops[1] / count / 1e9,
        prefill_reduction=1 - flops[1] / flops[0] if flops[0] else 0.0,
        visual_tokens=run.visual_tokens or sum(visual * times for (visual, _), times in prompts.items()) / count,
        alive=(run.alive or alive) if recipe or entering is not None else [],
        milliseconds=run.milliseconds,
        answers=str(run.path),
        written=[str(path) for path in result.written],
        report=result.report,
    )


def standard_error(result: Result) -> float | None:
    """Standard error of a headline that is the mean of what its answers are worth, in percent: sample deviation / √ of their number.

    Takes questions as independent; several about one image make it too small. None for headlines made otherwise, and where all
    answers are worth the same, which does not show how much they vary.
    """
    worth = result.per_answer or []
    if result.headline is None or len(set(worth)) < 2 or not math.isclose(result.headline, 100 * mean(worth)):
        return None
    return 100 * stdev(worth) / math.sqrt(len(worth))


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, then the tokens alive after each layer."""
    metric = next((row.metric for row in rows if row.metric), "")
    known = any(row.standard_error is not None for row in rows)
    base = next((row.milliseconds for row in rows if row.name == "dense"), None)
    cells = [
        ["run", metric, "±", "visual MACs saved", "prefill GFLOPs", "saved", "visual tokens left", "ms/question", "speed-up"],
        *(
            [
                row.name,
                _headline(row) if metric else "",
                error_cell(row) if known else "",
                f"{row.visual_reduction:.1%}",
                f"{row.prefill_gflops:.2f}",
                f"{row.prefill_reduction:.1%}",
                f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}" if row.alive else f"{row.visual_tokens:.0f}",
                "resumed" if row.milliseconds is None else f"{row.milliseconds:.1f}",
                f"{base / row.milliseconds:.2f}x" if base and row.milliseconds else "-",
            ]
            for row in rows
        ),
    ]
    kept = [f"visual tokens alive after each layer, {row.name}: {format_counts(row.alive)}" for row in rows if row.alive]
    return "\n".join([*aligned(cells, figures_right=False), *([""] if kept else []), *kept])


def error_cell(row: Row) -> str:
    """The standard error as tables show it."""
    return "-" if row.standard_error is None else f"{row.standard_error:.2f}"


def _headline(row: Row) -> str:
    """The figure, else the file that a server turns into one."""
    if row.headline is not None:
        return f"{row.headline:.2f}"
    return Path(row.written[0]).name if row.written else "-"
