"""The benchmark's clock: whose turn it is, what counts for whom, what a spread is. No test here depends on speed."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest
import torch

from fitprune.bench import clock
from fitprune.bench.clock import Spread, Stopwatch, alternate, faster, peak_bytes, proc_bytes, timed

CPU = torch.device("cpu")


class Clock:
    """Stands for the computer's: time passes when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 0.0
        monkeypatch.setattr(clock, "now", lambda device: self.time)

    def passes(self, seconds: float) -> None:
        self.time += seconds


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(median=3.0, low=2.0, high=4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    values = torch.rand(30).tolist()
    assert Spread.of(values).median == pytest.approx(statistics.median(values))
    assert Spread.of(values).high == pytest.approx(torch.tensor(values).quantile(0.75).item())


def test_a_speed_up_compares_times_of_the_same_round() -> None:
    gain = faster([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])  # a machine that was slow in the second round
    assert gain.median == 3.0
    assert (gain.low, gain.high) == (2.5, 3.5)


def test_variants_take_turns_in_an_order_that_every_round_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    time, order = Clock(monkeypatch), ""

    def variant(name: str, seconds: float) -> None:
        nonlocal order
        order += name
        time.passes(seconds)

    variants = {"a": lambda: variant("a", 1), "b": lambda: variant("b", 2), "c": lambda: variant("c", 4)}
    assert alternate(variants, 4, CPU) == {"a": [1] * 4, "b": [2] * 4, "c": [4] * 4}
    turns = [order[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)  # each once in every round
    assert len({follower for turn in turns for follower in pairwise(turn)}) > 2  # not always after the same
    again, order = order, ""
    alternate(variants, 4, CPU)
    assert order == again  # the same in every run


def test_time_in_an_inner_function_counts_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    watch = Stopwatch(CPU)
    score = watch.wrap("scoring", lambda: time.passes(5))

    def choose() -> str:
        time.passes(1)
        score()
        score()
        time.passes(2)
        return "chosen"

    assert watch.wrap("selection", choose)() == "chosen"
    watch.wrap("selection", lambda: time.passes(4))()
    assert watch.spent == {"scoring": 10, "selection": 7}


def test_timed_returns_what_the_work_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    assert timed(lambda: (time.passes(3), "result")[1], CPU) == (3, "result")


def test_the_peak_holds_what_the_work_allocates() -> None:
    megabytes = 64
    peak = peak_bytes(lambda: torch.ones(megabytes << 18), CPU)  # float32, every page touched
    if peak is None:
        pytest.skip("this system does not tell")
    assert 0.9 * megabytes < peak / 2**20 < 3 * megabytes


def test_a_size_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError):
        proc_bytes("/no/such/file", "VmRSS")
