"""What `import fitprune` brings: public names are what their modules define, whatever was imported before; no torch until one is used."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import fitprune


def test_verbs_stay_verbs_after_their_modules_were_imported() -> None:
    for name in ("fit", "observe", "prune", "decoder.attach", "studies.replay", "families.loading"):
        importlib.import_module(f"fitprune.{name}")
    for name in fitprune.__all__:
        assert not isinstance(getattr(fitprune, name), ModuleType), name
    assert fitprune.attach is importlib.import_module("fitprune.prune").attach
    assert set(fitprune.__all__) <= set(dir(fitprune))


@pytest.mark.parametrize("name", ["scores", "recipe", "errors", "embedded", "kernels", "families", "stats"])
def test_a_module_is_reached_through_the_package(name: str) -> None:
    code = f"import fitprune; print(fitprune.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"fitprune.{name}\n", done.stderr


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'wish'"):
        fitprune.wish  # noqa: B018
    with pytest.raises(ImportError):
        exec("from fitprune import wish")


def test_arguments_of_the_verbs() -> None:
    """A change here is a change for everybody who uses them: say it in the changelog."""

    def arguments(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert arguments(fitprune.observe) == ["model", "samples", "name", "total", "progress", "prepare"]
    by = ["by", "judge", "scores", "absorb", "progress"]  # keywords only
    assert arguments(fitprune.fit) == ["stats", "cost", "reduction_ratio", "criterion", *by]
    assert arguments(fitprune.fit_all) == ["stats", "cost", "ratios", "criterion", *by]
    assert arguments(fitprune.prune) == arguments(fitprune.attach) == ["model", "recipe", "score", "visual_mask", "seed", "graphs"]
    assert arguments(fitprune.replay) == ["model", "samples", "reduction_ratio", "cost", "progress"]
    assert arguments(fitprune.load) == [
        *("path", "model_base", "vision_tower", "template", "device", "dtype", "attn", "device_map", "tensor_parallel")
    ]


def test_nothing_heavy_comes_with_it() -> None:
    code = "import sys, fitprune; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
