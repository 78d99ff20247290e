"""Where a model goes and in which precision, and loading what is in transformers layout.

python -c "from fitprune.families.placement import where; print(where(None, None, None))"
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError

from ..checkpoints.source import Source
from ..errors import FitPruneError, explained, first_line
from .sharding import tensor_parallel, zero3


def where(device: str | None, dtype: str | None, device_map: Any) -> tuple[str, str]:
    """Device and precision by name: the first GPU, else the CPU; the checkpoint's precision, but float32 on a CPU."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype is None:
        dtype = "float32" if device == "cpu" and device_map is None else "auto"
    return device, dtype


def dtype_named(name: str) -> torch.dtype | None:
    """torch's precision of that name, None for "auto".

    Raises:
        FitPruneError: for a name that is none.
    """
    if name == "auto":
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise FitPruneError(f"unknown precision {name!r}: use auto, float32, bfloat16 or float16")
    return dtype


def read_config(kind: Any, path: str) -> Any:
    """The config of a checkpoint in transformers layout, of a model class or an Auto class; a FitPruneError for a damaged one."""
    from transformers import AutoConfig

    with explained(f"cannot read the config of {path}"):
        return (getattr(kind, "config_class", None) or AutoConfig).from_pretrained(path)


def from_transformers(
    kind: Any, source: Source, device: str, dtype: str, attn: str | None, device_map: Any, one_model: bool = False
) -> Any:
    """Model and tokenizer of a checkpoint in transformers layout.

    Args:
        one_model: Share it between all processes (tensor parallelism).
    Raises:
        FitPruneError: missing, torn or incomplete files, or a device that cannot be used.
    """
    from transformers import AutoTokenizer

    path = source.place
    options: dict[str, Any] = {"attn_implementation": attn} if attn else {}
    if one_model:
        options |= tensor_parallel(read_config(kind, path), path)
    accelerator = zero3()
    with explained(f"cannot load the tokenizer of {path}"):
        tokenizer = AutoTokenizer.from_pretrained(path)
    try:  # the class may be ours (LLaVA-HR): only what a checkpoint can cause
        model, report = kind.from_pretrained(path, dtype=dtype, device_map=device_map, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise FitPruneError(f"cannot load {path}: {first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise FitPruneError(f"{path} lacks {len(missing)} weights, such as {missing[0]}: download the checkpoint again")
    if accelerator is not None:
        with explained(f"DeepSpeed cannot take {path}"):
            engine = accelerator.prepare(model.eval())
            return engine.module, tokenizer
    if device_map is None and not one_model:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise FitPruneError(f"cannot use device {device!r}: {first_line(error)}") from None
    return model.eval(), tokenizer
