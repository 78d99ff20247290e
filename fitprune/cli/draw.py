"""`fitprune draw`: an image, a question, a model and a recipe → which patches survive after each layer.

Writes, into one folder, `survivors.png` (a panel per layer), `survivors.gif` (animated), `survivors.html` (one file with a
slider), `heat.png` (what was attended to) and `recipe.png` (deletions per layer). With `--recipes` no model is loaded:
recipes are drawn over one another.

    fitprune draw --output /tmp/drawn
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .. import arguments
from ..draw import style
from ..embedded import MODELS, embedded
from ..errors import FitPruneError
from ..files import nearest_existing, writable, write_atomically
from ..images.reading import read_image
from ..questions import Calibration, read_questions
from ..recipe import Recipe

if TYPE_CHECKING:
    from ..draw.asked import Asked
    from ..families import VLM

HELP = "draw what a recipe deletes from an image, layer by layer, and what was attended to"
EXAMPLES = """examples:
  fitprune draw                                            an embedded question, ratio 0.6, everything into runs/draw
  fitprune draw --image photo.jpg --question "What is this?" --model-path llava-hf/llava-1.5-7b-hf --reduction-ratio 60
  fitprune draw --formats html --output page.html --recipe my.recipe.json --score last
  fitprune draw --recipes llava-v1.5-7b:0.2,0.4,0.6,0.8 my.recipe.json --output recipes.png
"""

DEFAULT = "5eed000000000006"  # question_id of the embedded question that is asked when none is given
FILES = {  # format: file name in the folder
    "png": "survivors.png",
    "gif": "survivors.gif",
    "html": "survivors.html",
    "heat": "heat.png",
    "recipe": "recipe.png",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune draw`."""
    data = embedded()
    group = parser.add_argument_group("what is drawn")
    group.add_argument("--image", default=None, help="image to ask about; default an embedded one")
    group.add_argument("--question", default=None, help="what to ask, with instructions if any; default about that image")
    group.add_argument("--formats", nargs="+", choices=list(FILES), default=None, help="what to write; default all of them")
    group.add_argument("--output", default="runs/draw", help="folder, or the file if only one format is written")
    group.add_argument("--layers", type=int, nargs="+", default=None, help="layers of survivors.png and heat.png, from 0; default all")
    group.add_argument("--title", default=None, help="line above the figures; default the question and both answers")
    group.add_argument(
        "--recipes", nargs="+", default=None, metavar="RECIPE",
        help="only draw these recipes, over one another: files, or published ones as MODEL:RATIO,RATIO",
    )  # fmt: skip
    arguments.add_model(parser)
    arguments.add_recipe(parser)
    parser.add_argument("--image-folder", default=str(data.images), help="where the images of --calibration-file are")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=arguments.positive, default=128)
    parser.set_defaults(reduction_ratio=0.6, question_file=str(data.questions))


def run(args: argparse.Namespace) -> int:
    """Asks, draws, and says what was written; returns the exit code."""
    targets = find_targets(args.output, ["recipe"] if args.recipes else args.formats)
    if set(targets) != {"html"}:
        style.figure(1, 1)  # finds out before the model runs whether matplotlib is there
    if args.recipes:
        return _overlay(args, targets)
    if not args.reduction_ratio and not args.recipe:
        raise FitPruneError("a reduction ratio of 0 deletes nothing, so there is nothing to draw: give one above it")
    image, question = _asked_about(args)
    calibration = _calibration(args)
    from ..draw.asked import ask
    from ..draw.frames import check_number
    from ..families import load
    from ..resolve import resolve

    vlm = load(args.model_path, **arguments.load_options(args))
    layers = list(range(vlm.cost.layers)) if args.layers is None else args.layers
    for layer in layers:
        check_number("layer", layer, vlm.cost.layers, vlm.name)
    (choice,) = resolve(vlm, [args.reduction_ratio], calibration, recipe_file=args.recipe)
    recipe, source = choice.recipe, choice.source
    assert recipe is not None
    asked = ask(vlm, image, question, recipe, args.score, args.max_new_tokens)
    title = heading(asked) if args.title is None else style.plain(args.title) or None
    write = writers(vlm, image, recipe, asked, layers, title)
    for name, target in targets.items():
        write[name](target)
    print(f"question: {question!r}", f"dense:    {asked.dense!r}", f"pruned:   {asked.pruned!r}", source, sep="\n")
    print(f"visual tokens alive: {' '.join(map(str, asked.alive))}; saves {asked.saved:.1%} of the visual compute")
    print("\n".join(str(target) for target in targets.values()))
    return 0


def heading(asked: Asked) -> str:
    """The question, then the dense answer beside the pruned one."""
    question = style.plain(asked.first_line, 90)
    dense, pruned = (f"“{style.plain(answer, 60)}”" for answer in (asked.dense, asked.pruned))
    return f"“{question}”\ndense: {dense}     pruned, {asked.saved:.0%} of the visual compute saved: {pruned}"


