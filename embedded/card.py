"""The model card: what the shipped checkpoint is, what it was trained on, and figures that a test checks again.

Figures come from `evaluate` and stand twice, as a table in README.md and as data in figures.json beside the weights;
tests/test_embedded_card.py asks the model anew on some of the pictures and compares.

    python -m embedded.make /tmp/run    # writes it into /tmp/run/model
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fitprune.embedded import MODEL_NAME
from fitprune.errors import FitPruneError
from fitprune.files import write_atomically

from . import attention_facts
from .batches import SLOTS
from .clutter import SCENES
from .evaluate import SCORES, table
from .models import MODELS, Model
from .questions import FAMILIES
from .train import AWAY, CHECKPOINT, LOG, load_checkpoint

FIGURES = "figures.json"
NOTE = "note.txt"  # in a run's folder: what was done to it by hand, if anything
TEXT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [{tag}, visual-token-pruning, synthetic]
---

# The embedded {title} of FitPrune

A {title} of {parameters:.2f} million parameters ({megabytes:.1f} MB, bf16):
{vision},
{between}, {decoder} ({text}), {tokens} visual tokens for a picture of {side} pixels, conversation template
{template}.
It exists to measure visual token pruning without a download. It knows synthetic pictures and nothing else: do not use it
for anything real.

**Data.** Pictures and questions are drawn from numbers by `embedded/` of the FitPrune repository: up to six coloured shapes and
two strings on {ground}, {families} families of questions. No photograph, font file or text of others is in it; the
characters are from Aileron (CC0). Splits (training, held-out, calibration, each benchmark) are separate streams of random
numbers.

**Training.** {training}
a step, each shown once. Muon and AdamW, bf16 autocast. {hours}
It was not trained for pruning: no token was ever left out. {charge}
{note}Remake it with `{remake}`.

**Figures.** Exact answers in percent, greedy, on the first pictures of the split "held-out" ("majority": the share of the
commonest answer). The standard error of a share p of n questions is √(p(1-p)/n). Without pruning, {dense_pictures} pictures
(`python -m embedded.evaluate{model_flag} --pictures {dense_pictures} --ratios 0`):

{dense_table}

{canvas}Pruned, {pictures} pictures. A column's per cent is the share of the visual compute saved; all columns of one ratio save as
much. Scores rank tokens on the fitted schedule, so they keep equally many in every layer; "fastv" deletes once, after the
second layer, by the last token's attention. (`python -m embedded.evaluate{model_flag} --pictures {pictures} --ratios {ratios}{scores}`)

{table}

{attention}**Licence.** Apache-2.0, as the repository.
"""
CANVAS = """On a canvas of {size[0]} × {size[1]} pixels, {pictures} pictures, not pruned: the picture at its own size somewhere on \
noise{seen} (`--canvas {size[0]} {size[1]}`):

{table}

"""
CHARGED = """But visual tokens were charged for attention to others than
themselves (weight {away}), so that they look around only where an answer gains by it; without that, their attention stays
diffuse and the paper's self-attention factor ranks by position (docs/LOG.md)."""
FREE = """Where visual tokens look was left to them: they were charged
for nothing, and began looking at everything before them alike."""
ATTENTION = """**Attention.** In percent, means over heads and {pictures} held-out questions, each model on pictures like
those that it was trained on (`embedded/attention_facts.py` says what the columns are). Means over layers:

{models}

{name}, layer by layer:

{layers}

"""
FROM_RANDOM = """From random weights: {see} steps of the vision tower on what its patches show ({see_pictures} pictures full
of strings), then {answer} steps of everything on answers ({answer_pictures} pictures, {slots} questions each); {batch} pictures"""
FROM_KNOWN = """Language model, projector and CLIP are those of the embedded LLaVA-1.5 (its card is in `../model`);
{new}. Then
{answer} steps of everything on answers ({answer_pictures} pictures{canvases}, {slots} questions each); {batch} pictures"""

