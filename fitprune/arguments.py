"""Command-line options that several commands share, written once: model, data, recipe, generation.

Both spellings of flags that the authors' scripts and ours use are accepted (`--reduction_ratio`, `--reduction-ratio`),
and a ratio is understood as 0.6 and as 60 everywhere. Nothing here imports torch, so that help and usage errors come at once.

    fitprune eval --help
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .distributed.launch import own_device, started
from .embedded import MODEL_NAME, embedded
from .errors import FitPruneError
from .families import conversation
from .questions import SAMPLES, Calibration, as_stored, read_questions
from .recipe import PAPER, RECOMMENDED
from .schedule.ratio import parse_ratio
from .schedule.validation import WAYS
from .scores import SCORES, find_score

DEFAULTS: dict[str, Any] = {"temperature": 0.0, "top_p": None, "num_beams": 1, "max_new_tokens": 128}  # of generation


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as every error of ours is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def ratio(text: str) -> float:
    """argparse type of a reduction ratio."""
    try:
        return parse_ratio(text)
    except FitPruneError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def score(text: str) -> str:
    """argparse type of a score's name, which may have settings behind it."""
    try:
        find_score(text)
        return text
    except FitPruneError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text: str) -> list[str]:
    """argparse type of a list with commas."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


def ratios(text: str) -> list[float]:
    """argparse type of reduction ratios with commas, where `0,10,...,90` goes on in the same steps."""
    parts = names(text.replace("…", "..."))
    if not parts:
        raise argparse.ArgumentTypeError("no ratio: give some, such as 0,30,60")
    if "..." not in parts:
        return [ratio(part) for part in parts]
    at = parts.index("...")
    if not 2 <= at == len(parts) - 2:
        raise argparse.ArgumentTypeError(f"{text}: give two ratios, ... and the last one, such as 0,10,...,90")
    known = [ratio(part) for part in (*parts[:at], parts[-1])]
    step, last = known[-2] - known[-3], known.pop()
    if step <= 0 or last <= known[-1]:
        raise argparse.ArgumentTypeError(f"{text}: ratios before ... must rise, and the last one be above them")
    while known[-1] + step < last - 1e-9:
        known.append(round(known[-1] + step, 9))
    return [*known, last]


def positive(text: str) -> int:
    """argparse type of a count of at least one."""
    try:
        if (number := int(text)) >= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")


def number(low: float, high: float) -> Callable[[str], float]:
    """argparse type of a number from low to high."""

    def parse(text: str) -> float:
        try:
            if low <= (value := float(text)) <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} to {high:g}")

    return parse


def add_model(parser: argparse.ArgumentParser, model: str = MODEL_NAME) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model-path", default=model, help="checkpoint folder or hub name, in transformers or original LLaVA layout")
    add_parts(group)
    group.add_argument(
        "--conv-mode", default=None, help=f"conversation template, default the checkpoint's own: {', '.join(conversation.names())}"
    )
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, …; default the first GPU, else the CPU")
    group.add_argument("--device-map", default=None, help="transformers' device_map, such as auto, for several GPUs")
    group.add_argument(
        "--tensor-parallel", action="store_true", help="share one model between the processes of torchrun, instead of the questions"
    )
    group.add_argument(
        "--dtype", default=None, choices=["auto", "float32", "bfloat16", "float16"], help="default: float32 on a CPU, else the checkpoint's"
    )
    group.add_argument("--attn", default=None, help="attention implementation: sdpa, eager, flash_attention_2")


def add_parts(parser: argparse._ActionsContainer) -> None:
    """Where parts of an original checkpoint are that it does not hold itself."""
    parser.add_argument("--model-base", default=None, help="what an adapter, or a projector-only checkpoint, was trained on")
    parser.add_argument("--vision-tower", default=None, help="CLIP of a checkpoint of the original layout, default the one it names")


def add_data(parser: argparse.ArgumentParser) -> None:
    data = embedded()
    group = parser.add_argument_group("data")
    group.add_argument("--question-file", default=str(data.questions), help="questions, JSON lines (question_id, image, text)")
    group.add_argument("--image-folder", default=str(data.images), help="where the questions' images are")


def add_ratio(container: argparse._ActionsContainer, help: str, **flags: Any) -> None:
    """The reduction ratio, in both spellings; flags are argparse's (default, nargs)."""
    container.add_argument("--reduction_ratio", "--reduction-ratio", type=ratio, help=help, **flags)


