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

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import FitPruneError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

DONE, FAILED = b"+", b"-"  # what the first byte of a message says of the rest: a result, or an error's text
GONE = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused")  # gloo's words for a process that has left


class LostError(FitPruneError):
    """Another process of the run is gone."""


def to_json(value: Any) -> bytes:
    """What travels unless a caller says otherwise."""
    return json.dumps(value).encode()


@dataclass(frozen=True)
class WorkerGroup:
    """The processes of this run, seen from one of them.

    Attributes:
        rank: Which one this is, from 0; the first writes files and prints.
        size: How many there are.
        one_model: They hold one model together (tensor parallelism), so each does every item.
        lockstep: Forwards are collective (ZeRO-3), so each has to do as many as the others.
        group: The process group they talk over, None for the default one.
        held: Tensors of the last exchange. A thread of gloo's drops them some time after it; if it were the last to hold them it
            would need Python's lock, and PyTorch 2.6 waits for that thread with the lock held when the group is freed.
    """

    rank: int = 0
    size: int = 1
    one_model: bool = False
    lockstep: bool = False
    group: Any = None
    held: list[Any] = field(default_factory=list, repr=False, compare=False)  # after `group`, and so freed after it

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
        with detect_lost_peer():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            length = torch.tensor([len(mine)])
            dist.all_gather(lengths, length, group=self.group)
            longest = max(int(length) for length in lengths)
            padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
            found = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(found, padded, group=self.group)
            self.held[:] = [lengths, length, padded, found]
        return [tensor[: int(length)].numpy().tobytes() for tensor, length in zip(found, lengths, strict=True)]

    def first(
        self, work: Callable[[], Result], encode: Callable[[Result], bytes] = to_json, decode: Callable[[bytes], Result] = json.loads
    ) -> Result:
        """The first process does it, and all get what came of it.

        Raises:
            FitPruneError: in all of them, if it did in the first.
        """
        if self.size == 1:
            return work()
        said = _attempt(lambda: encode(work())) if self.leads else b""
        with detect_lost_peer():
            length = torch.tensor([len(said)])
            dist.broadcast(length, 0, group=self.group)
            data = torch.frombuffer(bytearray(said), dtype=torch.uint8) if self.leads else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self.group)
            self.held[:] = [length, data]
        return decode(_opened(data.numpy().tobytes()))

    def check_same(self, what: str, data: bytes) -> None:
        """Makes sure that all processes have read the same.

        Args:
            what: Its name in the error: "questions".
            data: What stands for it, of any length.
        Raises:
            FitPruneError: in all of them, if they have not.
        """
        if self.size > 1 and len(set(self.gather(hashlib.sha256(data).digest()))) > 1:
            raise FitPruneError(
                f"the processes of this run were given different {what}: use the same command and the same files on every machine"
            )

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
            prepare: What needs no forward of the model, such as reading images.
        Raises:
            FitPruneError: in all processes, at the item where one of them met it; the results before it have come.
        """
        if self.size == 1:
            for item in items:
                yield work(prepare(item))
            return
        if self.one_model:
            for item in items:
                ready = self.ready(prepare, item)
                with detect_lost_peer():
                    result = work(ready)
                yield result
            return
        for start in range(0, len(items), self.size):
            here = items[start : start + self.size]
            if self.lockstep:
                said = DONE + encode(work(self.ready(prepare, here[min(self.rank, len(here) - 1)])))
            elif self.rank < len(here):
                said = _attempt(partial(_whole, here[self.rank], prepare, work, encode))
            else:
                said = b""
            for message in self.gather(said)[: len(here)]:
                yield decode(_opened(message))

    def ready(self, prepare: Callable[[Item], Prepared], item: Item) -> Prepared:
        """A prepared item, once all processes have theirs: nobody begins a forward that another will not join.

        Raises:
            FitPruneError: in all of them, if it did in one.
        """
        if self.size == 1:
            return prepare(item)
        made: list[Prepared] = []

        def attempt() -> bytes:
            made.append(prepare(item))
            return b""

        for message in self.gather(_attempt(attempt)):
            _opened(message)
        return made[0]


def _whole(item: Item, prepare: Callable[[Item], Prepared], work: Callable[[Prepared], Result], encode: Callable[[Result], bytes]) -> bytes:
    return encode(work(prepare(item)))


SINGLE = WorkerGroup()


@contextmanager
def detect_lost_peer() -> Iterator[None]:
    """Says so when another process has left in the middle of an exchange.

    Raises:
        LostError: then; any other error passes.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in GONE):
            raise
        raise LostError("another process of this run has stopped: what was written stays, run the same command again to continue") from None


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
