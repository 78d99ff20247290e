"""The model `fitprune` of lmms-eval, through its plugin mechanism: its tasks, our families, pruned or not.

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) looks for models of other packages in the entry-point group
`lmms_eval.models`; pyproject.toml names `manifest` there. It has two types of models, and this one is both:

    chat (the default)            a document is a list of messages: generation, and generation in rounds
    simple (`--force_simple`)     a document is a text and its images: generation, and multiple choice by likelihood

`settings.py` reads a task's generation settings, `conversation.py` makes prompts of messages, `arguments.py` reads `--model_args`,
`model.py` has the two classes. `tasks/` holds one task, made of the embedded questions, that needs no download; this package prints
its folder:

    python -m lmms_eval --model fitprune --model_args pretrained=embedded,reduction_ratio=0.6 \
        --tasks fitprune_textvqa --include_path "$(python -m fitprune.lmms)"

Videos are read for models that know them. Left out: sound (an error says so). Importing this package does not import lmms-eval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).with_name("tasks")


def manifest() -> Any:
    """The model's name and its two classes, for lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="fitprune", chat_class_path=f"{__name__}.model.FitPruneChat", simple_class_path=f"{__name__}.model.FitPruneSimple"
    )