def add_recipe(parser: argparse.ArgumentParser, many: bool = False, recommended: bool = False) -> None:
    """Ratio or file, score and calibration; `many` ratios and ways, and whether what names no score is ranked by the recommended one."""
    group = parser.add_argument_group("recipe")
    flags: dict[str, Any] = {"nargs": "+", "default": [0.6]} if many else {"default": 0.0}
    add_ratio(group, "share of the visual compute to save: 0.6 or 60; 0 prunes nothing", **flags)
    group.add_argument("--recipe", default=None, help="a recipe file to use instead (fitprune fit makes them)")
    if many:
        group.add_argument(
            "--by", nargs="+", default=None, choices=WAYS,
            help="how a schedule is fitted where none is published: by mass, the paper's way and the default, or by drift, which tries "
            "many on the model and takes long; both for a row each",
        )  # fmt: skip
    add_score(group, recommended)
    add_calibration(group)


def ways(args: argparse.Namespace) -> tuple[str, ...]:
    """What `--by` says, once each; a FitPruneError where a recipe file says what the schedule is."""
    if args.by and args.recipe:
        raise FitPruneError("--recipe names the schedule, and --by is how one is fitted: leave one of them out")
    return tuple(dict.fromkeys(args.by or WAYS[:1]))


def add_score(container: argparse._ActionsContainer, recommended: bool = False) -> None:
    otherwise = f"the recommended one ({RECOMMENDED}), or of a --recipe the paper's ({PAPER})" if recommended else f"the paper's ({PAPER})"
    container.add_argument(
        "--score", type=score, default=None, metavar="NAME",
        help=f"how tokens are ranked: {', '.join(SCORES)}, with settings behind the name ('spread theta=0.5'); default the recipe's own, "
        f"else {otherwise}",
    )  # fmt: skip


def add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibration-file",
        default=None,
        help="questions to fit on; default the question file (embedded model and questions: their own calibration set)",
    )
    group.add_argument("--samples", type=positive, default=SAMPLES, help="how many of them to observe")


def add_strict(container: argparse._ActionsContainer) -> None:
    """What becomes of questions whose pictures cannot be used (evaluation/usable.py)."""
    container.add_argument("--strict", action="store_true", help="stop at a picture that cannot be used, instead of skipping its question")


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--temperature", type=number(0, 100), default=DEFAULTS["temperature"], help="0 is greedy")
    group.add_argument("--top_p", "--top-p", type=number(0, 1), default=DEFAULTS["top_p"], help="nucleus sampling, with a temperature")
    group.add_argument("--num_beams", "--num-beams", type=positive, default=DEFAULTS["num_beams"])
    group.add_argument("--max_new_tokens", "--max-new-tokens", type=positive, default=DEFAULTS["max_new_tokens"])
    group.add_argument("--batch-size", type=positive, default=1, help="questions at a time")


def add_merging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--merge-steps",
        type=number(0, math.inf),
        default=0.0,
        metavar="TOKEN_LAYERS",
        help="fold small deletions into fewer steps of the same budget: how many tokens pass one layer in the time of a step",
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `families.load` that were given; under a launcher, the GPU that it means for this process.

    Raises:
        FitPruneError: for options that place one model in two ways.
    """
    if args.tensor_parallel and args.device:
        raise FitPruneError("tensor parallelism places the model itself: leave out --device")
    if args.device_map and started() > 1 and not args.tensor_parallel:
        raise FitPruneError("--device-map lets one process use all GPUs: start it without torchrun or accelerate launch")
    given = {
        "model_base": args.model_base,
        "vision_tower": args.vision_tower,
        "template": args.conv_mode,
        "device": args.device or own_device(),
        "tensor_parallel": args.tensor_parallel or None,
        "device_map": args.device_map,
        "dtype": args.dtype,
        "attn": args.attn,
    }
    return {key: value for key, value in given.items() if value is not None}


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `VLM.generate`.

    Raises:
        FitPruneError: for --top_p without a temperature, which would do nothing.
    """
    if args.top_p is not None and not args.temperature:
        raise FitPruneError("--top_p needs a --temperature above 0: greedy decoding does not sample")
    return {name: getattr(args, name) for name in DEFAULTS}


def calibration(args: argparse.Namespace) -> Calibration:
    """Where to fit: the file that was named, the embedded set for embedded questions, else the question file itself."""
    data, source, images = embedded(), args.calibration_file, args.image_folder
    if source is None:
        source = args.question_file
        if data.data.resolve() in Path(source).resolve().parents:
            source, images = data.calibration, data.calibration_images
    read = as_stored(read_questions) if getattr(args, "stored", False) else read_questions
    return Calibration(source, images, args.samples, max(getattr(args, "batch_size", 1), 8), read)
