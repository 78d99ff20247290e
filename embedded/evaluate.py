"""Exact answers by family of question, dense and pruned, on pictures that no training saw.

Pictures are drawn on the spot (split "held-out"), recipes are fitted on others (split "calibration"). Method = schedule
× score: the fitted schedule with every score asked for, and FastV as published (one step after its second layer, ranked
by the last token), each at the same share of visual compute saved. Controls at equal FLOPs are in the same table. `--before` adds
methods that shrink the image before the decoder (fitprune/studies/before.py), at the most tokens that save as much.

    python -m embedded.evaluate                                        # the model that ships: a few minutes
    python -m embedded.evaluate --model-path /tmp/model --pictures 1000 --ratios 0
    python -m embedded.evaluate --model-path embedded/judge --scenes cluttered
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

import fitprune
from fitprune import arguments, entry
from fitprune.cost import CostModel
from fitprune.families import VLM
from fitprune.files import write_atomically
from fitprune.studies.before import WAYS, Before
from fitprune.studies.methods import Made, applied

from .canvas import Size, place
from .clutter import SCENES
from .questions import FAMILIES, READING, Question, one_of_each
from .scene import Draw, Split, draw
from .tokens import INSTRUCTION

SCORES = ("fitprune", "cross", "last", "random")  # what is compared unless told otherwise
FASTV_LAYER = 1  # FastV drops after the second layer, from 0 (https://arxiv.org/abs/2403.06764, K = 2)
MAX_NEW_TOKENS = 8  # the longest answer has fewer
Asked = tuple[Image.Image, Question]


@dataclass(frozen=True)
class Method:
    """One column: what deletes, and by which ranking; or what comes before the decoder. Neither is the dense model."""

    name: str
    recipe: fitprune.Recipe | None
    score: str = "fitprune"
    before: Before | None = None

    @property
    def made(self) -> Made | None:
        """As `applied` takes it."""
        return self.before or (None if self.recipe is None else (self.recipe, self.score))


def asked(
    split: Split, pictures: int, families: Sequence[str] = tuple(FAMILIES), size: Size | None = None, draw: Draw = draw
) -> list[Asked]:
    """For each picture, on a canvas of that size if one is given, one question of every family that has something to ask."""
    return [one for index in range(pictures) for one in about(split, index, families, size, draw)]


def about(split: Split, index: int, families: Sequence[str] = tuple(FAMILIES), size: Size | None = None, draw: Draw = draw) -> list[Asked]:
    """`asked` for one picture, by its number."""
    scene = draw(split, index)
    picture = place(scene, size)
    return [(picture, question) for question in one_of_each(scene, tuple(families))]


def methods(
    vlm: VLM, ratios: Sequence[float], scores: Sequence[str], samples: int, draw: Draw = draw, before: Sequence[str] = ()
) -> list[Method]:
    """The dense model, then for every ratio above 0 each score on the fitted schedule, FastV, and what comes before the decoder."""
    found = [Method("dense", None)]
    if not (ratios := [ratio for ratio in ratios if ratio]):
        return found
    questions = asked("calibration", samples, draw=draw)
    spread = [questions[at * len(questions) // samples] for at in range(samples)]
    stats = fitprune.observe(vlm.model, (encoded(vlm, [one], "right") for one in spread), total=samples)
    tokens = vlm.tokens_for(spread[0][0])
    for ratio, recipe in fitprune.fit_all(stats, None, ratios).items():
        found += [Method(f"{ratio:.0%} {score}", recipe, score) for score in scores]
        found.append(Method(f"{ratio:.0%} fastv", step(vlm.cost, tokens, recipe, FASTV_LAYER), "last"))
        found += [Method(f"{ratio:.0%} {way}", None, before=Before(way, ratio)) for way in before]
    return found


def step(cost: CostModel, tokens: int, like: fitprune.Recipe, layer: int) -> fitprune.Recipe:
    """A single deletion after `layer` that saves as much visual compute as another recipe, to the nearest token.

    Where no single deletion saves that much, everything is deleted.
    """
    wanted = cost.visual_reduction_of_alive(like.alive(tokens, cost.layers), tokens)
    each = [fitprune.Recipe.step(layer=layer, keep=keep / tokens) for keep in range(tokens + 1)]
    return min(each, key=lambda r: abs(cost.visual_reduction_of_alive(r.alive(tokens, cost.layers), tokens) - wanted))


def answers(vlm: VLM, questions: Sequence[Asked], method: Method, batch_size: int) -> Iterator[str]:
    """The answers, in order."""
    with applied(vlm, method.made) as model:
        for at in tqdm(range(0, len(questions), batch_size), desc=method.name, unit="batch", leave=False):
            batch = encoded(model, questions[at : at + batch_size], "left")
            yield from model.generate(batch, max_new_tokens=MAX_NEW_TOKENS)


def evaluate(vlm: VLM, questions: Sequence[Asked], tried: Sequence[Method], batch_size: int = 32) -> dict[str, Any]:
    """Shares of exact answers: {"methods": {name: {group: share}}, "counts": {group: questions}, "majority": …, "pictures": …}.

    Groups are "all", "reading", "other" and every family; "majority" is the share of a group's commonest answer.
    """
    truth = [question.answer for _, question in questions]
    groups = {"all": list(range(len(questions)))}
    groups["reading"] = [at for at in groups["all"] if questions[at][1].family in READING]
    groups["other"] = [at for at in groups["all"] if questions[at][1].family not in READING]
    groups |= {f: [at for at in groups["all"] if questions[at][1].family == f] for f in FAMILIES}
    groups = {name: members for name, members in groups.items() if members}
    result: dict[str, Any] = {
        "counts": {name: len(members) for name, members in groups.items()},
        "majority": {},
        "pictures": len({id(picture) for picture, _ in questions}),
        "methods": {},
    }
    for name, members in groups.items():
        given = [truth[at] for at in members]
        result["majority"][name] = max(map(given.count, set(given))) / len(given)
    for method in tried:
        given = list(answers(vlm, questions, method, batch_size))
        right = [text == wanted for text, wanted in zip(given, truth, strict=True)]
        result["methods"][method.name] = {n: sum(right[m] for m in ms) / len(ms) for n, ms in groups.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """The result as a markdown table, a row per group, a column per method, in percent."""
    names = list(result["methods"])
    lines = [f"| | questions | majority | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for group, count in result["counts"].items():
        shares = [result["majority"][group], *(result["methods"][name][group] for name in names)]
        lines.append(f"| {group} | {count} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def encoded(vlm: VLM, batch: Sequence[Asked], side: str) -> dict[str, Any]:
    """Model inputs for some questions, each about its picture, padded on that side."""
    prompts = [(vlm.prompt(f"{question.text}\n{INSTRUCTION}"), [picture]) for picture, question in batch]
    return vlm.encode(prompts, side)


def run(args: argparse.Namespace) -> int:
    """Evaluates, prints the table; returns the exit code."""
    vlm = fitprune.load(args.model_path, **arguments.load_options(args))
    draw = SCENES[args.scenes]
    tried = methods(vlm, args.ratios, args.scores, args.samples, draw, args.before)
    for method in tried:
        if method.recipe:
            tokens = method.recipe.alive(vlm.tokens_for(place(draw("held-out", 0))), vlm.cost.layers)
            print(f"{method.name}: tokens after each layer {' '.join(map(str, tokens))}")
    result = evaluate(vlm, asked("held-out", args.pictures, size=args.canvas and tuple(args.canvas), draw=draw), tried, args.batch_size)
    print(table(result))
    if args.output:
        write_atomically(args.output, json.dumps(result, indent=1).encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="embedded.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_model(parser)
    parser.add_argument("--pictures", type=arguments.positive, default=60, help="held-out pictures, about 14 questions each")
    parser.add_argument("--ratios", type=arguments.ratio, nargs="*", default=[0.5, 0.7], help="shares of visual compute to save")
    parser.add_argument("--scores", nargs="+", choices=list(arguments.SCORES), default=SCORES)
    parser.add_argument("--before", nargs="+", choices=list(WAYS), default=(), help="methods that shrink the image before the decoder")
    parser.add_argument(
        "--canvas", type=arguments.positive, nargs=2, default=None, metavar=("WIDTH", "HEIGHT"),
        help="put pictures on noise of that size, for a model that looks at tiles",
    )  # fmt: skip
    parser.add_argument("--scenes", choices=list(SCENES), default="plain", help="cluttered ones are what the judge was trained on")
    parser.add_argument("--samples", type=arguments.positive, default=128, help="calibration questions")
    parser.add_argument("--batch-size", type=arguments.positive, default=32)
    parser.add_argument("--output", type=Path, default=None, help="also write the result as JSON")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
