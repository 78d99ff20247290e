"""The CLIP tower of an original checkpoint: where its files are, how large it is, what its weights are called.

LLaVA-1.6 and LLaVA-HR checkpoints hold CLIP's weights and need its sizes only; LLaVA-1.5 names a repository that has both.
The sizes of OpenAI's two towers are known here, so that no hub is asked for them.

    pytest tests/checkpoints/test_checkpoint_original.py -k tower
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FitPruneError
from .fill import Part
from .names import CLIP, rename
from .source import Source
from .weights import Weights

OPENAI_CLIP = {  # sizes of the towers that published checkpoints name, known without asking the hub
    f"openai/clip-vit-large-patch14{suffix}": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14, "image_size": side, "projection_dim": 768,
    }
    for suffix, side in (("-336", 336), ("", 224))
}  # fmt: skip
NOT_SIZES = frozenset(  # fields of a config.json that say nothing about the model's shape
    ("model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "id2label", "label2id")
)


def find_tower(source: Source, named: str, override: str | None) -> Source | None:
    """Where CLIP's files are: what was given, else a CLIP inside the checkpoint's folder, else a folder of the config's
    name (from here or from the checkpoint), else the hub. None for a well-known one that lies nowhere here."""
    if override is not None:
        return Source(override)
    for folder in map(Source, source.folders()):
        if folder.get("config.json") and _is_clip(folder.json("config.json")):
            return folder
    if source.folder is not None and (source.folder / named).is_dir():
        return Source(source.folder / named)
    try:
        tower = Source(named)
    except FitPruneError:
        raise FitPruneError(
            f"{source}: its vision tower {named} (mm_vision_tower in config.json) is not here: name a copy with --vision-tower"
        ) from None
    return tower if tower.folder is not None or named not in OPENAI_CLIP else None


def tower_part(tower: Source) -> Part:
    """The tower's weights, from its own files.

    Raises:
        FitPruneError: when there are none.
    """
    if (weights := Weights.find(tower)) is None:
        raise FitPruneError(f"the vision tower {tower} has no weights here: give a folder that has them with --vision-tower")
    return Part(weights, lambda key: rename(key, (), CLIP))


def clip_config(tower: Source | None, named: str) -> Any:
    """CLIPVisionConfig of the tower.

    Raises:
        FitPruneError: for a tower of another kind.
    """
    from transformers import CLIPVisionConfig

    if tower is None:
        return CLIPVisionConfig(**OPENAI_CLIP[named])
    config = tower.json("config.json")
    if not _is_clip(config):
        raise FitPruneError(f"the vision tower {tower} is a {config.get('model_type')!r}: only CLIP is supported")
    sizes = dict(config.get("vision_config") or config)
    known = CLIPVisionConfig().to_dict().keys()
    return CLIPVisionConfig(**{key: value for key, value in sizes.items() if key in known and key not in NOT_SIZES})


def _is_clip(config: Mapping[str, Any]) -> bool:
    return str(config.get("model_type", "")).startswith("clip")
