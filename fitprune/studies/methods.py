"""Comparison methods at a given reduction ratio: method = schedule × score, or a way to shrink images before the language model.

A schedule is solved for the ratio, so that all methods save the same visual compute, to the token (`vtw`, which only has its
layer to choose, to the layer); a score is a name in `SCORES`. What each one is, with layers counted from 0:

- `fitprune`, `cross`, `self`, `last`, `spread`, `spread-last`, `random`: the fitted schedule, ranked by the score of that name;
- `uniform`: the same share of the tokens that enter a layer goes in every layer, ranked as FitPrune ranks;
- `fastv` (https://arxiv.org/abs/2403.06764): one step in layer 1 (its K = 2), its R solved, ranked by the last token;
- `vtw` (https://arxiv.org/abs/2405.05803): one step that keeps nothing, in the last layer that still saves the ratio;
- `pyramiddrop` (https://arxiv.org/abs/2410.17247): four stages of equal depth, after each but the last one factor λ of the
  tokens stays, λ solved (the paper fixes it at 0.5), ranked by the last token.

Three have neither, since nothing goes inside the decoder: fewer of n visual tokens enter it, as many as save the ratio (before.py):

- `divprune` (https://arxiv.org/abs/2503.02175): those that are most unlike one another;
- `cdpruner` (https://arxiv.org/abs/2506.10967): those that are unlike one another and like the question, in the language model's own
  embeddings, as LLaVA checkpoints lack CLIP's text tower (diverse.py says what the paper's code does);
- `downsample` (https://arxiv.org/abs/2510.07143): those of a smaller picture.

The first two run masked, in the whole model's time. `applied` runs a model with any of all these methods.

Where some layers cannot delete (hybrids with linear attention: `CostModel.deletable`), a step goes to the next layer that can (`fastv`)
or to the last before (`pyramiddrop`, whose stages end there), `uniform` and `vtw` choose among those that can; a method is refused by
name where none is left, or two of its steps would be one.

A fitted schedule can be fitted otherwise, for ablations: `fitprune samples=16` on so many of the samples, evenly spaced;
`fitprune criterion=cross` by another criterion (`schedule.validation.CRITERIA`); both may follow any method whose schedule is fitted.
Any method may be ranked by another score (`fastv score=spread`, `uniform score=spread theta=0.5`): its schedule with our ranking. With
`absorb=0.8` deleted tokens live on in survivors that are as like them (`Recipe.absorb`).

`random` and `uniform` are the controls: the first has our schedule without our ranking, the second our ranking without our
schedule. In all of them tokens go after the attention of the layer, before its MLP, as everywhere here.

Left out: the schedules that the papers recommend as such (FastV's R of 0.5, PyramidDrop's λ of 0.5, VTW's search for its
layer by calibration): what is compared is methods at equal cost.

    python -c "from fitprune.studies.methods import *; from fitprune.cost import VICUNA_7B as c; print(pyramiddrop(c, 576, 0.5))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..cost import CostModel
from ..errors import FitPruneError
from ..recipe import Recipe
from ..schedule.budget import at_budget, unreachable
from ..schedule.ratio import parse_ratio
from ..schedule.validation import CRITERIA
from ..scores import find_score
from .before import WAYS, Before

if TYPE_CHECKING:
    from ..families import VLM
    from ..stats import AttentionStats

FASTV_LAYER = 1  # FastV's K = 2 counts layers from 1
STAGES = 4  # PyramidDrop's

Schedule = Callable[[CostModel, int, float], Recipe]  # model, visual tokens, reduction ratio
Made = tuple[Recipe, str] | Before  # what runs: a recipe and the name of its score, or what comes before the decoder


@dataclass(frozen=True)
class Method:
    """A schedule, None for the fitted one, and the score that ranks tokens; what it is fitted on (None: all) and by.

    absorb: As `Recipe.absorb`.
    before: The way in `WAYS` that stands for all of this where images shrink before the decoder.
    """

    schedule: Schedule | None
    score: str
    samples: int | None = None
    criterion: str = "both"
    absorb: float | None = None
    before: str | None = None


def uniform(cost: CostModel, visual_tokens: int, ratio: float) -> Recipe:
    """The same share of the tokens that enter a layer goes in every layer; errors as `recipes`."""
    steps = cost.deletable
    shape = [2 ** (-sum(step <= layer for step in steps) / cost.layers) for layer in range(cost.layers)]
    return _solved("uniform", cost, visual_tokens, ratio, shape, steps)


def fastv(cost: CostModel, visual_tokens: int, ratio: float) -> Recipe:
    """FastV: one step after the second layer's attention; errors as `recipes`."""
    step = next((layer for layer in cost.deletable if layer >= FASTV_LAYER), cost.layers)
    shape = [1.0 if layer < step else 0.5 for layer in range(cost.layers)]
    return _solved("fastv", cost, visual_tokens, ratio, shape, [step])