FROM_KNOWN_SEEING = """Language model, projector and CLIP's layers are those of the embedded LLaVA-1.5 (its card is in `../model`);
{new}. Then
{see} steps of the vision tower on what its patches show ({see_pictures} pictures full of strings), for its positions are others now, and
{answer} steps of everything on answers ({answer_pictures} pictures{canvases}, {slots} questions each); {batch} pictures"""


@dataclass(frozen=True)
class Text:
    """What a family's card says of it.

    new: how what LLaVA-1.5 does not have began. ground: what things lie on. charge: what attention cost in training. canvases: where
    pictures were put in training; seen: what it means for the figures on a canvas. between, decoder, template: what follows the
    vision tower, and how it is asked.
    """

    title: str
    tag: str
    training: str = FROM_KNOWN
    new: str = ""
    canvases: str = ""
    seen: str = ""
    ground: str = "a background of noise"
    charge: str = CHARGED
    between: str = "two-layer GELU projector"
    decoder: str = "Llama"
    template: str = "`vicuna_v1`"
    remake: str = "python -m embedded.make runs/{family} --family {family} --batch {batch} --install fitprune/embedded"


TEXTS = {
    "llava": Text("LLaVA-1.5", "llava", FROM_RANDOM, remake="make embedded"),
    "next": Text(
        "LLaVA-NeXT", "llava_next", new="the newline vector began at zero",
        canvases=", three in ten of them on canvases of two or four times their size",
        seen=",\nso that the whole view shows it squashed and only tiles show what is small",
    ),
    "hr": Text(
        "LLaVA-HR", "llava_hr",
        new="ConvNeXt began at random, adapters and fusion so that it counted for nothing",
    ),
    "judge": Text(
        "LLaVA-1.5, deeper and on cluttered pictures (the judge)", "llava", FROM_KNOWN_SEEING,
        new="three layers of the decoder and two of the tower began as adding nothing, queries as nothing for visual tokens",
        ground="patches of texture, no spot of them plain, with lines, rings, blobs and scribbles about and in front",
        charge=FREE, remake="python -m embedded.make runs/{family} --family {family} --batch {batch} --install embedded",
    ),
    "qwen": Text(
        "Qwen3-VL", "qwen3_vl", FROM_KNOWN_SEEING,
        new="norms of queries, keys and the merger began at the mean sizes that it has there, what deepstack adds at zero",
        canvases=", a third of them on canvases of 168 × 196 to 224 × 224 pixels",
        between="two-layer GELU merger (1 × 1) and as many for deepstack ({deep}), M-RoPE", decoder="Qwen3",
        template="in its `chat_template.jinja` (ChatML)",
    ),
}  # fmt: skip


