"""Dense against pruned on one benchmark: accuracy, tokens kept, compute, time. The heart of `fitprune eval`.

The dense model and every (ratio, score) pair answer the same questions into their own answers file, so each can be
interrupted and continued. Time is that of generation (vision tower, prefill, decoding), over the questions answered in
this call, after one warm-up batch. Compute is named by its convention: the paper's visual multiply-accumulates, and the
FLOPs of the whole prefill (cost.py).

    fitprune eval --reduction-ratio 0.5 0.7
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibrate import Calibration, choose, file_name, spread
from ..cost import CostModel
from ..errors import FitPruneError
from ..families import Loaded
from ..families.loaded import read_image
from ..files import write_atomically
from ..recipe import Recipe
from .answer import AnswerRun, answer, encode_questions
from .questions import Question
from .textvqa import evaluate, read_annotations


@dataclass
class Row:
    """One line of the table: reductions are shares of the dense cost, time is per question, alive is averaged over them."""

    name: str
    accuracy: float | None
    visual_reduction: float
    prefill_gflops: float
    prefill_reduction: float
    visual_tokens: float
    alive: list[float]
    milliseconds: float | None
    answers: str


def compare(
    loaded: Loaded,
    questions: Sequence[Question],
    image_folder: str | Path,
    output: str | Path,
    *,
    annotations: str | Path | None,
    ratios: Sequence[float],
    scores: Sequence[str],
    calibration: Calibration,
    recipe_file: str | Path | None = None,
    dense: bool = True,
    batch_size: int = 1,
    overwrite: bool = False,
    suffix: str = "",
    **generation: Any,
) -> list[Row]:
    """Answers densely and with every recipe and score; prints which recipes are used; returns the table's rows.

    Args:
        output: Folder for answers, fitted recipes and `results.json`.
        annotations: TextVQA annotations to score with; None leaves accuracy empty.
        recipe_file: One recipe instead of the ratios.
        suffix: Ends the names of the answers files, so that runs on other questions of the same file stay apart.
        generation: As `Loaded.generate`.
    Raises:
        FitPruneError: as `answer`, `choose` and the benchmark's scorer.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise FitPruneError(f"--output {output} is a file: name a folder")
    if annotations is not None:
        read_annotations(annotations)  # a missing file is found out before hours of answering
    if not any(question.image for question in questions):
        ratios, recipe_file = [], None  # text has nothing to prune
    plans: list[tuple[str, Recipe | None, str]] = [("dense", None, "fitprune")] if dense else []
    for ratio in [0.0] if recipe_file is not None else dict.fromkeys(ratios):
        keep_at = output / f"{file_name(loaded.name, ratio)}.recipe.json"
        recipe, source = choose(loaded, ratio, calibration, recipe_file=recipe_file, keep_at=keep_at, refit=overwrite)
        if recipe is None:
            continue
        print(source, recipe, sep="\n", end="\n\n")
        label = (
            f"recipe {Path(str(recipe_file)).name.removesuffix('.json')}"
            if recipe_file is not None
            else f"{100 * ratio:.6g}%"
        )
        plans += [
            (label if score == "fitprune" else f"{label} {score}", recipe, score) for score in dict.fromkeys(scores)
        ]
    if not plans:
        raise FitPruneError("nothing to run: give a reduction ratio above 0, or leave the dense run in")

    illustrated = [question for question in questions if question.image]
    prompts = _prompts(loaded, illustrated, image_folder)
    if illustrated:
        inputs = encode_questions(loaded, illustrated[:batch_size], image_folder)
        loaded.generate(inputs, max_new_tokens=1)  # warm up: the first forward of a process pays for what no other does

    rows = []
    for name, plan, score in plans:
        path = output / f"{file_name(loaded.name)}-{name.replace(' ', '-').replace('%', '')}{suffix}.jsonl"
        run = answer(
            loaded, questions, image_folder, path,
            recipe=plan, score=score, batch_size=batch_size, overwrite=overwrite, **generation,
        )  # fmt: skip
        accuracy = evaluate(annotations, run.path).accuracy if annotations is not None else None
        rows.append(_row(name, accuracy, plan, run, loaded.cost, prompts))
    write_atomically(output / "results.json", json.dumps([asdict(row) for row in rows], indent=1).encode())
    return rows


def _prompts(loaded: Loaded, questions: Sequence[Question], image_folder: str | Path) -> Counter[tuple[int, int]]:
    """How many questions have how many (visual, other) tokens; of their pictures only the sizes are read."""
    found: Counter[tuple[int, int]] = Counter()
    for question in questions:
        image = read_image(Path(image_folder) / str(question.image), pixels=False)
        visual = loaded.tokens_for(image)
        found[visual, len(loaded.token_ids(loaded.prompt(question.text), [image])) - visual] += 1
    return found


def _row(
    name: str,
    accuracy: float | None,
    recipe: Recipe | None,
    run: AnswerRun,
    cost: CostModel,
    prompts: Counter[tuple[int, int]],
) -> Row:
    """Compute is summed over the questions that have a picture, before shares are taken of it."""
    count = max(prompts.total(), 1)
    macs, flops = [0.0, 0.0], [0.0, 0.0]  # dense, as run
    alive = [0.0] * cost.layers
    for (visual, text), times in prompts.items():
        dense = [visual] * cost.layers
        kept = recipe.alive(visual, cost.layers) if recipe else dense
        alive = [total + times * here / count for total, here in zip(alive, kept, strict=True)]
        for at, curve in enumerate((dense, kept)):
            macs[at] += times * sum(cost.visual_macs(curve, visual))
            flops[at] += times * sum(cost.prefill_flops(curve, visual, text))
    return Row(
        name=name,
        accuracy=accuracy,
        visual_reduction=1 - macs[1] / macs[0] if macs[0] else 0.0,
        prefill_gflops=flops[1] / count / 1e9,
        prefill_reduction=1 - flops[1] / flops[0] if flops[0] else 0.0,
        visual_tokens=run.visual_tokens or sum(visual * times for (visual, _), times in prompts.items()) / count,
        alive=(run.alive or alive) if recipe else [],
        milliseconds=run.milliseconds,
        answers=str(run.path),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, then the tokens alive after each layer."""
    head = [
        "run",
        "accuracy",
        "visual MACs saved",
        "prefill GFLOPs",
        "saved",
        "visual tokens left",
        "ms/question",
        "speed-up",
    ]
    base = next((row.milliseconds for row in rows if row.name == "dense"), None)
    cells = [head]
    for row in rows:
        faster = base / row.milliseconds if base and row.milliseconds else None
        cells.append(
            [
                row.name,
                "-" if row.accuracy is None else f"{row.accuracy:.2f}%",
                f"{row.visual_reduction:.1%}",
                f"{row.prefill_gflops:.2f}",
                f"{row.prefill_reduction:.1%}",
                f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}" if row.alive else f"{row.visual_tokens:.0f}",
                "resumed" if row.milliseconds is None else f"{row.milliseconds:.1f}",
                "-" if faster is None else f"{faster:.2f}x",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    kept = [f"visual tokens alive after each layer, {row.name}: {spread(row.alive)}" for row in rows if row.alive]
    return "\n".join([*lines, *([""] if kept else []), *kept])
