"""An empty model, filled from the weight files tensor by tensor: no second copy of the model in memory.

The model is made without storage. Before anything is loaded every weight of the files is matched with one of the model, so that
a wrong checkpoint is refused at once, by names. Then each tensor goes from its mapped file to its device and precision. Over
several devices the model is spread by accelerate, as transformers does with its own layout; a layer stays on one device.

The original vocabulary has no `<image>`; transformers' models need a row for it. The rows that are added are the mean
of the others: as an output its logit is the mean logit, which never is the largest.

    pytest tests/checkpoints/test_checkpoint_fill.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    found: set[str | None] = set()
    plan: list[dict[str, str]] = []
    unexpected: list[str] = []
    for part in parts:
        plan.append({})
        for key, shape in part.weights.shapes.items():
            name = in_model(part.name(key), wanted)
            if name == "" or name in tied:  # what it is tied to is loaded
                continue
            if name not in wanted:
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


def fill(model: nn.Module, parts: Iterable[Part], plan: list[dict[str, str]], dtype: torch.dtype, devices: Mapping[str, Any]) -> None:
    """Loads what `match` planned.

    Args:
        devices: Name of a module → where it goes; "" is the whole model.
    Raises:
        FitPruneError: for a tensor that is not of real numbers or has no device; as a part's `change`.
    """
    for part, names in zip(parts, plan, strict=True):
        for key, tensor in part.weights.tensors():
            if key not in names:
                continue
            if not tensor.is_floating_point():
                raise FitPruneError(
                    f"{part.weights.files[key]}: {key} holds {tensor.dtype}, not real numbers: quantised checkpoints are not supported"
                )
            if part.change is not None:
                tensor = part.change(key, tensor)
            owner, _, last = names[key].rpartition(".")
            module = model.get_submodule(owner)
            value = tensor.to(_device_of(names[key], devices), dtype)
            if names[key] in GROWING and (added := getattr(module, last).shape[0] - len(value)) > 0:
                mean = value.float().mean(0, keepdim=True).to(value.dtype)
                value = torch.cat([value, mean.expand(added, -1)])
            module._parameters[last] = nn.Parameter(value)
    if (tie := getattr(model, "tie_weights", None)) is not None:
        tie()


def devices_by_module(model: Any, device_map: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Name of a module → its device, of what transformers calls a device_map: "auto" and its like are worked out for this model."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if not isinstance(device_map, str):
        return dict(device_map)
    if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return {"": device_map}
    options: dict[str, Any] = {"dtype": dtype, "no_split_module_classes": kept_whole(model)}
    if device_map != "sequential":
        options["max_memory"] = get_balanced_memory(model, low_zero=device_map == "balanced_low_0", **options)
    return dict(infer_auto_device_map(model, **options))


def kept_whole(model: Any) -> list[str]:
    """Classes of modules whose parts must be on one device, such as decoder layers; early 5.x asks each part of a model."""
    return sorted({name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()})


def _device_of(name: str, devices: Mapping[str, Any]) -> Any:
    """Device of a weight: that of the closest module around it that has one."""
    while name and name not in devices:
        name = name.rpartition(".")[0]
    if name not in devices:
        raise FitPruneError("the device_map leaves out parts of the model: give auto")
    if devices[name] == "disk":
        raise FitPruneError("the model does not fit into memory (parts would go to disk): use more or larger devices")
    return devices[name]
