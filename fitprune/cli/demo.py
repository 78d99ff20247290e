"""`fitprune demo`: options, start and stop.

The port is taken before the model is loaded, so that a taken one is an error at once; uploads live in a folder of their
own, readable by this user only, which goes when the server does.

    fitprune demo --port 0 --samples 16
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import arguments
from ..embedded import MODELS
from ..errors import FitPruneError
from ..questions import Calibration
from ..recipe import RECOMMENDED, published_ratios
from ..web.ports import address, exposure_warning, listen, port

HELP = "serve a page on this machine that answers dense and pruned side by side"
EXAMPLES = """examples:
  fitprune demo                                            the embedded model on http://127.0.0.1:7860
  fitprune demo --port 0 --model-path liuhaotian/llava-v1.5-7b
  fitprune demo --model-path llava-hf/llava-1.5-13b-hf --calibration-file questions.jsonl --calibration-images images
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune demo`."""
    arguments.add_model(parser)
    group = parser.add_argument_group("page")
    group.add_argument("--host", default="127.0.0.1", help="where to listen; anything but loopback lets others in")
    group.add_argument("--port", type=port, default=7860, help="0 takes a free one")
    group.add_argument("--max-new-tokens", type=arguments.positive, default=64, help="of an answer")
    group = parser.add_argument_group("recipes", "Published recipes where there are any, unless a file is given.")
    group.add_argument("--calibration-file", default=None, help="questions to fit on; embedded models have their own (JSON lines)")
    group.add_argument("--calibration-images", default=None, help="where the calibration file's images are")
    group.add_argument("--samples", type=arguments.positive, default=128, help="how many of them to observe")


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted; returns the exit code."""
    from ..calibrate import observe_questions
    from ..families import load
    from ..web.demo.engine import Engine
    from ..web.demo.server import gradio, server

    gradio()  # not installed: said before anything is loaded
    calibration = _calibration(args)
    with _terminable(), listen(args.host, args.port) as socket, tempfile.TemporaryDirectory(prefix="fitprune-demo-") as uploads:
        if warning := exposure_warning(args.host, "the page"):
            print(f"fitprune demo: {warning}", flush=True)
        try:
            vlm = load(args.model_path, **arguments.load_options(args))
            stats = None if calibration is None else observe_questions(vlm, calibration)
            fitted = stats and calibration and f"fitted from {stats.samples} samples of {calibration.question_file}"
            where = fitted or f"published for {vlm.name}"
            print(f"fitprune demo: recipes {where}, ranked by {RECOMMENDED} unless the page asks for another method", file=sys.stderr)
            engine = Engine(vlm, stats, args.max_new_tokens)
            engine.warm_up()
            serving = server(engine, Path(uploads), args.host)
            print(f"fitprune demo: open {address(socket)} (Ctrl-C stops)", flush=True)
            try:
                serving.run(sockets=[socket])
            finally:
                engine.stop()
        except KeyboardInterrupt:
            print("\nfitprune demo: stopped")
            return 130
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the process as an exception does, so that uploads are taken away then, too."""

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _calibration(args: argparse.Namespace) -> Calibration | None:
    """What to fit on, None where the published recipes have to do.

    Raises:
        FitPruneError: if there is neither.
    """
    if args.calibration_file:
        images = args.calibration_images or Path(args.calibration_file).parent
        made = Calibration(args.calibration_file, images, args.samples)
        made.questions()  # a file that cannot be used is said before the model is loaded
        return made
    if args.model_path in MODELS:
        return Calibration.shipped(args.samples)
    try:
        published_ratios(args.model_path)
    except FitPruneError:
        raise FitPruneError(
            f"no recipe is published for {args.model_path}: give --calibration-file and --calibration-images to fit some"
        ) from None
    return None
