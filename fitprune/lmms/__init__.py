"""The model `fitprune` of lmms-eval, through its plugin mechanism: its tasks, our families, pruned or not.

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) looks for models of other packages in the entry-point group
`lmms_eval.models`; pyproject.toml names `manifest` there. A model of theirs comes in two kinds, and this one in both:

    chat (the default)            a document is a list of messages: generation, and generation in rounds
    simple (`--force_simple`)     a document is a text and its pictures: generation, and multiple choice by likelihood

`settings.py` reads what a task says of generation, `conversation.py` makes prompts of their messages, `arguments.py` what
`--model_args` names, `model.py` the two classes. `tasks/` holds one task, made of the embedded questions, that runs
without any download; this package prints its folder:

    python -m lmms_eval --model fitprune --model_args pretrained=embedded,reduction_ratio=0.6 \
        --tasks fitprune_textvqa --include_path "$(python -m fitprune.lmms)"

Left out: video and sound (an error says so). Importing this package does not import lmms-eval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).with_name("tasks")


def manifest() -> Any:
    """What lmms-eval asks the entry point for: the model's name and where its two classes are."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="fitprune", chat_class_path=f"{__name__}.model.FitPruneChat", simple_class_path=f"{__name__}.model.FitPruneSimple"
    )
