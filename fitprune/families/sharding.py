"""A checkpoint too big for one device, held by several processes: tensor parallelism and ZeRO-3, both by other libraries.

Tensor parallelism is transformers' own: every process holds some heads and some columns of every layer, and all answer the same
question. ZeRO-3 is DeepSpeed's, through accelerate: every process holds a share of every weight and fetches the rest of a layer
when it runs; each answers questions of its own. Several GPUs in one process need neither (`device_map="auto"`).

Both are done while transformers reads its own layout, so a checkpoint of the original layout is converted first.

    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 2 -m fitprune eval --limit 8
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from ..distributed.launch import zero_stage
from ..errors import FitPruneError, first_line

NEEDS = "pip install 'fitprune[deepspeed]'"


def tensor_parallel(config: Any, path: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that share a model between all processes.

    Args:
        config: Of the whole model.
    Raises:
        FitPruneError: if there is nobody to share it with, or its heads do not divide evenly.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise FitPruneError(
            "--tensor-parallel shares one model between processes: start them with torchrun --nproc-per-node 2 -m fitprune …"
        )
    size, text = dist.get_world_size(), config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        if (heads := getattr(text, name, None) or size) % size:
            raise FitPruneError(f"{path} has {heads} {name}, which {size} processes cannot share evenly: start another number")
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=size)}
    except (ImportError, TypeError):  # before transformers 5.18
        return {"tp_plan": "auto"}


def zero3() -> Any:
    """An accelerator under which `from_pretrained` leaves each process its share of the weights; None unless asked for.

    Raises:
        FitPruneError: without DeepSpeed, or with a config that it does not take.
    """
    if not zero_stage():
        return None
    try:
        from accelerate import Accelerator

        accelerator = Accelerator()
    except (ImportError, RuntimeError, ValueError) as error:
        raise FitPruneError(f"cannot start DeepSpeed ({first_line(error)}): {NEEDS}, and look at its config") from None
    batches = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": dist.get_world_size()}
    accelerator.state.deepspeed_plugin.deepspeed_config.update(batches)  # it wants them, though nothing is trained
    return accelerator
