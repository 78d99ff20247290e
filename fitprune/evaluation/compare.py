"""Dense against pruned on one benchmark: accuracy, tokens kept, compute saved, time. The heart of `fitprune eval`.

The dense model and every (ratio, score) pair answer the same questions into their own answers file, so each can be
interrupted and continued. Time is that of generation (vision tower, prefill, decoding), measured on the questions
answered in this call after one warm-up batch; columns in the paper's visual-only convention and in whole-prefill FLOPs
are both named.

    fitprune eval --reduction-ratio 0.5 0.7
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibrate import Calibration, choose, file_name, spread
from ..errors import FitPruneError
from ..families import Loaded
from ..files import write_atomically
from ..recipe import Recipe
from .answer import answer
from .questions import Question
from .textvqa import evaluate


@dataclass
class Row:
    """One line of the table. Reductions are fractions of the dense model's cost; `milliseconds` is per question."""

    name: str
    accuracy: float | None
    visual_reduction: float
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
    **generation: Any,
) -> list[Row]:
    """Answers densely and with every recipe and score; prints which recipes are used; returns the table's rows.

    Args:
        output: Folder for answers, fitted recipes and `results.json`.
        annotations: TextVQA annotations to score with; None leaves accuracy empty.
    Raises:
        FitPruneError: as `answer`, `choose` and the benchmark's scorer.
    """
    output = Path(output)
    plans: list[tuple[str, Recipe | None, str]] = [("dense", None, "fitprune")] if dense else []
    if recipe_file is not None:
        ratios = [0.0]  # the file decides
    for ratio in ratios:
        keep_at = output / f"{file_name(loaded.name, ratio)}.recipe.json"
        recipe, source = choose(loaded, ratio, calibration, recipe_file=recipe_file, keep_at=keep_at)
        if recipe is None:
            continue
        print(source)
        print(recipe, end="\n\n")
        label = f"{recipe.reduction_ratio:.0%}" if recipe.reduction_ratio is not None else Path(str(recipe_file)).stem
        plans += [(label if score == "fitprune" else f"{label} {score}", recipe, score) for score in scores]
    if not plans:
        raise FitPruneError("nothing to run: give a reduction ratio above 0, or leave the dense run in")

    first = [question for question in questions if question.image][:batch_size]
    if first:  # warm up: the first forward of a process pays for what no other does
        answer_once = loaded.encode([(loaded.prompt(q.text), [_image(image_folder, q)]) for q in first])
        loaded.generate(answer_once, max_new_tokens=1)

    rows = []
    for name, recipe, score in plans:
        stem = file_name(loaded.name, 0).removesuffix("-r0") + "-" + name.replace(" ", "-").replace("%", "")
        run = answer(
            loaded, questions, image_folder, output / f"{stem}.jsonl",
            recipe=recipe, score=score, batch_size=batch_size, overwrite=overwrite, **generation,
        )  # fmt: skip
        accuracy = evaluate(annotations, run.path).accuracy if annotations is not None else None
        rows.append(
            _row(loaded, name, accuracy, recipe, run.visual_tokens, run.alive, run.milliseconds, run.path, first)
        )
    write_atomically(output / "results.json", json.dumps([asdict(row) for row in rows], indent=1).encode())
    return rows


def _image(folder: str | Path, question: Question) -> Any:
    from ..families.loaded import read_image

    return read_image(Path(folder) / str(question.image))


def _row(
    loaded: Loaded, name: str, accuracy: float | None, recipe: Recipe | None, visual: float, alive: list[float],
    milliseconds: float | None, path: Path, first: Sequence[Question],
) -> Row:  # fmt: skip
    cost = loaded.cost
    if recipe is None:
        return Row(name, accuracy, 0.0, 0.0, visual, alive, milliseconds, str(path))
    tokens = round(visual) or recipe.visual_tokens
    plan = recipe.alive(tokens, cost.layers)
    text = len(loaded.token_ids(loaded.prompt(first[0].text, image=False), [])) if first else 0
    return Row(
        name, accuracy, cost.visual_reduction_of_alive(plan, tokens), cost.prefill_reduction(plan, tokens, text),
        tokens, alive or [float(a) for a in plan], milliseconds, str(path),
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, then the tokens alive after each layer."""
    head = [
        "run",
        "accuracy",
        "visual MACs saved",
        "prefill FLOPs saved",
        "alive at the end",
        "ms/question",
        "speed-up",
    ]
    base = next((row.milliseconds for row in rows if row.name == "dense"), None)
    cells = [head]
    for row in rows:
        faster = base / row.milliseconds if base and row.milliseconds else None
        end = f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}" if row.alive else "all"
        cells.append(
            [
                row.name,
                "-" if row.accuracy is None else f"{row.accuracy:.2f}%",
                f"{row.visual_reduction:.1%}",
                f"{row.prefill_reduction:.1%}",
                end,
                "resumed" if row.milliseconds is None else f"{row.milliseconds:.1f}",
                "-" if faster is None else f"{faster:.2f}x",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    kept = [f"visual tokens alive after each layer, {row.name}: {spread(row.alive)}" for row in rows if row.alive]
    return "\n".join([*lines, *([""] if kept else []), *kept])
