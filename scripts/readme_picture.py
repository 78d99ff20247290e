"""Makes docs/pruning.png: what pruning does to one of the embedded pictures. The same pixels on every run.

The embedded model is asked for the number in a picture, with a recipe fitted on the embedded calibration set. The
title has its answer; the panels show the patches that are still there after a few layers.

    python scripts/readme_picture.py [--picture 5eed000000000003] [--reduction-ratio 0.6] [--output docs/pruning.png]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import fitprune
from fitprune import draw, options
from fitprune.calibrate import Calibration, observe_questions
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.questions import read_questions
from fitprune.families.loaded import read_image
from fitprune.files import write_atomically

QUESTION = "What number is written?"


def run(args: argparse.Namespace) -> int:
    """Draws and writes the picture."""
    files = embedded()
    asked = [
        q for q in read_questions(files.questions) if q.question_id == args.picture and q.text.startswith(QUESTION)
    ]
    if not asked or asked[0].image is None:
        raise FitPruneError(
            f"the embedded questions do not ask for a number in {args.picture!r}: choose another picture"
        )
    llava = fitprune.load("embedded", device="cpu", dtype="float32")
    stats = observe_questions(llava, Calibration(files.calibration, files.calibration_images), progress=False)
    recipe = fitprune.fit(stats, reduction_ratio=args.reduction_ratio)
    image = read_image(files.images / asked[0].image)
    inputs = llava.encode([(llava.prompt(asked[0].text), [image])])
    dense = llava.generate(inputs)[0]
    with fitprune.prune(llava.model, recipe) as trace:
        answer = llava.generate(inputs)[0]
    title = f"“{QUESTION}”   Answer, with {recipe.achieved:.0%} of the visual compute saved: “{answer}”"
    figure = draw.survivors(image, trace, layers=args.layers, title=title)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})  # no version in the file: the same bytes anywhere
    write_atomically(args.output, drawn.getvalue())
    print(
        f"{args.output}: {args.picture}, dense answer {dense!r}, pruned {answer!r}, {' '.join(map(str, recipe.counts))}"
    )
    return 0


def main() -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(description="Draw what pruning does to an embedded picture.")
    parser.add_argument("--picture", default="5eed000000000006", help="question_id of an embedded picture")
    parser.add_argument("--reduction-ratio", type=options.ratio, default=0.6, help="0.6 or 60")
    parser.add_argument("--layers", type=int, nargs="+", default=None, help="layers to draw, from 0")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "pruning.png")
    return options.guarded(run, parser, None)


if __name__ == "__main__":
    raise SystemExit(main())
