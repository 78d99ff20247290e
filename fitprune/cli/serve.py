"""`fitprune serve`: options, start and stop of the HTTP server (web/serve.py).

Tokens are ranked by the recommended score, unless a recipe file or `--score` names another (`--score fitprune`: the paper's).

    fitprune serve --reduction-ratio 0.6 --port 8000
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .. import arguments
from ..embedded import MODELS
from ..files import file_name
from ..questions import Calibration
from ..recipe import RECOMMENDED
from ..web.ports import address, exposure_warning, listen, port

if TYPE_CHECKING:
    from ..families import VLM
    from ..resolve import Choice

HELP = "answer over HTTP, pruned, behind transformers' server"
EXAMPLES = """examples:
  fitprune serve                                           the embedded model at ratio 0.6, at http://127.0.0.1:8000/v1
  fitprune serve --model-path liuhaotian/llava-v1.5-7b --reduction-ratio 0.6 --port 9000
  fitprune serve --score fitprune                          ranked as in the paper
  fitprune serve --model-path llava-hf/llava-1.5-13b-hf --recipe llava-1.5-13b-hf-r60.recipe.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune serve`."""
    arguments.add_model(parser)
    group = parser.add_argument_group("recipe")
    arguments.add_ratio(group, "share of the visual compute to save: 0.6 or 60; 0 prunes nothing", default=0.6)
    group.add_argument("--recipe", default=None, help="a recipe file to use instead (fitprune fit makes them)")
    arguments.add_score(group, recommended=True)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="where to listen; anything but loopback lets others in")
    group.add_argument("--port", type=port, default=8000, help="0 takes a free one")


def run(args: argparse.Namespace) -> int:
    """Loads, attaches and serves until interrupted."""
    from ..families import load
    from ..web.serve import needed, server

    needed()
    with listen(args.host, args.port) as socket:
        if warning := exposure_warning(args.host, "the model"):
            print(f"fitprune serve: {warning}", flush=True)
        vlm = load(args.model_path, **arguments.load_options(args))
        choice = recipe_for(vlm, args.reduction_ratio, args.recipe, args.score)
        made = server(vlm, choice.recipe, score=args.score, host=args.host, port=args.port)
        asked = f", ranked by {args.score}" if args.score and choice.recipe else ""
        print(f"{choice.source}{asked}\nserving {file_name(vlm.name)} at {address(socket)}/v1", flush=True)
        made.run(sockets=[socket])
    return 0


def recipe_for(vlm: VLM, ratio: float, file: str | None = None, score: str | None = None) -> Choice:
    """The recipe to serve with: the file, a published one, for embedded models one fitted now; errors as `resolve`.

    It names the recommended score, unless it is that of a file or another score is asked for.
    """
    from ..resolve import resolve

    calibration = Calibration.shipped()
    if vlm.name not in MODELS:
        calibration = Calibration.nothing(
            f"no recipe of {vlm.name} is published for {ratio:g}: fit one (fitprune fit) and name its file with --recipe"
        )
    return resolve(vlm, [ratio], calibration, recipe_file=file, score=None if score else RECOMMENDED)[0]
