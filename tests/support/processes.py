"""Several processes for a test, as a launcher would start them, but forked: nothing has to be imported again.

results = together(3, lambda rank: rank * 2)        # [0, 2, 4]
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from fitprune.distributed.launch import joined
from fitprune.distributed.workers import WorkerGroup

ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "DS_ACCELERATOR": "cpu"}
TIMEOUT = 120  # seconds until a hanging process is a failed test


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(size: int, work: Callable[[int], Any], **environment: str) -> list[Any]:
    """What `work(rank)` returned in each process; None for one that was killed. An exception in any fails the test.

    Skips the test where a GPU is seen: CUDA does not survive a fork.
    """
    if torch.cuda.is_available():
        pytest.skip("forks processes: run it with CUDA_VISIBLE_DEVICES= (nothing) as well")
    context = multiprocessing.get_context("fork")
    port = free_port()
    with TemporaryDirectory() as folder:

        def run(rank: int) -> None:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **environment,
            )  # fmt: skip
            torch.set_num_threads(1)  # makes torch's pool anew before several threads ask for it at once
            try:
                if "ACCELERATE_USE_DEEPSPEED" in environment and find_spec("deepspeed"):
                    import deepspeed

                    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does it, and nothing is compiled for it
                result = True, work(rank)
            except BaseException:
                result = False, traceback.format_exc()
            Path(folder, str(rank)).write_bytes(pickle.dumps(result))
            os._exit(0)

        processes = [context.Process(target=run, args=(rank,), daemon=True) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        assert not hanging, f"processes {hanging} of {size} hang"
        found = []
        for rank in range(size):
            path = Path(folder, str(rank))
            done, value = pickle.loads(path.read_bytes()) if path.exists() else (True, None)
            assert done, f"process {rank} of {size}:\n{value}"
            found.append(value)
        return found


def shared(work: Callable[[WorkerGroup], Any]) -> Callable[[int], Any]:
    """For `together`: work with the ranks that met."""

    def run(rank: int) -> Any:
        torch.manual_seed(rank)
        with joined() as met:
            assert (met.rank, met.leads) == (rank, rank == 0)
            return work(met)

    return run
