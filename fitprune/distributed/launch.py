"""Who started this process, with which others, and how it meets them: torchrun, `accelerate launch`, or another library.

What a launcher says stands in the environment (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, …). `joined` meets the others for the time of a
command and hands out the `WorkerGroup` that they exchange results through (workers.py). torch is
imported where processes really meet: a command that only prints its help does not wait for it.

    torchrun --nproc-per-node 2 -m fitprune fit --samples 8 --output /tmp/recipes
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import FitPruneError

if TYPE_CHECKING:
    from .workers import WorkerGroup

PATIENCE = timedelta(days=7)  # between exchanges: one machine may load or score for long; who leaves is noticed at once
TALK = timedelta(seconds=3)  # to wait for the store when an error is to be said


def started() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    told = [os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")]
    return int(told[0]) if all(told) and told[0].isdecimal() and told[1].isdecimal() and int(told[0]) else 1


def own_rank() -> int:
    """Which of them this is, as the launcher says."""
    return int(os.environ["RANK"]) if started() > 1 else 0


def own_device() -> str | None:
    """The GPU that the launcher means for this process; None where it leaves the choice."""
    if started() == 1:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    local = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{(int(local) if local.isdecimal() else own_rank()) % torch.cuda.device_count()}"


def zero_stage() -> int:
    """The ZeRO stage that `accelerate launch` asks for; 0 without DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return 0
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    try:
        with open(file, encoding="utf-8") as opened:
            return int(json.load(opened).get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FitPruneError(f"cannot read the DeepSpeed config {file}: {error}") from None


@contextmanager
def joined(one_model: bool = False) -> Iterator[WorkerGroup]:
    """Meets the other processes that the launcher started, for the time of a `with` block; alone without a launcher.

    Args:
        one_model: As `WorkerGroup`.
    Raises:
        FitPruneError: if they cannot be met, or one model is to be shared by nobody.
    """
    import torch
    import torch.distributed as dist

    from .workers import SINGLE, WorkerGroup

    size, stage = started(), zero_stage()
    if stage not in (0, 3):
        raise FitPruneError(f"ZeRO stage {stage} does not share weights out, so it saves nothing here: use stage 3")
    if one_model and (size == 1 or stage):
        raise FitPruneError(
            "--tensor-parallel shares one model between processes: start them with torchrun --nproc-per-node 2 -m fitprune …, "
            "without DeepSpeed"
        )
    if size == 1 and not stage:
        yield SINGLE
        return
    if own_rank():
        from transformers.utils import logging

        logging.disable_progress_bar()
    try:
        if device := own_device():
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo")
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise FitPruneError(f"the processes of this run cannot meet: {str(error).splitlines()[0]}") from None
    try:
        met = WorkerGroup(dist.get_rank(), dist.get_world_size(), one_model, lockstep=bool(stage), group=group)
        if one_model:  # all sample the same token from the same logits
            torch.manual_seed(met.first(torch.initial_seed))
        yield met
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def existing_group() -> WorkerGroup:
    """The processes that another library brought together, over a gloo group of their own; alone where nobody did.

    All of them have to call it.
    """
    import torch.distributed as dist

    from .workers import SINGLE, WorkerGroup

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return SINGLE
    return WorkerGroup(dist.get_rank(), dist.get_world_size(), group=dist.new_group(backend="gloo", timeout=PATIENCE))


def should_print(error: FitPruneError) -> bool:
    """Whether this process is the one that prints an error: the first of those that met the same one."""
    if started() == 1:
        return True
    import torch.distributed as dist

    from .workers import LostError

    key = f"fitprune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(str(error).encode()).hexdigest()}"
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=TALK)
        return store.add(key, 1) == 1
    except (RuntimeError, ValueError):  # gone with the first process
        return isinstance(error, LostError) or own_rank() == 0
