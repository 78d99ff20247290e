"""What a user says, and what is refused before anything is loaded; no vLLM is needed here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fitprune
from fitprune.errors import FitPruneError, UnsupportedError
from fitprune.vllm import interfaces
from fitprune.vllm.config import WHY, refusals, switch_off
from fitprune.vllm.settings import Settings

RECIPE = fitprune.Recipe.from_deletions([4, 0, 2], visual_tokens=9, score="last")


@pytest.mark.parametrize("given", [None, {}, {"other": 1}, {"fitprune": {"recipe": None}}, SimpleNamespace()])
def test_no_recipe_asks_for_nothing(given: Any) -> None:
    assert Settings.read(given) is None


def test_a_file_or_its_content(tmp_path: Path) -> None:
    RECIPE.save(tmp_path / "a.json")
    by_name = Settings.read({"fitprune": {"recipe": str(tmp_path / "a.json"), "score": "spread theta=0.5", "kv_groups": False, "seed": 3}})
    assert by_name == Settings(RECIPE, "spread theta=0.5", False, 3)
    assert Settings.read({"fitprune": json.loads(json.dumps(by_name.to_dict()))}) == by_name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("r60.json", "must be an object"),
        ({"recipe": "no/such.json"}, "cannot read recipe"),
        ({"recipe": 3}, "a file or the content"),
        ({"recipe": {"schema": "x"}}, "not a recipe"),
        ({"recipes": "a"}, "knows recipe, score"),
        ({"recipe": "RECIPE", "score": "best"}, "unknown score"),
        ({"recipe": "RECIPE", "score": 1}, "must be a name"),
        ({"recipe": "RECIPE", "kv_groups": "yes"}, "must be bool"),
    ],
)
def test_one_line_says_what_is_wrong(given: Any, said: str) -> None:
    if isinstance(given, dict) and given.get("recipe") == "RECIPE":
        given["recipe"] = json.loads(RECIPE.to_bytes())
    with pytest.raises(FitPruneError, match=said) as caught:
        Settings.read({"fitprune": given})
    assert "\n" not in str(caught.value)


def test_survivors_that_stand_for_several_are_refused() -> None:
    recipe = dataclasses.replace(RECIPE, absorb=0.5)
    with pytest.raises(UnsupportedError, match="absorb"):
        Settings.read({"fitprune": {"recipe": json.loads(recipe.to_bytes())}})


@pytest.mark.parametrize("name", WHY)
def test_what_was_asked_for_is_refused_and_a_default_is_switched_off(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    arguments = SimpleNamespace(**dict.fromkeys(WHY))
    switch_off(arguments)
    assert [getattr(arguments, one) for one in WHY] == [False, False]
    assert len(caplog.records) == len(WHY)
    setattr(arguments, name, True)
    with pytest.raises(UnsupportedError, match=WHY[name][0]):
        switch_off(arguments)


def test_the_second_model_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(UnsupportedError, match="Model Runner V2"):
        switch_off(SimpleNamespace(**dict.fromkeys(WHY)))


def config(**changed: Any) -> Any:
    """A configuration that goes along, with some values in the place of others: `model_use_mla=True`."""
    parts: dict[str, dict[str, Any]] = {
        "model": {
            "runner_type": "generate", "is_multimodal_model": True, "architecture": "Some", "is_encoder_decoder": False, "use_mla": False,
            "is_hybrid": False, "is_attention_free": False, "is_mm_prefix_lm": False, "multimodal_config": SimpleNamespace(),
        },
        "parallel": {"enable_dbo": False, "use_ubatching": False},
        "cache": {"kv_sharing_fast_prefill": False, "cache_dtype": "auto"},
        "": {"speculative_config": None},
    }  # fmt: skip
    for name, value in changed.items():
        part, _, field = name.partition("_")
        parts[part][field] = value
    whole = {f"{name}_config": SimpleNamespace(**values) for name, values in parts.items() if name}
    return SimpleNamespace(**whole, **parts[""])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_runner_type": "pooling"}, "pooling"),
        ({"model_is_multimodal_model": False}, "takes no images"),
        ({"model_is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_use_mla": True}, "MLA"),
        ({"model_is_hybrid": True}, "no attention"),
        ({"model_is_mm_prefix_lm": True}, "both ways"),
        ({"parallel_pipeline_parallel_size": 2}, "pipeline parallel"),
        ({"parallel_decode_context_parallel_size": 2}, "decode context parallel"),
        ({"parallel_use_ubatching": True}, "microbatching"),
        ({"_lora_config": object()}, "LoRA"),
        ({"_kv_transfer_config": object()}, "KV connector"),
        ({"_speculative_config": SimpleNamespace(method="eagle")}, "speculation by eagle"),
        ({"cache_cache_dtype": "fp8"}, "cache of fp8"),
        ({"model_multimodal_config": SimpleNamespace(video_pruning_rate=0.5)}, "video_pruning_rate"),
    ],
)
def test_what_does_not_go_along_is_named(changed: dict[str, Any], said: str) -> None:
    ((what, why),) = refusals(config(**changed))
    assert said in f"{what}: {why}"


def test_what_goes_along_is_not_refused() -> None:
    assert not list(refusals(config(_speculative_config=SimpleNamespace(method="ngram"), cache_cache_dtype="bfloat16")))


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, fitprune, fitprune.vllm; sys.exit(any(name.split('.')[0] in ('torch', 'vllm') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_vllm_that_lacks_something_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.1"))
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)  # not there, though it may have been imported before
    with pytest.raises(UnsupportedError, match=r"vLLM 0\.1 lacks vllm\.engine.*it ran with vLLM 0\.32") as caught:
        interfaces.check_version()
    assert "\n" not in str(caught.value)
