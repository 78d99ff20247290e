"""Time and memory of a piece of work: alternating rounds, medians with quartiles, peaks.

Variants that are compared take turns within each round, in an order that is drawn anew for every round (the same in every run). So a
machine that is slow for a while slows all of them alike, and no variant always runs after the same other one, whose caches it finds.
A speed-up is the median over rounds of the quotient of two times of the same round, not the quotient of two medians.

    pytest tests/bench/test_bench_clock.py
"""

from __future__ import annotations

import ctypes
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")
Result = TypeVar("Result")
Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)


def faster(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times faster: quotients of the times of the same round, [round] each."""
    return Spread.of([before / after for before, after in zip(slow, fast, strict=True)])


def now(device: torch.device) -> float:
    """Seconds since some fixed time, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds that `work` takes, and what it returns."""
    start = now(device)
    result = work()
    return now(device) - start, result


def repeated(work: Work, rounds: int, device: torch.device) -> Spread:
    """Seconds that `work` takes, over so many rounds after one that warms up."""
    return Spread.of([timed(work, device)[0] for _ in range(1 + rounds)][1:])


def alternate(variants: Mapping[Key, Work], rounds: int, device: torch.device) -> dict[Key, list[float]]:
    """Times of each variant, [round]; in every round each of them once, in an order of its own."""
    order = random.Random(0)
    times: dict[Key, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in order.sample(list(variants), len(variants)):
            times[name].append(timed(variants[name], device)[0])
    return times


class Stopwatch:
    """Adds up what functions take, by label; time in a function that another one calls counts for the inner one alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}
        self._inner: list[float] = []

    def wrap(self, label: str, function: Callable[..., Result]) -> Callable[..., Result]:
        """The same function, timed."""

        def wrapped(*args: Any, **kwargs: Any) -> Result:
            self._inner.append(0.0)
            start = now(self.device)
            result = function(*args, **kwargs)
            whole = now(self.device) - start
            inner = self._inner.pop()
            self.spent[label] = self.spent.get(label, 0.0) + whole - inner
            if self._inner:
                self._inner[-1] += whole
            return result

        return wrapped


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """Memory that `work` needs on top of what is held before it, its result included; None where the system does not tell.

    On a GPU by PyTorch's allocator; on a CPU by the growth of the process (Linux).
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that it does not hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
        before = proc_bytes("/proc/self/status", "VmRSS")
        work()
        return proc_bytes("/proc/self/status", "VmHWM") - before
    except OSError:
        return None


def proc_bytes(file: str, name: str) -> int:
    """A size in one of Linux's status files, such as MemAvailable in /proc/meminfo; OSError where there is no such file or line."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {file}")
