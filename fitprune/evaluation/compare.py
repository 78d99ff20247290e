"""Dense against pruned on one benchmark: its score, tokens kept, compute, time. The heart of `fitprune eval`.

`plan` settles what is run: the dense model and every (ratio, score) pair. Each answers the same questions into its own
answers file, so each can be interrupted and continued, shared by the processes of torchrun, or cut into chunks. Time is that of
generation (vision tower, prefill, decoding), over the questions answered in this call, after one warm-up batch. Compute is named by
its convention: the paper's visual multiply-accumulates, and the FLOPs of the whole prefill (cost.py).

    fitprune eval --reduction-ratio 0.5 0.7
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..calibrate import Calibration
from ..choose import Judge
from ..distributed.workers import SINGLE, WorkerGroup
from ..errors import FitPruneError
from ..families import VLM
from ..files import file_name, write_atomically
from ..questions import Question, prompt_of, shown
from ..recipe import Recipe
from ..resolve import DRIFT, MASS, Choice, resolve
from .answer import AnswerRun, answer, warm_up
from .benchmark import Benchmark
from .chunks import begun, chunk_file, merge, slices
from .rows import Plan, Row, row_of


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
