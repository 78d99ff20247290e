"""What a launcher says, how processes meet, and which of them prints an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import shared, together

from fitprune.distributed import launch
from fitprune.distributed.launch import joined
from fitprune.distributed.workers import SINGLE, WorkerGroup
from fitprune.errors import FitPruneError


def test_an_error_that_all_meet_is_said_once_and_other_ones_too() -> None:
    def work(met: WorkerGroup) -> list[bool]:
        found = [launch.should_print(FitPruneError("no such file"))]
        found.append(launch.should_print(FitPruneError(f"no device {met.rank}")))
        met.gather(b"")  # the store is the first one's
        return found

    said = together(3, shared(work))
    assert sum(one[0] for one in said) == 1
    assert all(one[1] for one in said)


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.started(), launch.own_rank(), launch.own_device()) == (1, 0, None)
    with joined() as met:
        assert met is SINGLE
    for told in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "many", "RANK": "3"}, {"WORLD_SIZE": "2", "RANK": "x"}):
        with monkeypatch.context() as patch:
            for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **told}.items():
                patch.setenv(name, value)
            assert (launch.started(), launch.own_rank()) == (1, 0), told


@pytest.mark.parametrize(
    ("environment", "one_model", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False, "use stage 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, False, "use stage 3"),
        ({}, True, "torchrun"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "WORLD_SIZE": "2"}, True, "torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no"}, False, "cannot meet"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}, False, "nowhere.json"),
    ],
)
def test_what_cannot_be_shared_is_one_line(
    environment: dict[str, str], one_model: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FitPruneError, match=said) as error, joined(one_model):
        pass
    assert "\n" not in str(error.value)


def test_the_stage_of_a_deepspeed_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ds.json"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    file.write_text('{"zero_optimization": {"stage": 3}}')
    assert launch.zero_stage() == 3
    for torn in ("[", "[]", '{"zero_optimization": []}'):
        file.write_text(torn)
        with pytest.raises(FitPruneError, match="DeepSpeed config"):
            launch.zero_stage()
