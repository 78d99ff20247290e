"""Several processes that share one run: who does which item, and how the results come together in order.

`torchrun` or `accelerate launch` starts the same command once per device, on one machine or many. Items (batches of
questions) are dealt out in turn: of every round each process does one, then all exchange what came of it, and the first
process writes. So a file at any moment is the one that a single process would have written so far, whatever the number of
processes; a run that was killed goes on with the same number, another, or one; and the machines need no common folder. What a
round costs is waiting for its slowest item. In a run under ZeRO-3 or tensor parallelism forwards are collective anyway.

Results travel as JSON and safetensors over gloo, never as pickles.

Left out: tensor parallelism and data parallelism at once.

    torchrun --nproc-per-node 2 -m fitprune eval --limit 20
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .errors import FitPruneError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

DONE, FAILED = b"+", b"-"  # what the first byte of a message says of the rest: a result, or an error's text
TALK = timedelta(seconds=10)  # to wait for the store when an error is to be said


class LostError(FitPruneError):
    """Another process of the run is gone."""


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@dataclass(frozen=True)
class Ranks:
    """The processes of this run, seen from one of them.

    Attributes:
        rank: Which one this is, from 0; the first writes files and prints.
        size: How many there are.
        one_model: They hold one model together (tensor parallelism), so each does every item.
        lockstep: Forwards are collective (ZeRO-3), so each has to do as many as the others.
        group: The process group they talk over, None for the default one.
    """

    rank: int = 0
    size: int = 1
    one_model: bool = False
    lockstep: bool = False
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def gather(self, data: bytes) -> list[bytes]:
        """What every process gave, in their order.

        Raises:
            LostError: when one of them is gone.
        """
        if self.size == 1:
            return [data]
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        with _noticed():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(mine)]), group=self.group)
            longest = max(int(length) for length in lengths)
            padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded, group=self.group)
        return [tensor[: int(length)].numpy().tobytes() for tensor, length in zip(found, lengths, strict=True)]

    def first(
        self,
        work: Callable[[], Result],
        encode: Callable[[Result], bytes] = to_json,
        decode: Callable[[bytes], Result] = json.loads,
    ) -> Result:
        """The first process does it, and all get what came of it.

        Raises:
            FitPruneError: in all of them, if it did in the first.
        """
        if self.size == 1:
            return work()
        said = _attempt(lambda: encode(work())) if self.leads else b""
        with _noticed():
            length = torch.tensor([len(said)])
            dist.broadcast(length, 0, group=self.group)
            data = (
                torch.frombuffer(bytearray(said), dtype=torch.uint8)
                if self.leads
                else torch.empty(int(length), dtype=torch.uint8)
            )
            dist.broadcast(data, 0, group=self.group)
        return decode(_opened(data.numpy().tobytes()))

    def in_order(
        self,
        items: Sequence[Item],
        prepare: Callable[[Item], Prepared],
        work: Callable[[Prepared], Result],
        encode: Callable[[Result], bytes] = to_json,
        decode: Callable[[bytes], Result] = json.loads,
    ) -> Iterator[Result]:
        """`work(prepare(item))` of every item, in order and in every process, each having done its share.

        Args:
            prepare: What needs no forward of the model, such as reading pictures.
        Raises:
            FitPruneError: in all processes, at the item where one of them met it; the results before it have come.
        """
        if self.size == 1 or self.one_model:
            for item in items:
                yield work(prepare(item))
            return
        for start in range(0, len(items), self.size):
            here = items[start : start + self.size]
            mine = here[self.rank] if self.rank < len(here) else here[-1] if self.lockstep else None
            if mine is None:
                said = b""
            elif self.lockstep:  # nobody may begin a forward that another will not join
                ready: list[Prepared] = []
                for other in self.gather(_attempt(lambda mine=mine, ready=ready: ready.append(prepare(mine)) or b"")):  # type: ignore[misc]
                    _opened(other)
                said = DONE + encode(work(ready[0]))
            else:
                said = _attempt(lambda mine=mine: encode(work(prepare(mine))))  # type: ignore[misc]
            for message in self.gather(said)[: len(here)]:
                yield decode(_opened(message))


ALONE = Ranks()


@contextmanager
def _noticed() -> Iterator[None]:
    """Says so when another process has left in the middle of an exchange."""
    try:
        yield
    except RuntimeError:  # gloo's word for a connection that was closed at the other end
        raise LostError(
            "another process of this run has stopped: what was written stays, run the same command again to continue"
        ) from None


def _attempt(work: Callable[[], bytes]) -> bytes:
    """The message that tells the others what came of something."""
    try:
        return DONE + work()
    except LostError:
        raise
    except FitPruneError as error:
        return FAILED + str(error).encode()


def _opened(message: bytes) -> bytes:
    if message[:1] == FAILED:
        raise FitPruneError(message[1:].decode())
    return message[1:]


def started() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    said = os.environ.get("WORLD_SIZE", "")
    return int(said) if said.isdecimal() and int(said) else 1


def own_rank() -> int:
    """Which of them this is, as the launcher says."""
    return int(os.environ.get("RANK", "0")) if started() > 1 else 0


def own_device() -> str | None:
    """The GPU that the launcher means for this process; None where it leaves the choice."""
    if started() == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


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
def joined(one_model: bool = False) -> Iterator[Ranks]:
    """Meets the other processes that the launcher started, for the time of a `with` block; alone without a launcher.

    Args:
        one_model: As `Ranks`.
    Raises:
        FitPruneError: if they cannot be met, or one model is to be shared by nobody.
    """
    size, stage = started(), zero_stage()
    if stage not in (0, 3):
        raise FitPruneError(f"ZeRO stage {stage} does not share weights out, so it saves nothing here: use stage 3")
    if one_model and (size == 1 or stage):
        raise FitPruneError(
            "--tensor-parallel shares one model between processes: start them with torchrun --nproc-per-node 2 -m fitprune …, "
            "without DeepSpeed"
        )
    if size == 1 and not stage:
        yield ALONE
        return
    if own_rank():
        from transformers.utils import logging

        logging.disable_progress_bar()
    try:
        if device := own_device():
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo")
    except (RuntimeError, ValueError) as error:
        raise FitPruneError(f"the processes of this run cannot meet: {str(error).splitlines()[0]}") from None
    try:
        met = Ranks(dist.get_rank(), dist.get_world_size(), one_model, lockstep=bool(stage))
        if one_model:  # who draws lots over the same logits has to draw the same
            torch.manual_seed(met.first(torch.initial_seed))
        yield met
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def company() -> Ranks:
    """The processes that another library brought together, over a gloo group of their own; alone where nobody did.

    All of them have to call it.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), group=dist.new_group(backend="gloo"))


def says(error: FitPruneError) -> bool:
    """Whether this process is the one that prints an error: the first of those that met the same one."""
    if started() == 1:
        return True
    if isinstance(error, LostError):
        return own_rank() == 0
    key = f"fitprune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{hashlib.sha256(str(error).encode()).hexdigest()}"
    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=TALK)
        return store.add(key, 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return own_rank() == 0
