"""`fitprune report`: how far pruning drifts from the dense model on questions of one's own, so that a ratio can be chosen
without labels.

For each ratio: how many greedy answers and first tokens change, how far the next-token distributions move (first token, and
every token of the dense answer), how much of the dense model's attention the surviving tokens hold in each layer, and
what is saved. A changed answer need not be a wrong one, so this bounds what pruning can cost, not what it does cost.
Recipes are chosen as in `fitprune eval` (published, else fitted here), all from one pass.

    fitprune report --reduction-ratio 0.3 0.5 0.7 --limit 64
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import options
from .bench.report import aligned
from .calibrate import Calibration, observe_questions, packed, unpacked
from .cost import CostModel
from .drift import CONFIDENCE, Mean, Share, bootstrap, wilson
from .errors import FitPruneError
from .evaluation.answer import DEFAULTS
from .evaluation.questions import read_questions
from .families import Loaded, load
from .files import writable, write_atomically
from .fit import fit_all
from .follow import Drift, follow
from .ranks import ALONE, Ranks
from .recipe import Recipe


@dataclass(frozen=True)
class Row:
    """One recipe over all questions: changes, divergences (nats), attention kept and tokens alive in each layer [L], savings."""

    name: str
    ratio: float
    source: str
    deletions: list[float]
    answers: Share
    first_tokens: Share
    divergence_first: Mean
    divergence_answer: Mean
    cross: list[float]
    intra: list[float]
    visual_tokens: float
    alive: list[float]
    visual_reduction: float
    prefill_reduction: float
    changed: list[dict[str, Any]]


def share(text: str) -> float:
    """argparse type of a share of answers: 0.05, 5%, 5 (from 1 on a percentage)."""
    try:
        value = float(text.strip().removesuffix("%"))
        value = value / 100 if "%" in text or value >= 1 else value
        if 0 <= value <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text} is not a share of the answers: give 0.05 or 5%")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `fitprune report`."""
    options.add_model(parser)
    options.add_data(parser)
    options.add_recipe(parser, many=True)
    parser.set_defaults(reduction_ratio=[0.3, 0.5, 0.7])
    parser.add_argument(
        "--at-most",
        type=share,
        default=0.05,
        help="advise the largest ratio that changes no larger share of the answers, 0.05 or 5%%",
    )
    parser.add_argument("--limit", type=options.positive, default=None, help="only the first so many questions")
    parser.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=options.positive, default=DEFAULTS["max_new_tokens"]
    )
    parser.add_argument("--batch-size", type=options.positive, default=8, help="questions at a time")
    parser.add_argument(
        "--json", default=None, metavar="FILE", help="also write all figures and the changed answers there"
    )


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns the exit code."""
    ranks: Ranks = args.ranks
    ranks.first(partial(_check_json, args.json))
    given = read_questions(args.question_file)[: args.limit]
    questions = [question for question in given if question.image]
    if not questions:
        raise FitPruneError(
            f"{args.question_file} has no question with a picture, so there is nothing to prune: give others"
        )
    loaded = load(args.model_path, **options.load_options(args))
    recipes = choose_all(loaded, args.reduction_ratio, options.calibration(args), args.recipe, ranks)
    drifts = follow(
        loaded, questions, args.image_folder, [recipe for _, recipe, _ in recipes], score=args.score,
        max_new_tokens=args.max_new_tokens, batch_size=args.batch_size, ranks=ranks,
    )  # fmt: skip
    rows = [
        summarise(name, recipe, source, found, loaded.cost)
        for (name, recipe, source), found in zip(recipes, drifts, strict=True)
    ]
    advised = advise(rows, args.at_most)
    if args.json and ranks.leads:
        figures = {
            "model": loaded.name, "question_file": str(args.question_file), "questions": len(questions),
            "without_picture": len(given) - len(questions), "score": args.score, "max_new_tokens": args.max_new_tokens,
            "confidence": CONFIDENCE, "at_most": args.at_most, "advice": advised.name if advised else None,
            "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        write_atomically(args.json, json.dumps(figures, indent=1).encode())
    print(f"{loaded.name} on {len(questions)} questions of {args.question_file}, pruned by score {args.score}")
    if len(given) > len(questions):
        print(f"left out: {len(given) - len(questions)} without a picture")
    print(
        *(f"{row.name}: {row.source}" for row in rows),
        "",
        table(rows),
        "",
        advice(advised, args.at_most),
        sep="\n",
    )
    return 0


def _check_json(path: str | None) -> None:
    """Finds out before the model runs whether the figures can be kept."""
    if path and (Path(path).is_dir() or not writable(Path(path))):
        raise FitPruneError(f"--json {path} cannot be written: name a file in a folder of yours")


def choose_all(
    loaded: Loaded,
    ratios: Sequence[float],
    calibration: Calibration,
    recipe_file: str | None = None,
    ranks: Ranks = ALONE,
) -> list[tuple[str, Recipe | None, str]]:
    """A name, the recipe (None for ratio 0) and where it came from, for every ratio; fitted ones share one pass.

    Raises:
        FitPruneError: unreadable recipe, recipe for another model, nothing to fit on.
    """
    if recipe_file is not None:

        def named() -> tuple[Recipe, str] | None:
            recipe = Recipe.load(recipe_file)
            recipe.check_model(loaded.cost)
            return recipe, f"recipe from {recipe_file}"

        known = ranks.first(named, packed, unpacked)
        assert known is not None
        return [(Path(recipe_file).name.removesuffix(".json"), *known)]
    found: dict[float, tuple[Recipe | None, str]] = {}
    for ratio in ratios:
        try:
            published = Recipe.published(loaded.name, ratio) if ratio else None
            if published is not None:
                published.check_model(loaded.cost)
            found[ratio] = published, "published recipe" if published else "no pruning"
        except FitPruneError:
            pass  # nothing published for this model and ratio: fitted below
    missing = [ratio for ratio in ratios if ratio not in found]
    if missing:
        stats = observe_questions(loaded, calibration, ranks=ranks)

        def fitted() -> list[str]:
            return [recipe.to_bytes().decode() for recipe in fit_all(stats, None, missing).values()]

        where = f"recipe fitted now on {stats.samples} samples of {calibration.question_file}"
        for ratio, text in zip(dict.fromkeys(missing), ranks.first(fitted), strict=True):
            found[ratio] = Recipe.from_bytes(text.encode()), where
    return [(f"{100 * ratio:.6g}%", *found[ratio]) for ratio in sorted(set(ratios))]


def summarise(name: str, recipe: Recipe | None, source: str, drifts: Sequence[Drift], cost: CostModel) -> Row:
    """One row from the drift of every question; compute is summed over the questions before shares are taken of it."""
    count = len(drifts)
    macs, flops = [0.0, 0.0], [0.0, 0.0]  # dense, pruned
    for drift in drifts:
        for at, curve in enumerate(([drift.visual_tokens] * cost.layers, drift.alive)):
            macs[at] += sum(cost.visual_macs(curve, drift.visual_tokens))
            flops[at] += sum(cost.prefill_flops(curve, drift.visual_tokens, drift.text_tokens))
    changed = [drift for drift in drifts if drift.dense != drift.pruned]
    return Row(
        name=name,
        ratio=(recipe.reduction_ratio or recipe.achieved or 0.0) if recipe else 0.0,
        source=source,
        deletions=list(recipe.counts) if recipe else [],
        answers=wilson(len(changed), count),
        first_tokens=wilson(sum(drift.first_changed for drift in drifts), count),
        divergence_first=bootstrap([drift.divergence_first for drift in drifts]),
        divergence_answer=bootstrap([drift.divergence_answer for drift in drifts]),
        cross=_means([drift.cross for drift in drifts]),
        intra=_means([drift.intra for drift in drifts]),
        visual_tokens=sum(drift.visual_tokens for drift in drifts) / count,
        alive=_means([drift.alive for drift in drifts]),
        visual_reduction=1 - macs[1] / macs[0],
        prefill_reduction=1 - flops[1] / flops[0],
        changed=[
            {"question_id": drift.question.question_id, "image": drift.question.image, "text": drift.question.text,
             "dense": drift.dense, "pruned": drift.pruned}
            for drift in changed
        ],
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, what the columns are, then the attention kept in every layer."""
    cells = [
        ["run", "answers changed", "first token", "KL first", "p95", "KL per token", "p95", "MACs saved", "FLOPs saved",
         "tokens left"]
    ]  # fmt: skip
    for row in rows:
        cells.append(
            [row.name, _share(row.answers), _share(row.first_tokens), _mean(row.divergence_first), f"{row.divergence_first.p95:.3g}",
             _mean(row.divergence_answer), f"{row.divergence_answer.p95:.3g}", f"{row.visual_reduction:.1%}",
             f"{row.prefill_reduction:.1%}", f"{row.alive[-1]:.0f} of {row.visual_tokens:.0f}"]
        )  # fmt: skip
    legend = (
        f"in brackets {CONFIDENCE:.0%} intervals: Wilson's of shares, percentile bootstrap of means; p95: 95th percentile over questions\n"
        "first token: share of questions where it changes; KL: dense || pruned in nats, of the first token and over the dense answer's;\n"
        "saved: visual MACs, prefill FLOPs; left: visual tokens after the last layer"
    )
    kept = [
        f"{whose} attention that survivors hold, % in each layer, {row.name}: {' '.join(f'{100 * value:.0f}' for value in values)}"
        for row in rows
        for whose, values in (("text's", row.cross), ("image's", row.intra))
    ]
    return "\n".join([*aligned(cells), legend, "", *kept])


def advise(rows: Sequence[Row], at_most: float) -> Row | None:
    """The pruned row that saves most among those that change no larger share of the answers; None if all change more."""
    fitting = [row for row in rows if row.alive[-1] < row.visual_tokens and row.answers.share <= at_most]
    return max(fitting, key=lambda row: row.visual_reduction, default=None)


def advice(advised: Row | None, at_most: float) -> str:
    """One line that says which ratio to take."""
    if advised is None:
        return (
            f"advice: none of these ratios changes at most {100 * at_most:.6g}% of the answers: "
            "try smaller ones, or a larger --at-most"
        )
    sure = advised.answers.high <= at_most
    caution = "" if sure else f"; the interval reaches {advised.answers.high:.1%}, more questions would narrow it"
    return (
        f"advice: {advised.name} is the largest that changes at most {100 * at_most:.6g}% of the answers "
        f"({advised.answers.share:.1%}{caution})"
    )


def _means(values: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(values) for column in zip(*values, strict=True)]


def _share(share: Share) -> str:
    return f"{share.share:.1%} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _mean(mean: Mean) -> str:
    return f"{mean.mean:.3g} [{mean.low:.3g}, {mean.high:.3g}]"
