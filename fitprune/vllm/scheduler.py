"""vLLM's scheduler, which tells the cache what a request will lose, and never cuts a prompt with images in two.

The order of requests, preemption and all else are vLLM's. vLLM warns that scheduler classes are no public interface: without it
(`"kv_groups": false`, or a vLLM that lacks what is touched) answers are the same and memory is not saved.

    pytest tests/vllm/test_vllm_answers.py
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .cache import StageManager
from .config import settings_of
from .requests import Stages, read_request


class _Pruned:
    """What is added to either of vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.vllm_config  # type: ignore[attr-defined]
        self.fitprune_stages = Stages(settings_of(config).recipe, config.model_config.get_total_num_hidden_layers())
        self.fitprune_lost: dict[str, tuple[int, ...]] = {}
        for manager in self.kv_cache_manager.coordinator.single_type_managers:  # type: ignore[attr-defined]
            if isinstance(manager, StageManager):
                manager.lost = self.fitprune_lost

    def add_request(self, request: Any) -> None:
        known = self.requests  # type: ignore[attr-defined]
        if len(self.fitprune_lost) > 2 * len(known) + 64:
            for name in set(self.fitprune_lost) - set(known):
                del self.fitprune_lost[name]
        if request.mm_features and request.request_id not in known:
            pruned = read_request(self.fitprune_stages, request.mm_features, request.num_prompt_tokens, request.sampling_params)
            if pruned is not None:
                self.fitprune_lost[request.request_id] = pruned.lost
        super().add_request(request)  # type: ignore[misc]

    def _try_schedule_encoder_inputs(self, request: Any, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        found = super()._try_schedule_encoder_inputs(request, num_computed_tokens, num_new_tokens, *args, **kwargs)  # type: ignore[misc]
        if request.request_id in self.fitprune_lost and found[1] < num_new_tokens:  # no room for all of its images: it waits
            return [], 0, (args or tuple(kwargs.values()))[0], [], []
        return found


class PrunedScheduler(_Pruned, Scheduler):
    """`Scheduler` with pruned requests."""


class PrunedAsyncScheduler(_Pruned, AsyncScheduler):
    """`AsyncScheduler` with pruned requests."""
