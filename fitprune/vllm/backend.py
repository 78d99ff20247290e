"""Attention of a stage: vLLM's own backend and kernels, told the lengths and the cache slots of what is left in that stage.

vLLM asks a backend's builder for metadata once per group of layers, from lengths and slots that all layers share. A subclass per stage
narrows these first. It keeps no state: a stage that lies in several cache groups has a builder in each, with its own block table.

    pytest tests/vllm/test_batch.py
"""

from __future__ import annotations

from typing import Any

from .batch import Plan


def stage_backend(backend: Any, stage: int, plan: Plan) -> Any:
    """A subclass of an attention backend for the layers of one stage."""
    inner = backend.get_builder_cls()

    class Builder(inner):  # type: ignore[misc, valid-type]
        supports_update_block_table = False  # metadata of one stage is no other's

        @classmethod
        def get_cudagraph_support(cls, *args: Any, **kwargs: Any) -> Any:
            """None: a whole recorded step would pass the narrowing by. Graphs of what lies between attentions go on."""
            from vllm.v1.attention.backend import AttentionCGSupport

            return AttentionCGSupport.NEVER

        def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
            batch = plan.batch
            if batch is not None:
                narrowed = batch.narrowed(common_attn_metadata, stage, self.kv_cache_spec.block_size)
                if narrowed is not common_attn_metadata:
                    plan.slots.update(dict.fromkeys(self.layer_names, narrowed.slot_mapping))
                    common_attn_metadata = narrowed
            return super().build(common_prefix_len, common_attn_metadata, *args, **kwargs)

    Builder.__name__ = Builder.__qualname__ = f"FitPruneStage{stage}{inner.__name__}"

    class Backend(backend):
        @staticmethod
        def get_builder_cls() -> Any:
            return Builder

        @classmethod
        def customize_spec(cls, spec: Any) -> Any:
            spec = super().customize_spec(spec)
            if not plan.kv_groups:
                return spec
            from .cache import staged

            return staged(spec, stage)

    # vLLM tells backends apart by this name
    Backend.__name__ = Backend.__qualname__ = f"FitPruneStage{stage}{backend.__name__}"
    return Backend
