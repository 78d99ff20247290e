"""Model families: how a checkpoint is loaded, how its prompt is written, how its images are prepared.

A family is one module here and one line in `FAMILIES`; everything else (fitting, pruning, evaluation, drawing) knows
only the `Loaded` that it makes. The pruning itself needs no family: it attaches to any decoder (attach.py).

    python -c "import fitprune; print(fitprune.load('embedded'))"
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..embedded import MODEL_NAME, model_path
from ..errors import FitPruneError, first_line
from .loaded import Loaded

FAMILIES = {"llava": "llava"}  # model_type in config.json → module of this package


def load(path: str, **options: Any) -> Loaded:
    """Loads a checkpoint with all that is needed to ask it questions.

    Args:
        path: A folder or hub name in transformers layout, or "embedded" for the small model that ships with FitPrune.
        options: `device` ("cpu", "cuda", "cuda:1"), `dtype` ("auto", "float32", "bfloat16", "float16"), `attn`
            (attention implementation), `device_map` (as transformers'), `template` (conversation template).
    Raises:
        FitPruneError: no such checkpoint, or a family that is not known; says what to do.
    """
    from transformers import AutoConfig

    source = str(model_path()) if path == MODEL_NAME else path
    folder = Path(source)
    looks_local = folder.is_absolute() or path.startswith((".", "~")) or len(folder.parts) > 2
    if looks_local and not (folder / "config.json").is_file():
        raise FitPruneError(
            f"no checkpoint at {path}: expected a folder with config.json in transformers layout, "
            "or a hub name such as llava-hf/llava-1.5-7b-hf"
        )
    if (folder / "config.json").is_file() and '"mm_vision_tower"' in (folder / "config.json").read_text(
        encoding="utf-8"
    ):
        raise _original_layout(path)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise FitPruneError(f"cannot load {path}: {first_line(error)}") from None
    if getattr(config, "mm_vision_tower", None) is not None:
        raise _original_layout(path)
    if config.model_type not in FAMILIES:
        raise FitPruneError(
            f"{path} is a {config.model_type!r} model, families known here: {', '.join(FAMILIES)}. "
            "prune(model, recipe) itself works on other models too; docs/new_family.md says what a model needs"
        )
    family = import_module(f".{FAMILIES[config.model_type]}", __name__)
    loaded: Loaded = family.load(source, config, name=path, **options)
    return loaded


def _original_layout(path: str) -> FitPruneError:
    return FitPruneError(
        f"{path} has the original LLaVA layout, which this version does not read yet: "
        "use its transformers conversion, such as llava-hf/llava-1.5-7b-hf"
    )


__all__ = ["FAMILIES", "Loaded", "load"]