def write(run: Path, model: Path, figures: dict[str, Any]) -> Path:
    """Writes README.md and figures.json into the folder of an exported model; returns the card's path.

    Args:
        run: The run that the model was exported from: its plan and its log.
        figures: As `evaluate.evaluate` gives them, with "pictures", and "tokens" of a picture; under "dense" the same of
            the dense model on more, and under "canvas", if there, of the dense model on canvases of "size".
    Raises:
        FitPruneError: a missing or damaged checkpoint, log or model.
    """
    plan = load_checkpoint(run / CHECKPOINT)["plan"]
    family = plan.get("family", "llava")
    words, known = TEXTS[family], MODELS[family]
    try:
        settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
        with safe_open(model / "model.safetensors", "pt") as weights:
            parameters = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise FitPruneError(f"cannot read the model in {model} ({error}): export it first") from None
    of_text, dense = settings["text_config"], figures["dense"]
    pruned = [name.split("% ") for name in figures["methods"] if "% " in name]
    ratios = dict.fromkeys(int(share) / 100 for share, _ in pruned)
    scores = list(dict.fromkeys(score for _, score in pruned if score != "fastv"))
    training = words.training.format(
        see=plan["see_steps"], answer=plan["answer_steps"], see_pictures=plan["see_steps"] * plan["batch"],
        answer_pictures=plan["answer_steps"] * plan["batch"], slots=SLOTS, batch=plan["batch"], new=words.new,
        canvases=words.canvases,
    )  # fmt: skip
    text = TEXT.format(
        title=words.title, tag=words.tag, training=training, remake=words.remake.format(family=family, batch=plan["batch"]),
        parameters=parameters / 1e6, megabytes=(model / "model.safetensors").stat().st_size / 1e6,
        vision=_vision(settings), text=f"{of_text['num_hidden_layers']} layers × {of_text['hidden_size']}",
        between=words.between.format(deep=len(settings["vision_config"].get("deepstack_visual_indexes", ()))),
        decoder=words.decoder, template=words.template, tokens=figures["tokens"],
        side=known.draw("held-out", 0).layout.side, families=len(FAMILIES),
        ground=words.ground, charge=words.charge.format(away=AWAY), hours=_hours(run / LOG), note=_note(run / NOTE),
        model_flag=_flags(known), attention=_attention(figures, known.name),
        ratios=" ".join(f"{ratio:g}" for ratio in ratios), pictures=figures["pictures"], table=table(figures),
        scores="" if scores == list(SCORES) else f" --scores {' '.join(scores)}",
        dense_pictures=dense["pictures"], dense_table=table(dense),
        canvas=CANVAS.format(table=table(figures["canvas"]), seen=words.seen, **figures["canvas"]) if "canvas" in figures else "",
    )  # fmt: skip
    write_atomically(model / FIGURES, (json.dumps(figures, indent=1) + "\n").encode())
    write_atomically(model / "README.md", text.encode())
    return model / "README.md"


def _flags(known: Model) -> str:
    """What `evaluate` is told to ask this model about pictures like those it was trained on."""
    scenes = next(name for name, draw in SCENES.items() if draw is known.draw)
    model = "" if known.name == MODEL_NAME else f" --model-path {known.name}"
    return model + ("" if scenes == next(iter(SCENES)) else f" --scenes {scenes}")


def _attention(figures: dict[str, Any], name: str) -> str:
    """Where attention goes, in this model and others; empty where that was not measured."""
    found = figures.get("attention")
    if not found:
        return ""
    tables = attention_facts.table(found, layers=False), attention_facts.table({name: found[name]})
    return ATTENTION.format(pictures=figures["pictures"], models=tables[0], layers=tables[1], name=name)


def _vision(settings: dict[str, Any]) -> str:
    """The vision tower in words."""
    vision = settings["vision_config"]
    if "depth" in vision:
        told = f"vision tower of CLIP's layers with rotary positions ({vision['depth']} layers × {vision['hidden_size']})"
        return f"{told} on the picture at native resolution, {vision['patch_size']} pixels a token"
    clip = vision.get("clip", vision)
    told = f"CLIP vision tower ({clip['num_hidden_layers']} layers × {clip['hidden_size']})"
    if "clip" in vision:
        blocks, widths = (", ".join(map(str, vision[field])) for field in ("depths", "hidden_sizes"))
        told += f" at {clip['image_size']} pixels, ConvNeXt ({blocks} blocks of {widths} channels) at {vision['image_size']}"
    if "image_grid_pinpoints" in settings:
        told += f" on the whole picture and on tiles of {clip['image_size']} pixels"
    return told


def _note(path: Path) -> str:
    """What whoever ran it has to say of this run, as it stands in the card."""
    return path.read_text(encoding="utf-8").strip() + "\n" if path.exists() else ""


def _hours(log: Path) -> str:
    """A sentence on how long the run took, pauses left out; empty where there is no log."""
    try:
        times = [json.loads(line)["time"] for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError):
        return ""
    steps = [later - earlier for earlier, later in pairwise(times)]
    usual = sorted(steps)[len(steps) // 2] if steps else 0
    return f"It took {sum(min(step, 10 * usual) for step in steps) / 3600:.1f} hours."
