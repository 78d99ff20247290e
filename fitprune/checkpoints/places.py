"""Which device each part of a model goes to, for models that are larger than one.

The work is accelerate's; a layer is never spread over two devices, as pruning cuts inside it.

    pytest tests/checkpoints/test_checkpoint_fill.py -k device_map
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import FitPruneError


def placement(model: Any, device_map: Any, dtype: torch.dtype) -> dict[str, Any]:
    """transformers' device_map as places of modules; "auto" and its like are worked out for this model."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if not isinstance(device_map, str):
        return dict(device_map)
    if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return {"": device_map}
    whole = kept_whole(model)
    memory = None
    if device_map != "sequential":
        memory = get_balanced_memory(model, dtype=dtype, no_split_module_classes=whole, low_zero=device_map == "balanced_low_0")
    return dict(infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole, dtype=dtype))


def kept_whole(model: Any) -> list[str]:
    """Classes of modules whose parts must be on one device, such as decoder layers; early 5.x asks each part of a model."""
    return sorted({name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()})


def device_of(name: str, places: Mapping[str, Any]) -> Any:
    """Device of a weight: that of the closest module around it that has one.

    Raises:
        FitPruneError: if it would be kept on disk.
    """
    while name and name not in places:
        name = name.rpartition(".")[0]
    if name not in places:
        raise FitPruneError("the device_map leaves out parts of the model: give auto")
    if places[name] == "disk":
        raise FitPruneError("the model does not fit into memory (parts would go to disk): use more or larger devices")
    return places[name]