def find_targets(output: str, formats: Sequence[str] | None) -> dict[str, Path]:
    """Which format goes to which file; without formats all of them, or the one that the file's ending says.

    Raises a FitPruneError for one file for several formats, an ending that does not fit, and a place that cannot be written to.
    """
    path = Path(output)
    endings = {Path(name).suffix: each for each, name in reversed(FILES.items())}
    if path.suffix.lower() in endings and not path.is_dir():
        only, *others = dict.fromkeys(formats or [endings[path.suffix.lower()]])
        if others:
            raise FitPruneError(f"--output {output} is one file for {' and '.join([only, *others])}: name a folder")
        if (ending := Path(FILES[only]).suffix) != path.suffix.lower():
            raise FitPruneError(f"--output {output} is no name for {only}: end it in {ending}, or name a folder")
        targets = {only: path}
    elif re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) and not path.is_dir() and not output.endswith(("/", os.sep)):
        raise FitPruneError(f"--output {output}: no {path.suffix} is written: end it in {', '.join(sorted(endings))}, or in / for a folder")
    else:
        targets = {each: path / FILES[each] for each in formats or FILES}
    for target in targets.values():
        if target.is_dir() or not writable(target):
            raise FitPruneError(f"{nearest_existing(target)} cannot be written to: choose another --output")
    return targets


def _asked_about(args: argparse.Namespace) -> tuple[Image.Image, str]:
    """Image and question; the embedded ones where neither was given."""
    if args.question is not None and not args.question.strip():
        raise FitPruneError("there is nothing to ask: give --question a text")
    if args.image is None:
        data = embedded()
        default = next(q for q in read_questions(data.questions) if str(q.question_id) == DEFAULT)
        return read_image(data.images / str(default.image)), args.question or default.text
    if args.question is None:
        raise FitPruneError("no question about the image: give one with --question")
    if not Path(args.image).is_file():
        raise FitPruneError(f"no image {args.image}: check --image")
    try:
        return read_image(args.image), args.question
    except FitPruneError:
        raise FitPruneError(f"{args.image} is not an image that can be read: give --image another file") from None


def _calibration(args: argparse.Namespace) -> Calibration:
    """What a recipe is fitted on where none is named or published: the file given, an embedded model's own set, else nothing.

    Nothing is a FitPruneError where a recipe has to be fitted: now, before the model is loaded, or when the questions are read.
    """
    if args.calibration_file or args.model_path in MODELS:
        return arguments.calibration(args)
    what = (
        f"no published recipe fits {args.model_path} at {args.reduction_ratio:g}: name one with --recipe (fitprune fit "
        "makes it), or questions to fit on with --calibration-file and --image-folder"
    )
    if args.recipe is None:
        try:
            Recipe.published(args.model_path, args.reduction_ratio)
        except FitPruneError:
            raise FitPruneError(what) from None
    return Calibration.nothing(what)


def _overlay(args: argparse.Namespace, targets: dict[str, Path]) -> int:
    """Draws recipes over one another."""
    from ..draw.curves import recipes

    for flag in ("image", "question", "recipe", "formats", "layers"):
        if getattr(args, flag) is not None and args.formats != ["recipe"]:
            raise FitPruneError(f"--recipes draws recipes and nothing else: leave out --{flag}")
    named = [pair for text in args.recipes for pair in named_recipes(text)]
    drawn = recipes(
        [recipe for _, recipe in named], [style.plain(name) for name, _ in named],
        title=style.plain(args.title or "") or None,
    )  # fmt: skip
    for target in targets.values():
        style.save(drawn, target)
        print(f"{len(named)} recipe{'s' * (len(named) > 1)}: {target}")
    return 0


def named_recipes(text: str) -> list[tuple[str, Recipe]]:
    """The recipe of a file, or published ones from `MODEL:RATIO,RATIO`, each with a label; FitPruneError where there is none."""
    from ..draw.curves import label

    model, colon, chosen = text.rpartition(":")
    if text.endswith(".json") or Path(text).is_file() or not colon:
        recipe = Recipe.load(text)
        known = recipe.model or recipe.source == "step"  # else the file's name says more
        return [(label(recipe) if known else Path(text).name.removesuffix(".json").removesuffix(".recipe"), recipe)]
    try:
        published = [Recipe.published(model, ratio) for ratio in arguments.ratios(chosen)]
        return [(label(recipe), recipe) for recipe in published]
    except argparse.ArgumentTypeError as error:
        raise FitPruneError(f"--recipes {text}: {error}") from None


def writers(
    vlm: VLM, image: Image.Image, recipe: Recipe, asked: Asked, layers: Sequence[int], title: str | None
) -> dict[str, Callable[[Path], None]]:
    """What writes each format of `FILES`."""
    from ..draw import animation
    from ..draw.asked import watch
    from ..draw.curves import label, recipes
    from ..draw.heat import heat
    from ..draw.page import page
    from ..draw.panels import panels

    where = asked.where
    facts = [
        ("model", vlm.name),
        ("recipe", label(recipe)),
        ("saved on this picture", f"{asked.saved:.1%} of the visual compute"),
        ("tokens ranked by", asked.score),
    ]
    return {
        "png": lambda target: style.save(panels(where, asked.kept, layers, title), target),
        "gif": lambda target: animation.save(asked.frames(), asked.alive, target, title),
        "html": lambda target: write_atomically(target, page(asked, facts).encode()),
        "heat": lambda target: style.save(heat(where, watch(vlm, image, asked.question), layers=layers, title=title), target),
        "recipe": lambda target: style.save(recipes([recipe], visual_tokens=where.tokens), target),
    }
