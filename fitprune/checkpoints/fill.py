"""An empty model, filled from the weight files tensor by tensor: no second copy of the model in memory.

The model is made without storage. Before anything is loaded every weight of the files is matched with one of the model,
so that a wrong checkpoint is refused at once, with the names: what is missing, what is left over, what has another
shape. Then each tensor goes from its mapped file to its device and precision, one at a time.

The original vocabulary has no `<image>`; transformers' models need a row for it. The rows that are added are the mean
of the others: as an output its logit is the mean logit, which never is the largest.

    pytest tests/checkpoints/test_checkpoint_fill.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FitPruneError, explained
from .names import in_model
from .weights import Weights

GROWING = ("model.language_model.embed_tokens.weight", "lm_head.weight")
SHOWN = 5  # names listed in an error


@dataclass(frozen=True)
class Part:
    """Some weight files and what becomes of them.

    name: original name → name in the model, "" to drop it, None if it is not known.
    change: (original name, tensor) → tensor, on the way; None for as it is.
    """

    weights: Weights
    name: Callable[[str], str | None]
    change: Callable[[str, Tensor], Tensor] | None = None


def empty(kind: Any, config: Any, attn: str | None) -> nn.Module:
    """A model without storage for its weights; buffers are real.

    Raises:
        FitPruneError: if the config makes no model, or the attention implementation is not available.
    """
    from accelerate import init_empty_weights

    with explained("cannot make the model of this config.json"), init_empty_weights(include_buffers=False):
        model: nn.Module = kind._from_config(config, **({"attn_implementation": attn} if attn else {}))
    return model


def match(model: nn.Module, parts: Iterable[Part], checkpoint: str, vocabulary: int) -> list[dict[str, str]]:
    """Which tensor of each part becomes which weight of the model: [part] original name → name in the model.

    A weight that several parts have comes from the first of them.

    Args:
        vocabulary: Rows that input and output embeddings have in the files.
    Raises:
        FitPruneError: listing what is missing, unexpected or of another shape.
    """
    wanted = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found: set[str] = set()
    plan: list[dict[str, str]] = []
    unexpected: list[str] = []
    for part in parts:
        plan.append({})
        for key, shape in part.weights.shapes.items():
            name = part.name(key)
            if name == "":
                continue
            name = name and in_model(name, wanted)
            if name in tied:  # what it is tied to is loaded
                continue
            if name is None or name not in wanted:
                unexpected.append(key)
            elif name not in found:
                expected = (vocabulary, *wanted[name][1:]) if name in GROWING else wanted[name]
                if shape != expected:
                    raise FitPruneError(
                        f"{part.weights.files[key]}: {key} is {list(shape)} but the model needs {list(expected)}: "
                        "config.json (or --vision-tower) is of another checkpoint"
                    )
                found.add(name)
                plan[-1][key] = name
    missing = sorted(wanted.keys() - found - tied)
    problems = [
        f"{what} {len(names)} weights ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in (("it lacks", missing), ("it has unexpected", sorted(unexpected)))
        if names
    ]
    if problems:
        raise FitPruneError(f"{checkpoint} does not fit its config.json: {'; '.join(problems)}")
    return plan


def fill(model: nn.Module, parts: Iterable[Part], plan: list[dict[str, str]], dtype: torch.dtype, device: Callable[[str], Any]) -> None:
    """Loads what `match` planned.

    Args:
        device: Name of a weight in the model → where it goes.
    Raises:
        FitPruneError: for a tensor that is not of real numbers; as a part's `change`.
    """
    for part, names in zip(parts, plan, strict=True):
        for key, tensor in part.weights.tensors():
            name = names.get(key)
            if name is None:
                continue
            if not tensor.is_floating_point():
                raise FitPruneError(
                    f"{part.weights.files[key]}: {key} holds {tensor.dtype}, not real numbers: quantised checkpoints are not supported"
                )
            if part.change is not None:
                tensor = part.change(key, tensor)
            _set(model, name, tensor.to(device(name), dtype))
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    rows = getattr(module, last).shape[0]
    if name in GROWING and rows > value.shape[0]:
        mean = value.float().mean(0, keepdim=True).to(value.dtype)
        value = torch.cat([value, mean.expand(rows - value.shape[0], -1)])
    module._parameters[last] = nn.Parameter(value)
