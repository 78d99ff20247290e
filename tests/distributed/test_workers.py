"""Processes of one run: every item once, in order, errors known to all, nobody left hanging."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import shared, together

from fitprune.distributed.launch import joined, should_print
from fitprune.distributed.workers import SINGLE, LostError, WorkerGroup, detect_lost_peer
from fitprune.errors import FitPruneError

CASES = [(0, None), (1, None), (7, None), (6, 4), (5, 0)]  # number of items, the one that fails


def deal(met: WorkerGroup, count: int, failing: int | None, where: str) -> tuple[list[int], list[int], list[int], str | None]:
    """Items prepared here, items run here, results that came, and the error."""
    prepared: list[int] = []
    ran: list[int] = []
    came: list[int] = []

    def prepare(item: int) -> int:
        prepared.append(item)
        if where == "prepare" and item == failing:
            raise FitPruneError(f"no {item}")
        return item

    def work(item: int) -> int:
        if where == "work" and item == failing:
            raise FitPruneError(f"no {item}")
        ran.append(item)
        return item * item

    try:
        for result in met.in_order(range(count), prepare, work):
            came.append(result)
            time.sleep(random.Random(met.rank).random() / 200)
    except FitPruneError as error:
        return prepared, ran, came, str(error)
    return prepared, ran, came, None


@pytest.mark.parametrize("size", [2, 3])
def test_each_item_once_and_all_results_in_order(size: int) -> None:
    def work(met: WorkerGroup) -> list[Any]:
        return [deal(met, count, failing, where) for count, failing in CASES for where in ("prepare", "work")]

    found = together(size, shared(work))
    cases = [(list(range(count)), failing) for count, failing in CASES for _ in ("prepare", "work")]
    for case, (items, failing) in enumerate(cases):
        came, errors = zip(*[(one[case][2], one[case][3]) for one in found], strict=True)
        until = len(items) if failing is None else failing
        assert list(came) == [[item * item for item in items[:until]]] * size
        assert list(errors) == [None if failing is None else f"no {failing}"] * size
        done = sorted(item for one in found for item in one[case][1])
        assert len(set(done)) == len(done)
        assert set(items[:until]) <= set(done)


def test_alone_everything_is_done_here() -> None:
    assert deal(SINGLE, 4, None, "work") == ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 4, 9], None)
    assert SINGLE.ready(str, 3) == "3"
    assert list(SINGLE.in_order(iter("ab"), str, str.upper)) == ["A", "B"]  # type: ignore[arg-type]
    value = object()
    assert SINGLE.first(lambda: value) is value  # not by way of JSON
    assert SINGLE.gather(b"x") == [b"x"]


def test_in_lockstep_all_run_as_often_and_nobody_begins_what_another_cannot() -> None:
    def work(rank: int) -> Any:
        with joined() as met:
            assert met.lockstep
            whole = deal(met, 7, None, "work")
            torn = deal(met, 7, 4, "prepare")
        return whole, torn

    config = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    found = together(3, work, **config)
    assert [len(whole[1]) for whole, _ in found] == [3, 3, 3]  # 7 items in 3 rounds, the last of one item
    assert all(whole[2] == [n * n for n in range(7)] for whole, _ in found)
    assert all(torn[1] == [rank] and torn[3] == "no 4" for rank, (_, torn) in enumerate(found))


def test_the_first_does_it_for_all() -> None:
    def work(met: WorkerGroup) -> Any:
        def once() -> dict[str, Any]:
            assert met.leads
            return {"a": [1, None]}

        def fails() -> int:
            raise FitPruneError("disk full")

        value = met.first(once)
        with pytest.raises(FitPruneError, match="disk full"):
            met.first(fails)
        return value, met.gather(b"x" * met.rank)

    for value, gathered in together(3, shared(work)):
        assert value == {"a": [1, None]}
        assert gathered == [b"", b"x", b"xx"]


@pytest.mark.rest
@pytest.mark.parametrize("gone", [0, 1])
def test_a_killed_process_is_noticed(gone: int, tmp_path: Path) -> None:
    def work(met: WorkerGroup) -> Any:
        def run(item: int) -> int:
            if item >= 4 and met.rank == gone:
                os.kill(os.getpid(), signal.SIGKILL)
            return item

        came = []
        try:
            for result in met.in_order(range(9), int, run):
                came.append(result)
        except LostError as error:
            return came, str(error), should_print(error)
        return None

    found = together(2, shared(work))
    assert found[gone] is None
    came, said, prints = found[1 - gone]
    assert came == [0, 1, 2, 3]
    assert "run the same command again" in said
    assert prints  # nobody else is there to say it


@pytest.mark.parametrize("alike", [True, False])
def test_what_was_read_is_compared(alike: bool) -> None:
    def work(met: WorkerGroup) -> str | None:
        try:
            met.check_same("questions", b"the same" if alike or met.leads else b"others")
        except FitPruneError as error:
            return str(error)
        return None

    said = together(2, shared(work))
    assert said[0] == said[1]
    assert (said[0] is None) == alike
    assert alike or "different questions" in str(said[0])


def test_with_one_model_nobody_begins_what_another_cannot() -> None:
    def work(rank: int) -> Any:
        torch.manual_seed(rank)
        with joined(one_model=True) as met:
            return deal(met, 3, 1 if met.leads else None, "prepare"), torch.rand(2).tolist()

    (one, drawn), (other, also) = together(2, work)
    assert one[1] == other[1] == [0]
    assert one[3] == other[3] == "no 1"
    assert drawn == also  # the same lots


def test_other_errors_of_an_exchange_are_not_taken_for_a_loss() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), detect_lost_peer():
        raise RuntimeError("out of memory")
    with pytest.raises(LostError), detect_lost_peer():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
