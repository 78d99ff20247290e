"""The figures of docs/how_it_works.md, drawn from what the code computes: recipes, survivors against α, cost by layer, rankings.

Ink is a middle grey and paper is transparent, so that a figure can be read on a light page and on a dark one. What is drawn
is kept inside each PNG as well (text chunk "data", JSON), which is how tests/docs/test_docs_figures.py notices a stale one. The
same versions of matplotlib and torch make the same bytes.

    python -m scripts.docs_figures                # writes docs/figures/*.png again
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fitprune
from embedded.canvas import place
from embedded.models import MODELS
from embedded.questions import one_of_each
from embedded.tokens import INSTRUCTION
from fitprune import Recipe, draw
from fitprune.calibrate import Calibration, observe_questions
from fitprune.cost import VICUNA_7B
from fitprune.draw import style
from fitprune.draw.asked import ask
from fitprune.draw.frames import fade
from fitprune.files import write_atomically
from fitprune.fit import alive_fractions, fit_all
from fitprune.studies.methods import fastv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
INK = "#808080"  # contrast 4:1 on white as well as on the dark page of the site
MODEL = "llava-v1.5-7b"
SHOWN = (0.2, 0.4, 0.6, 0.8, 0.9)
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
SAMPLES = 32
PICTURE, FAMILY, RATIO = 9, "number", 0.8  # what rankings are shown on
RANKINGS = ("fitprune", "last", "random", "spread")

Data = dict[str, Any]


def published() -> tuple[Figure, Data]:
    """The authors' recipes for LLaVA-1.5-7B, as they are and at their true savings."""
    recipes = [Recipe.published(MODEL, ratio) for ratio in SHOWN]
    labels = [f"“{ratio:.0%}”, saves {recipe.achieved:.1%}" for ratio, recipe in zip(SHOWN, recipes, strict=True)]
    data = {label: recipe.alive(recipe.visual_tokens) for label, recipe in zip(labels, recipes, strict=True)}
    return draw.recipes(recipes, labels), data


def alpha() -> tuple[Figure, Data]:
    """The embedded model: mean survivors after each layer at several α, and what each α saves, with the fitted recipes."""
    llava = fitprune.load("embedded", device="cpu")
    stats = observe_questions(llava, Calibration.shipped(SAMPLES), progress=False)
    fractions, cost, tokens = alive_fractions(stats), llava.cost, int(stats.visual_tokens.max())
    curves = {value: (fractions(value).mean(0) * tokens).tolist() for value in ALPHAS}
    axis = [index / 40 for index in range(1, 40)]
    saved = [cost.visual_reduction_of_alive((fractions(value).mean(0) * tokens).tolist(), tokens) for value in axis]
    fitted = {ratio: recipe.alpha or 0.0 for ratio, recipe in fit_all(stats, None, (0.3, 0.5, 0.7, 0.9)).items()}
    figure = style.figure(9.0, 3.9)
    left, right = figure.subplots(1, 2)
    for index, (value, alive) in enumerate(curves.items()):
        left.plot(range(len(alive)), alive, **style.curve(index))
        left.annotate(f"α = {value:g}", (len(alive) - 1, alive[-1]), xytext=(8, -3), textcoords="offset points", fontsize=8.5)
    left.set(xlabel="decoder layer", ylabel=f"visual tokens alive after the layer, of {tokens}", ylim=(0, 1.04 * tokens))
    left.set_xlim(-0.3, 1.2 * cost.layers)
    left.set_xticks(range(cost.layers))
    right.plot(axis, saved, color=style.COLOURS[0], linewidth=1.8)
    for index, (ratio, value) in enumerate(fitted.items(), 1):
        right.plot([0, value, value], [ratio, ratio, 0], color=style.COLOURS[index], linewidth=1, linestyle="--")
        right.plot([value], [ratio], color=style.COLOURS[index], marker="o", markersize=5)
        right.annotate(f"{ratio:.0%}", (value, ratio), xytext=(6, -10), textcoords="offset points", fontsize=8.5)
    right.set(xlabel="α, the share of attention that may be lost", ylabel="visual compute saved", xlim=(0, 1), ylim=(0, 1))
    return figure, {"alive": list(curves.values()), "saved": saved, "alpha": list(fitted.values())}


