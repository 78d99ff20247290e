"""Cache memory by stage: a group of layers that hold fewer tokens takes fewer blocks.

vLLM gives layers that want different things of the cache a block table each. Our spec says which stage a layer is in, so stages are
told apart; the manager of a stage asks for blocks for the tokens that are left. It knows a request by its name only: `lost` is filled
by scheduler.py when a request arrives.

All groups have as many layers as the smallest stage, or a part of one: stages whose lengths are multiples of the shortest waste
nothing.

    pytest tests/vllm/test_vllm_answers.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, register_all_kvcache_specs
from vllm.v1.kv_cache_interface import FullAttentionSpec, replace_as
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry


@dataclass(frozen=True, kw_only=True)
class StageSpec(FullAttentionSpec):
    """Full attention over what is left in a stage."""

    stage: int

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        """One spec for all of a group; an AssertionError, as vLLM expects it, where stages differ."""
        stages = {getattr(spec, "stage", None) for spec in specs}
        if len(stages) != 1:
            raise AssertionError(f"layers of the stages {stages} hold different tokens")
        return replace_as(FullAttentionSpec.merge(specs), cls, stage=specs[0].stage)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        return {getattr(spec, "stage", None) for spec in kv_cache_specs.values()} == {self.stage}


class StageManager(FullAttentionManager):
    """Blocks for the tokens of a stage."""

    def __init__(self, kv_cache_spec: StageSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        self.stage = kv_cache_spec.stage
        self.lost: dict[str, tuple[int, ...]] = {}  # request: tokens gone before each stage

    def _left(self, request_id: str, tokens: int) -> int:
        lost = self.lost.get(request_id)
        return max(tokens - lost[self.stage], 0) if lost else tokens

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> int:
        return super().get_num_blocks_to_allocate(request_id, self._left(request_id, num_tokens), *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        return super().allocate_new_blocks(request_id, self._left(request_id, num_tokens), *args, **kwargs)


register_all_kvcache_specs(None)  # vLLM's own, which it registers only where there are none yet
KVCacheSpecRegistry.register(StageSpec, manager_class=StageManager, uniform_type_base_spec=StageSpec)


def staged(spec: Any, stage: int) -> Any:
    """A layer's spec with its stage; itself if it is not full attention."""
    return replace_as(spec, StageSpec, stage=stage) if type(spec) is FullAttentionSpec else spec
