"""What a command sets before torch is there: threads that wait without spinning, as many as a container may use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fitprune import entry


def test_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "cpu_quota", lambda: None)
    for given, expected in (
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "9"}, {"GOMP_SPINCOUNT": "9"}),
    ):
        environment = dict(given)
        entry.share_cores(environment, ())
        assert environment == expected
    late: dict[str, str] = {}
    entry.share_cores(late, ("torch",))
    assert late == {}


def test_a_containers_share_bounds_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, expected in (("max 100000", None), ("150000 100000", 2), ("5000 100000", 1), ("torn", None), ("1 0", None)):
        (tmp_path / "cpu.max").write_text(content)
        assert entry.cpu_quota(tmp_path / "cpu.max") == expected
    assert entry.cpu_quota(tmp_path / "none") is None
    monkeypatch.setattr(entry.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(entry, "cpu_quota", lambda: 3)
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    entry.share_cores(environment, ())
    assert environment["OMP_NUM_THREADS"] == "3"
    environment["OMP_NUM_THREADS"] = "5"
    entry.share_cores(environment, ())
    assert environment["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("module", ["fitprune.cli", pytest.param("fitprune.evaluation.loader", marks=pytest.mark.rest), "fitprune.cli.fit"])
def test_every_way_into_a_command_sets_it_before_torch_is_there(module: str) -> None:
    code = (
        "import builtins, os, sys\nreal = builtins.__import__\n"
        "def spy(name, *rest, **more):\n"
        "    if name == 'torch' and 'torch' not in sys.modules: assert os.environ.get('OMP_WAIT_POLICY') == 'PASSIVE'\n"
        "    return real(name, *rest, **more)\n"
        f"builtins.__import__ = spy\nimport {module}, torch"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(entry.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
