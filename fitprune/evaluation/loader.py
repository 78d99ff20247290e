"""`llava.eval.model_vqa_loader`: the authors' answering script, flag for flag, on unmodified transformers models.

Beyond theirs: `--reduction_ratio` takes 60 and 0.6, `--recipe` a file, `--batch-size`, resuming and `--overwrite`, and
every path has the embedded data as default. `--temperature` defaults to 0 (theirs: 0.2): a run that can be resumed has
to be one that can be repeated.

    python -m fitprune.evaluation.loader --reduction_ratio 60 --answers-file /tmp/answers.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import arguments, entry
from ..embedded import MODEL_NAME
from ..families import load
from ..questions import Question, as_stored, chunk, read_questions
from ..resolve import resolve
from .answer import answer
from .layout import find_pictures, with_pictures
from .usable import EMPTY, screen, screened, skipped_line


def parser(model: str = MODEL_NAME) -> argparse.ArgumentParser:
    """The flags of `model_vqa_loader` and ours; model is what --model-path defaults to."""
    parser = arguments.Parser(
        prog="model_vqa_loader", description="Answer a question file with a LLaVA, its visual tokens pruned by a recipe.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    arguments.add_model(parser, model)
    arguments.add_data(parser)
    arguments.add_recipe(parser)
    arguments.add_generation(parser)
    parser.add_argument("--answers-file", default="answer.jsonl", help="where answers go; an interrupted run continues it")
    parser.add_argument("--num-chunks", type=int, default=1, help="split the questions into this many consecutive parts")
    parser.add_argument("--chunk-idx", type=int, default=0, help="which part to answer, from 0")
    parser.add_argument("--overwrite", action="store_true", help="start the answers file anew")
    arguments.add_strict(parser)
    parser.set_defaults(stored=True)  # pictures, as the original reads them
    return parser


def run(args: argparse.Namespace, read: Callable[[Path], list[Question]] = read_questions) -> int:
    """Answers the questions, reading their file with `read`; returns the exit code."""
    read = as_stored(read)
    images = Path(args.image_folder)
    asked = find_pictures(read(Path(args.question_file)), images, images, args.strict, args.workers.leads)
    questions = chunk(asked, args.num_chunks, args.chunk_idx)
    vlm = load(args.model_path, **arguments.load_options(args))
    ratio = args.reduction_ratio if any(question.visual for question in questions) else 0.0  # text has nothing to prune
    calibration = arguments.calibration(args)
    if calibration.question_file == args.question_file:  # fitted on the questions themselves: read alike
        calibration = replace(calibration, read=with_pictures(read, images, images))
    questions = screen(vlm, questions, args.image_folder, args.strict, args.workers, whole=len(questions) == len(asked))
    calibration = screened(vlm, calibration, args.strict, args.workers)
    (choice,) = resolve(
        vlm, [ratio], calibration, recipe_file=args.recipe, refit=args.overwrite, workers=args.workers,
        keep_at=lambda ratio, _: f"{args.answers_file}.r{100 * ratio:.6g}.recipe.json",
    )  # fmt: skip
    print(f"{vlm.name}: {choice.source}")
    done = answer(
        vlm, questions, args.image_folder, args.answers_file, recipe=choice.recipe, score=args.score,
        batch_size=args.batch_size, overwrite=args.overwrite, workers=args.workers, **arguments.generation(args),
    )  # fmt: skip
    again = f", {done.resumed} were there already" if done.resumed else ""
    print(f"{done.path}: {done.answered} answers written{again}")
    if skipped := skipped_line(questions, EMPTY):
        print(skipped)
    return 0


def main(argv: Sequence[str] | None = None, model: str = MODEL_NAME) -> int:
    """Entry point, with a family's default model; 0, or 2 with one line on stderr for bad input."""
    return entry.guarded(run, parser(model), argv, together=entry.always)


if __name__ == "__main__":
    raise SystemExit(main())