def cost() -> tuple[Figure, Data]:
    """LLaVA-1.5-7B, the published 60% recipe: each layer's visual multiply-accumulates, by part, beside the dense layer."""
    recipe = Recipe.published(MODEL, 0.6)
    tokens = recipe.visual_tokens
    alive = recipe.alive(tokens)
    entering = [tokens, *alive][: len(alive)]
    parts = {
        "projections and attention, of tokens that enter": [VICUNA_7B.attention_macs(count) / 1e9 for count in entering],
        "output projection and MLP, of tokens that leave": [VICUNA_7B.rest_macs(count) / 1e9 for count in alive],
    }
    dense = VICUNA_7B.visual_macs([tokens] * VICUNA_7B.layers, tokens)[0] / 1e9
    figure = style.figure(7.0, 3.9)
    panel: Any = figure.subplots()
    bottom = [0.0] * len(alive)
    for index, (label, values) in enumerate(parts.items()):
        panel.bar(range(len(alive)), values, bottom=bottom, color=style.COLOURS[index], label=label)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    panel.axhline(dense, color=INK, linewidth=1, linestyle="--", label="dense")
    panel.set(xlabel="decoder layer", ylabel="visual multiply-accumulates, 10⁹", ylim=(0, 1.06 * dense))
    panel.margins(x=0.01)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8.5)
    return figure, {**parts, "dense": dense}


def kept() -> tuple[Figure, Data]:
    """One step of the judge at one crowded picture, ranked in four ways: which patches are left, and what it answers then."""
    judge = MODELS["judge"]
    llava, scene = fitprune.load(str(ROOT / judge.name), device="cpu"), judge.draw("held-out", PICTURE)
    picture = place(scene)
    question = next(one for one in one_of_each(scene, (FAMILY,)))
    step = fastv(llava.cost, llava.tokens_for(picture), RATIO)
    asked = {score: ask(llava, picture, f"{question.text}\n{INSTRUCTION}", step, score, max_new_tokens=8) for score in RANKINGS}
    one = asked[RANKINGS[0]]
    panels = [(f"no pruning: {one.dense}", one.kept[0]), *((f"{score}: {its.pruned}", its.kept[-1]) for score, its in asked.items())]
    figure = style.figure(1.6 * len(panels), 1.95)
    for cell, (caption, left) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        style.image(cell, fade(one.where, left, at_least=0))
        cell.set_title(caption, fontsize=9, color=INK)
    return figure, {score: its.kept[-1].nonzero()[0].tolist() for score, its in asked.items()}


FIGURES: dict[str, Callable[[], tuple[Figure, Data]]] = {"published": published, "alpha": alpha, "cost": cost, "kept": kept}
WITH_PICTURES = ("kept",)  # whose pixels may have any colour


def in_grey(figure: Figure) -> Figure:
    """Everything that is neither curve nor bar in a middle grey, without a background."""
    figure.patch.set_alpha(0)
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for panel in figure.axes:
        panel.patch.set_alpha(0)
        panel.tick_params(colors=INK)
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["bottom", "left"]].set_color(INK)
        legend = panel.get_legend()
        texts += [panel.xaxis.label, panel.yaxis.label, *panel.texts, *(legend.get_texts() if legend else [])]
    for text in texts:
        text.set_color(INK)
    return figure


def png(name: str) -> bytes:
    """A figure as a file, with its data inside."""
    figure, data = FIGURES[name]()
    content = io.BytesIO()
    in_grey(figure).savefig(content, format="png", metadata={"Software": None, "data": json.dumps(data)})
    return content.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of docs/how_it_works.md.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder to write into")
    folder = parser.parse_args().output
    for name in FIGURES:
        content = png(name)
        write_atomically(folder / f"{name}.png", content)
        print(f"{folder / name}.png, {len(content) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
