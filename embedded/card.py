"""The model card: what the shipped checkpoint is, what it was trained on, and figures that a test checks again.

Figures come from `evaluate` and stand twice, as a table in README.md and as data in figures.json beside the weights;
tests/test_embedded_card.py asks the model anew on some of the pictures and compares.

    python -m embedded.make /tmp/run    # writes it into /tmp/run/model
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fitprune.errors import FitPruneError
from fitprune.files import write_atomically

from .batches import SLOTS
from .evaluate import table
from .network import PATCH
from .questions import FAMILIES
from .scene import SIDE
from .train import AWAY, CHECKPOINT, LOG, load_checkpoint

FIGURES = "figures.json"
NOTE = "note.txt"  # in a run's folder: what was done to it by hand, if anything
TEXT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, visual-token-pruning, synthetic]
---

# The embedded LLaVA-1.5 of FitPrune

A LLaVA-1.5 of {parameters:.2f} million parameters ({megabytes:.1f} MB, bf16): CLIP vision tower ({vision}), two-layer
GELU projector, Llama ({text}), {tokens} visual tokens for a picture of {side} pixels, conversation template `vicuna_v1`.
It exists to measure visual token pruning without a download. It knows synthetic pictures and nothing else: do not use it
for anything real.

**Data.** Pictures and questions are drawn from numbers by `embedded/` of the FitPrune repository: up to six coloured shapes and
two strings on a background of noise, {families} families of questions. No photograph, font file or text of others is in it; the
characters are from Aileron (CC0). Splits (training, held-out, calibration, each benchmark) are separate streams of random
numbers.

**Training.** From random weights: {see} steps of the vision tower on what its patches show ({see_pictures} pictures full
of strings), then {answer} steps of everything on answers ({answer_pictures} pictures, {slots} questions each); {batch} pictures
a step, each shown once. Muon and AdamW, bf16 autocast. {hours}
It was not trained for pruning: no token was ever left out. But visual tokens were charged for attention to others than
themselves (weight {away}), so that they look around only where an answer gains by it; without that, their attention stays
diffuse and the paper's self-attention factor ranks by position (docs/LOG.md).
{note}Remake it with `make embedded`.

**Figures.** Exact answers in percent, greedy, on the first pictures of the split "held-out" ("majority": the share of the
commonest answer). The standard error of a share p of n questions is √(p(1-p)/n). Without pruning, {dense_pictures} pictures
(`python -m embedded.evaluate --pictures {dense_pictures} --ratios 0`):

{dense_table}

Pruned, {pictures} pictures. A column's per cent is the share of the visual compute saved; all columns of one ratio save as
much. Scores rank tokens on the fitted schedule, so they keep equally many in every layer; "fastv" deletes once, after the
second layer, by the last token's attention. (`python -m embedded.evaluate --pictures {pictures} --ratios 0.3 0.5 0.6 0.7 0.9`)

{table}

**Licence.** Apache-2.0, as the repository.
"""


def write(run: Path, model: Path, figures: dict[str, Any]) -> Path:
    """Writes README.md and figures.json into the folder of an exported model; returns the card's path.

    Args:
        run: The run that the model was exported from: its plan and its log.
        figures: As `evaluate.evaluate` gives them, with "pictures"; under "dense" the same of the dense model on more.
    Raises:
        FitPruneError: a missing or damaged checkpoint, log or model.
    """
    plan = load_checkpoint(run / CHECKPOINT)["plan"]
    try:
        settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
        with safe_open(model / "model.safetensors", "pt") as weights:
            parameters = sum(weights.get_tensor(key).numel() for key in weights.keys())  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise FitPruneError(f"cannot read the model in {model} ({error}): export it first") from None
    parts = {part: settings[f"{part}_config"] for part in ("vision", "text")}
    sizes = {part: f"{c['num_hidden_layers']} layers × {c['hidden_size']}" for part, c in parts.items()}
    text = TEXT.format(
        parameters=parameters / 1e6, megabytes=(model / "model.safetensors").stat().st_size / 1e6, **sizes,
        tokens=(SIDE // PATCH) ** 2, side=SIDE, see=plan["see_steps"], answer=plan["answer_steps"], slots=SLOTS, families=len(FAMILIES),
        batch=plan["batch"], see_pictures=plan["see_steps"] * plan["batch"],
        answer_pictures=plan["answer_steps"] * plan["batch"], hours=_hours(run / LOG), away=AWAY, note=_note(run / NOTE),
        pictures=figures["pictures"], table=table(figures),
        dense_pictures=figures["dense"]["pictures"], dense_table=table(figures["dense"]),
    )  # fmt: skip
    write_atomically(model / FIGURES, (json.dumps(figures, indent=1) + "\n").encode())
    write_atomically(model / "README.md", text.encode())
    return model / "README.md"


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
