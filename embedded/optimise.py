"""Optimizers and their schedule: Muon for the matrices inside blocks, AdamW for the rest; warm-up, plateau, decay.

Muon (https://kellerjordan.github.io/posts/muon/) is PyTorch's, so training needs torch 2.9 or newer; running the model
does not. The learning rate of a phase rises over its first 2% and, in the last phase, falls to zero over its last 40%
("WSD"): until then the length of a run can still be changed.

    python -c "from embedded.optimise import *; print(rate(0.01), rate(0.5), rate(0.9))"
"""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from .network import Embedded

WARM_UP, DECAY = 0.02, 0.4  # shares of a phase
RATES = {"matrix": 2.2e-3, "vector": 1.8e-3, "projector": 3e-3}
VISION_LATER = 0.5  # the vision tower's rate against the others', once questions are answered
TOWERS, BLOCKS = ("vision_tower", ".visual."), (".layers.", ".blocks.")  # in the names of weights
Optimizers = dict[str, Optimizer]


def rate(progress: float, decay: bool = True) -> float:
    """Factor on the learning rate at a share of a phase, 0 to 1."""
    return min(1.0, (progress + 1e-6) / WARM_UP, (1 - progress) / DECAY if decay else 1.0)


def optimizers(model: Embedded) -> Optimizers:
    """By part ("vision", "text"), kind and, where it is not 1, the model's pace; each with `initial_lr` in its groups."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        projects = "projector" in name or "merger" in name
        part = "vision" if projects or name.startswith("heads.") or any(tower in name for tower in TOWERS) else "text"
        inside = parameter.ndim == 2 and any(blocks in name for blocks in BLOCKS)
        kind = "matrix" if inside else "projector" if projects else "vector"
        pace = model.pace(name)
        groups.setdefault(f"{part} {kind}" + (f" {pace}" if pace != 1 else ""), []).append(parameter)
    made: Optimizers = {}
    for name, parameters in groups.items():
        _, kind, *paces = name.split()
        speed = RATES[kind] * float(paces[0] if paces else 1)
        if kind == "matrix":
            made[name] = torch.optim.Muon(parameters, lr=speed, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        else:
            made[name] = AdamW(parameters, lr=speed, betas=(0.9, 0.95), weight_decay=0.01)
        for group in made[name].param_groups:
            group["initial_lr"] = speed
    return made


def set_rates(made: Optimizers, phase: str, progress: float) -> float:
    """Sets every learning rate for a phase ("see" or "answer") and the share of it that is done; returns the factor."""
    factor = rate(progress, decay=phase == "answer")
    for name, optimizer in made.items():
        seen = name.startswith("vision") and phase == "answer"
        now = VISION_LATER * (factor if progress > 0.5 else 1.0) if seen else factor
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * now
    return factor
