"""The worker that vLLM chose, with pruning attached to the model that it loads.

vLLM names a worker by a string. Ours is `fitprune.vllm.worker.on__` and the name of vLLM's class with `__` for dots: the subclass is
made when that name is looked up, so any platform's worker will do.

    pytest tests/vllm/test_vllm_answers.py
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ..distributed.heads import HeadGroup
from ..errors import UnsupportedError
from .backend import stage_backend
from .batch import Plan
from .config import settings_of
from .decoder import check_cut, find_layers
from .requests import Stages
from .settings import Settings
from .step import Pruning

PREFIX = "on__"


class PrunedWorker:
    """What is added to vLLM's worker."""

    fitprune: Pruning

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        config = self.vllm_config  # type: ignore[attr-defined]
        self.fitprune = attach(self.model_runner, config, settings_of(config))  # type: ignore[attr-defined]

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.fitprune.plan
        plan.begin(scheduler_output.num_scheduled_tokens)
        try:
            return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        finally:
            plan.end()


def attach(runner: Any, config: Any, settings: Settings) -> Pruning:
    """Gives each layer of the runner's model the attention of its stage, and the model the forward that deletes.

    Raises:
        UnsupportedError: for a model that cannot be cut, by name.
    """
    from vllm.config import set_current_vllm_config
    from vllm.distributed import get_tp_group
    from vllm.forward_context import set_forward_context

    model = runner.get_model()
    decoder, layers = find_layers(model)
    stages = Stages(settings.recipe, len(layers))
    width = config.model_config.get_hidden_size()
    with set_current_vllm_config(config), set_forward_context(None, config):
        for number in stages.deleting:
            check_cut(layers[number], number, width)
    plan = Plan(stages, runner, settings.kv_groups)
    backends: dict[tuple[Any, int], Any] = {}
    for found, stage in zip(layers, stages.of, strict=True):
        backend = found.attention.attn_backend
        key = backend, stage
        if key not in backends:
            backends[key] = stage_backend(backend, stage, plan)
        found.attention.attn_backend = backends[key]
    group = get_tp_group()
    heads = HeadGroup(group.device_group) if group.world_size > 1 else None
    pruning = Pruning(plan, decoder, layers, settings.ranking(), settings.seed, heads)
    pruning.attach(model)
    return pruning


@functools.cache
def __getattr__(name: str) -> Any:
    """`on__module__Class`: that worker of vLLM's, pruning."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, kind = name.removeprefix(PREFIX).replace("__", ".").rpartition(".")
    base = getattr(importlib.import_module(module), kind, None)
    if base is None:
        raise UnsupportedError(f"this vLLM has no worker {module}.{kind}")
    return type(f"Pruned{kind}", (PrunedWorker, base), {"__module__": __name__})
