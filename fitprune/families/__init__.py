"""Model families: how a checkpoint is loaded, how its prompt is written, how its images are prepared.

A family is one module here and one line in `FAMILIES` (protocols.py says what the module defines); everything else
(fitting, pruning, evaluation, drawing) knows only the `VLM` that `load` makes. The pruning itself needs no family: it
attaches to any decoder (decoder/attach.py). Nor does most loading: what is not in `FAMILIES` is asked by its own processor.

    protocols.py     what a family's module defines: for asking, and for an original layout
    loading.py       a path → the family → a VLM;  placement.py, sharding.py: where its weights go
    vlm.py           a checkpoint that can be asked;  encoding.py: LLaVA's way from question and image to inputs
    conversation.py  LLaVA's templates;  chat_template.py: the same in Jinja, for other people's tools
    adapter.py       an adapter of PEFT and the base that it names
    processor.py     the family of every other model of transformers;  parts.py: its processor, made without torchvision;
                     chat.py: its chat template;  token_places.py: where its tokens lie in a picture
    rehearsal.py     whether tower and processor go together, asked before weights are read
    clip.py          what families with a CLIP tower share
    convert.py       an original checkpoint written in transformers layout

Names are loaded when they are first used: a list of templates must not cost an import of torch.

    python -c "import fitprune; print(fitprune.load('embedded'))"
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load
    from .vlm import VLM

FAMILIES = {  # model_type of a config.json in transformers layout → module of this package
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_hr": "llava_hr",
}


def __getattr__(name: str) -> Any:
    if name in (places := {"load": "loading", "VLM": "vlm"}):
        return getattr(import_module(f"{__name__}.{places[name]}"), name)
    raise AttributeError(name)


__all__ = ["FAMILIES", "VLM", "load"]