def pyramiddrop(cost: CostModel, visual_tokens: int, ratio: float) -> Recipe:
    """PyramidDrop: at the end of each stage but the last, the same share of the tokens goes; errors as `recipes`."""
    ends = [cost.layers * stage // STAGES - 1 for stage in range(1, STAGES)]
    steps = [max((layer for layer in cost.deletable if layer <= end), default=-1) for end in ends]
    shape = [0.5 ** sum(step <= layer for step in steps) for layer in range(cost.layers)]
    return _solved("pyramiddrop", cost, visual_tokens, ratio, shape, steps)


def vtw(cost: CostModel, visual_tokens: int, ratio: float) -> Recipe:
    """VTW: all visual tokens go in one layer, the last that saves at least the ratio; errors as `recipes`."""

    def saved(layer: int) -> float:
        alive = [visual_tokens] * layer + [0] * (cost.layers - layer)
        return cost.visual_reduction_of_alive(alive, visual_tokens)

    most = saved(cost.deletable[0]) if cost.deletable else 0.0
    if most < ratio:
        raise unreachable(ratio, visual_tokens, most, cost)
    layer = max(layer for layer in cost.deletable if saved(layer) >= ratio)
    return replace(Recipe.step(layer=layer, keep=0), reduction_ratio=ratio, achieved=saved(layer), source="vtw")


METHODS: dict[str, Method] = {
    "fitprune": Method(None, "fitprune"),
    "cross": Method(None, "cross"),
    "self": Method(None, "self"),
    "last": Method(None, "last"),
    "spread": Method(None, "spread"),
    "spread-last": Method(None, "spread-last"),
    "random": Method(None, "random"),
    "uniform": Method(uniform, "fitprune"),
    "fastv": Method(fastv, "last"),
    "vtw": Method(vtw, "random"),  # all go, so nothing is ranked: the score that costs nothing
    "pyramiddrop": Method(pyramiddrop, "last"),
    **{way: Method(None, "", before=way) for way in WAYS},
}
INSIDE = tuple(name for name, method in METHODS.items() if method.before is None)  # those with a recipe
CONTROLS = ("random", "uniform")


def find(name: str) -> Method:
    """A method by name, with how its schedule is fitted behind it: "fitprune", "fitprune samples=16".

    Raises:
        FitPruneError: for a name that is not in `METHODS`, and for what cannot be said of its schedule.
    """
    base, *settings = name.split() or [""]
    if base not in METHODS:
        raise FitPruneError(f"unknown method {base!r}: use some of {', '.join(METHODS)}")
    method = METHODS[base]
    if settings and method.before:
        raise FitPruneError(f"{name}: {base} has neither a schedule nor a score: leave out {' '.join(settings)}")
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "absorb":
            method = replace(method, absorb=cosine(value, name))
            continue
        if key not in ("samples", "criterion"):  # the score, or one of its settings
            method = replace(method, score=value if key == "score" else f"{method.score} {setting}")
            find_score(method.score)
            continue
        if method.schedule is not None:
            raise FitPruneError(f"{name}: the schedule of {base} is not fitted: leave out {setting}")
        if key == "samples" and value.isdecimal() and int(value):
            method = replace(method, samples=int(value))
        elif key == "criterion" and value in CRITERIA:
            method = replace(method, criterion=value)
        else:
            raise FitPruneError(f"{name}: {setting} says nothing: give samples=NUMBER or criterion= and one of {', '.join(CRITERIA)}")
    return method


def cosine(text: str, name: str) -> float:
    """The number of an `absorb=` in a method's name.

    Raises:
        FitPruneError: for anything but a number from 0 to 1.
    """
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise FitPruneError(f"{name}: absorb={text} says nothing: give a cosine from 0 to 1, such as absorb=0.8")


def recipes(stats: AttentionStats, names: Iterable[str], ratios: Iterable[float | str]) -> dict[tuple[str, float], Made | FitPruneError]:
    """Every method at every ratio, all from the same statistics.

    Args:
        stats: What the unpruned model attends to; they carry its cost model.
        names: Methods, as `find` takes them.
        ratios: As `parse_ratio` takes them, above 0.
    Returns:
        By method and ratio (a fraction), ratio by ratio: the recipe and the name of its score, or a `Before` (`applied` runs
        either); where a method cannot save as much, the error that says what it can.
    Raises:
        FitPruneError: for an unknown method, a ratio out of range, and statistics without a cost model or with fewer
            samples than a method asks for.
    """
    chosen = {name: find(name) for name in names}
    wanted = list(dict.fromkeys(map(parse_ratio, ratios)))
    if 0 in wanted:
        raise FitPruneError("a reduction ratio of 0 is the dense model: methods need one above 0")
    if stats.cost is None:
        raise FitPruneError("these statistics carry no cost model: observe the model again")
    tokens = int(stats.visual_tokens.max())
    found: dict[tuple[str, float], Made | FitPruneError] = {}
    ways = dict.fromkeys((one.samples, one.criterion) for one in chosen.values() if one.schedule is None and one.before is None)
    fits = {(samples, criterion): fitted(spaced(stats, samples), wanted, criterion) for samples, criterion in ways}
    for ratio in wanted:
        for name, method in chosen.items():
            try:
                if method.before:
                    before = Before(method.before, ratio)
                    before.keep(tokens, stats.cost)  # one that cannot save as much is an error now
                    found[name, ratio] = before
                    continue
                way = method.samples, method.criterion
                made = method.schedule(stats.cost, tokens, ratio) if method.schedule else fits[way][ratio]
                if isinstance(made, FitPruneError):
                    raise made
                found[name, ratio] = replace(made, model=stats.model, absorb=method.absorb), method.score
            except FitPruneError as error:
                found[name, ratio] = FitPruneError(f"{name}: {error}")
    return found


@contextmanager
def applied(vlm: VLM, made: Made | None) -> Iterator[VLM]:
    """Runs a model with any method inside the `with` block.

        with applied(vlm, made) as asked:
            asked.generate(asked.encode(prompts))

    Args:
        made: Of `recipes`, or a `Before`; None for the dense model.
    Yields:
        The model to ask, and to make inputs with: the one given, or, for smaller pictures, one that shares its weights.
    Raises:
        FitPruneError: for a method that this model cannot run; says why.
    """
    if made is None:
        yield vlm
    elif isinstance(made, Before):
        with made.applied(vlm) as asked:
            yield asked
    else:
        from ..prune import prune

        with prune(vlm.model, made[0], score=made[1]):
            yield vlm


def spaced(stats: AttentionStats, samples: int | None) -> AttentionStats:
    """So many of the samples, evenly spaced as calibration questions are; all of them for None.

    Raises:
        FitPruneError: when there are not that many.
    """
    if samples is None:
        return stats
    if samples > stats.samples:
        raise FitPruneError(f"there are {stats.samples} samples, not {samples}: ask for fewer, or observe more")
    return stats.rows([at * stats.samples // samples for at in range(samples)])


def fitted(stats: AttentionStats, ratios: Sequence[float], criterion: str = "both") -> dict[float, Recipe | FitPruneError]:
    """Fitted recipes by ratio (a fraction), or why there is none."""
    from ..fit import fit_all

    try:
        return dict(fit_all(stats, None, ratios, criterion))
    except FitPruneError as error:
        if len(ratios) == 1:
            return {ratios[0]: error}
        return {ratio: made for one in ratios for ratio, made in fitted(stats, [one], criterion).items()}


def _solved(source: str, cost: CostModel, visual_tokens: int, ratio: float, shape: Sequence[float], steps: Sequence[int]) -> Recipe:
    """Shares alive after each layer, all raised to the one power at which the ratio is met, in whole tokens."""
    if not steps or min(steps) < 0 or max(steps) >= cost.layers or len(set(steps)) < len(steps):
        some = f", of which {len(cost.deletable)} can delete," if len(cost.deletable) < cost.layers else ""
        raise FitPruneError(f"a model of {cost.layers} layers{some} is too shallow: leave this method out")
    counts = at_budget(shape, visual_tokens, cost, ratio, steps)
    return Recipe.from_deletions(
        counts,
        visual_tokens=visual_tokens,
        scaling="budget",
        reduction_ratio=ratio,
        achieved=cost.visual_reduction(counts, visual_tokens),
        cost=cost,
        source=source,
    )
