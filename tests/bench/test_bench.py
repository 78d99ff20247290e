"""`fitprune bench`: shapes and recipes, what a run's results say, that each flag reaches what it should. Not speed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fitprune import bench
from fitprune.bench import variants
from fitprune.bench.clock import Spread
from fitprune.bench.measure import measure
from fitprune.bench.plot import plot
from fitprune.bench.report import report
from fitprune.bench.shapes import SHAPES, Shape, Tower, recipe_for
from fitprune.cli import main
from fitprune.cost import CostModel
from fitprune.errors import FitPruneError
from fitprune.recipe import Recipe
from fitprune.tables import aligned

COST = CostModel(layers=3, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8)
SHAPE = Shape(COST, before=4, visual=30, after=6, recipes="none")
QUICK: dict[str, Any] = {"repeats": 2, "device": "cpu", "decode_tokens": 2, "methods": ["paper"]}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's default shape, made so small that a test may run it."""
    monkeypatch.setitem(SHAPES, "small", SHAPE)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks `measure` for, instead of measuring."""
    seen: dict[str, Any] = {}

    def stop(shape: Shape, ratios: list[float], **given: Any) -> None:
        seen.update(shape=shape, ratios=ratios, **given)
        raise FitPruneError("enough seen")

    monkeypatch.setattr("fitprune.bench.measure.measure", stop)
    return seen


# Shapes and recipes.


@pytest.mark.parametrize(("name", "ratio"), [("small", 0.6), ("small-long", 0.6), ("llava-hr-7b", 0.4), ("llava-next-7b", 0.4)])
def test_the_ideal_of_a_published_recipe_is_what_its_layers_do(name: str, ratio: float) -> None:
    shape = SHAPES[name]
    recipe = recipe_for(shape, ratio)
    assert recipe == Recipe.published(shape.recipes, ratio)
    assert recipe.visual_tokens == shape.visual
    cost, visual = shape.cost, shape.visual
    assert recipe.alive(visual)[-1] < visual

    def flops(deletions: list[int]) -> float:
        """Multiply-accumulates by hand: projections and attention for what enters a layer, the rest for what leaves it."""
        tokens, total, width = 35 + visual + 64, 0, cost.hidden
        for gone in deletions:
            total += 3 * tokens * width**2 + 2 * tokens**2 * width
            tokens -= gone
            total += tokens * width**2 + 3 * tokens * width * cost.intermediate
        return total + width * 32000  # the output layer, for the last token

    found = cost.speedup(recipe.alive(visual), visual, shape.text)
    assert found == pytest.approx(flops([0] * 32) / flops(recipe.deletions(visual)))
    if name == "small":
        assert found == pytest.approx(2.11, abs=0.005)  # as measured and reckoned for the authors' code


@pytest.mark.parametrize("ratio", [0.33, 0.6, 0.75])
def test_without_a_published_recipe_one_step_meets_the_budget(ratio: float) -> None:
    shape = Shape(CostModel(40, 64, 128, 4, 4, 16), 3, 100, 5, "llava-v1.5-7b")
    recipe = recipe_for(shape, ratio)
    assert ratio <= shape.cost.visual_reduction(recipe.deletions(100), 100) <= ratio + 0.001


def test_a_recipe_for_other_sizes_is_refused(tmp_path: Path) -> None:
    Recipe.from_deletions([3, 0], visual_tokens=30).save(tmp_path / "two.json")
    with pytest.raises(FitPruneError, match="for 2 layers but the model has 3"):
        recipe_for(SHAPE, 0, tmp_path / "two.json")


# One run.


def test_a_run_fills_every_result() -> None:
    figures = measure(SHAPE, [0.5, 0.5, 0.3], baselines=["eager-maps"], find_break_even=True, batch=2, **QUICK)
    assert [row["name"] for row in figures["recipes"]] == ["50%", "30%"]
    assert figures["dense"].keys() == {"dense"}
    assert (figures["tokens"], figures["batch"], figures["threads"]) == ([4, 30, 6], 2, torch.get_num_threads())
    assert figures["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    for row, ratio in zip(figures["recipes"], (0.5, 0.3), strict=True):
        assert ratio <= row["visual_reduction"] < ratio + 0.05
        assert row["alive"] == 30 - sum(row["deletions"])
        assert row["ideal_speedup"] == pytest.approx(1 / (1 - row["prefill_reduction"]))
        assert row["prefill"].keys() == {"pruned", "bare", "eager-maps"}
        for variant in row["prefill"].values():
            assert len(variant["times"]) == 2
            assert variant["share_of_ideal"]["dense"] == pytest.approx(variant["speedup"]["dense"]["median"] / row["ideal_speedup"])
            assert variant["cache_bytes"] == row["cache_bytes_by_cost"] < figures["dense_cache_bytes_by_cost"]
        cost = row["overhead"]
        assert cost["total"]["median"] > cost["scoring"]["median"] > 0
        assert cost["step"]["token_layers"] > 0
        assert cost["step"]["seconds"] == pytest.approx(cost["total"]["median"] / row["steps"])
        assert row["break_even"]["limit"] == 60
    assert figures["dense"]["dense"]["cache_bytes"] == figures["dense_cache_bytes_by_cost"]
    assert figures["decode"].keys() == {"dense", "50%", "30%"}
    assert json.loads(json.dumps(figures)) == figures
    text = report({"shape": "tiny", **figures})
    for said in ("50% (0.5; one step; score fitprune)", "ideal (FLOPs)", "eager-maps", "authors' way", "a step costs", "decode, per token"):
        assert said in text
    assert "pays on this device" in text or "does not pay" in text


def test_the_recommended_method_runs_beside_the_papers() -> None:
    """Two steps ranked by `spread`, with an ideal, a bare run and a scoring share of its own."""
    shape = Shape(CostModel(layers=6, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8), 4, 30, 6, "none")
    figures = measure(shape, [0.5, 0.4], skip=["memory", "decode", "vision"], **{**QUICK, "methods": None})
    assert [row["name"] for row in figures["recipes"]] == ["50%", "40%", "50% recommended", "40% recommended"]
    paper, _, ours, _ = figures["recipes"]
    assert (paper["score"], ours["score"], ours["steps"]) == ("fitprune", "spread", 2)
    assert [layer for layer, gone in enumerate(ours["deletions"]) if gone] == [1, 3]
    for row in (paper, ours):
        assert row["visual_reduction"] >= 0.5
        assert row["ideal_speedup"] == pytest.approx(1 / (1 - row["prefill_reduction"]))
        assert row["overhead"]["scoring_share"] > 0
        pruned, bare = row["prefill"]["pruned"], row["prefill"]["bare"]
        assert bare["share_of_bare"] == 1
        quotients = sorted(b / p for b, p in zip(bare["times"], pruned["times"], strict=True))
        assert quotients[0] <= pruned["share_of_bare"] <= quotients[-1]
    text = report({"shape": "tiny", **figures})
    assert "50% recommended (0.5; 2 steps from layer 1; score spread): 2 steps" in text
    assert f"{ours['prefill']['pruned']['share_of_bare']:.1%}" in text
    assert f"{ours['overhead']['scoring_share']:.1%}" in text


def test_which_methods_run(tmp_path: Path) -> None:
    shape = Shape(CostModel(layers=6, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8), 4, 30, 6, "none")
    Recipe.from_deletions([0, 15, 0, 0, 0, 0], visual_tokens=30).save(tmp_path / "own.json")

    def names(**given: Any) -> list[tuple[str, str]]:
        found = measure(shape, [0.5], skip=bench.BREAKDOWN, **{**QUICK, "repeats": 1, "methods": None, **given})
        return [(row["name"], row["score"]) for row in found["recipes"]]

    own = {"recipe_file": tmp_path / "own.json"}
    assert names(**own) == [("own", "fitprune")]
    assert names(score="last") == [("50%", "last")]
    assert names(methods=["recommended"]) == [("50% recommended", "spread")]
    assert names(methods=bench.METHODS, score="last", **own) == [("own", "last"), ("own recommended", "spread")]
    with pytest.raises(FitPruneError, match="no schedule at 50% is called '3 steps': use one of"):
        names(schedule="3 steps")


def test_a_recommended_method_out_of_reach_is_an_error_if_asked_for_else_a_note() -> None:
    figures = measure(SHAPE, [0.6], skip=bench.BREAKDOWN, **{**QUICK, "methods": None})
    assert [row["name"] for row in figures["recipes"]] == ["60%"]
    (note,) = figures["notes"]
    assert "60% recommended: left out" in note
    with pytest.raises(FitPruneError, match="60%"):
        measure(SHAPE, [0.6], skip=bench.BREAKDOWN, **{**QUICK, "methods": ["recommended"]})


def test_speed_ups_are_against_the_best_dense_variant_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"dense": 4.0, "compiled": 3.0, "pruned": 2.0, "bare": 1.5, "eager-maps": 5.0}
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    monkeypatch.setattr(
        "fitprune.bench.measure.alternate", lambda variants, rounds, device: {key: [seconds[key[1]]] * rounds for key in variants}
    )
    figures = measure(SHAPE, [0.5], baselines=["compiled", "eager-maps"], skip=bench.BREAKDOWN, **QUICK)
    pruned = figures["recipes"][0]["prefill"]["pruned"]
    assert figures["best_dense"] == "compiled"
    assert {base: gain["median"] for base, gain in pruned["speedup"].items()} == {"dense": 2.0, "compiled": 1.5}
    assert figures["recipes"][0]["faster_than_eager_maps"]["median"] == 2.5
    text = report({"shape": "tiny", **figures})
    assert "faster than compiled" in text
    assert not {"decode", "vision"} & figures.keys()
    assert "overhead" not in figures["recipes"][0]
    assert "KV cache" not in text


def test_the_vision_tower_counts_up_to_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(COST, 4, 30, 6, "none", Tower(narrower=16))
    monkeypatch.setattr("fitprune.bench.breakdown.vision", lambda work, rounds: Spread.of([9.0]))
    figures = measure(shape, [0.5], skip=["overhead", "decode", "memory"], **QUICK)
    dense, pruned = figures["dense"]["dense"], figures["recipes"][0]["prefill"]["pruned"]
    expected = (9 + dense["seconds"]["median"]) / (9 + pruned["seconds"]["median"])
    assert figures["recipes"][0]["speedup_with_vision"] == pytest.approx(expected)
    assert "vision tower and projector: 9000.0 ms" in report({"shape": "tiny", **figures})


def test_merged_steps_get_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, CostModel | None]] = []

    def merge_steps(recipe: Recipe, step_cost: float, cost: CostModel | None = None) -> Recipe:
        asked.append((step_cost, cost))
        return Recipe.from_deletions([sum(recipe.counts), 0, 0], visual_tokens=30, source="one step, merged")

    monkeypatch.setattr(Recipe, "merge_steps", merge_steps)
    figures = measure(SHAPE, [0.5], merge_steps=True, skip=["memory", "decode", "vision"], **QUICK)
    plain, merged = figures["recipes"]
    assert (plain["name"], merged["name"]) == ("50%", "50% merged")
    assert merged["deletions"] == [sum(plain["deletions"]), 0, 0]
    assert merged["ideal_speedup"] > plain["ideal_speedup"]
    assert (asked[0][0] > 0, asked[0][1]) == (True, COST)
    assert any("merging makes 1 steps of" in note for note in figures["notes"])


def test_steps_are_merged_as_they_are_at_the_shapes_length() -> None:
    shape = Shape(CostModel(32, 32, 64, 4, 4, 8), 4, 96, 6, "llava-v1.5-7b")
    figures = measure(shape, [0.6], merge_steps=True, skip=["memory", "decode", "vision", "overhead"], **QUICK)
    plain, *merged = figures["recipes"]
    assert all(row["steps"] < plain["steps"] for row in merged)
    assert all(row["visual_reduction"] >= plain["visual_reduction"] for row in merged)


# Baselines.


def test_flash_and_compiled_are_other_models_of_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: compiled.append(model) or model)
    plain = Shape(CostModel(3, 32, 64, 4, 4, 8), 4, 30, 6, "none")  # not every flash kernel takes grouped heads
    figures = measure(plain, [0.5], baselines=["flash", "compiled"], skip=["overhead", "decode", "vision"], **QUICK)
    assert list(figures["dense"]) == ["dense", "flash", "compiled"]
    assert len(compiled) == 1
    assert {row["cache_bytes"] for row in figures["dense"].values()} == {figures["dense_cache_bytes_by_cost"]}


def test_flash_runs_the_flash_kernel_and_no_other() -> None:
    from torch.backends import cuda

    from fitprune.bench.models import Workload

    work = Workload.of(SHAPE, batch=1, dtype="float32", device="cpu", attn="sdpa")
    seen: list[tuple[bool, bool]] = []
    work.prefill = lambda model: seen.append((cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()))  # type: ignore[method-assign]
    variants.flash(work)()
    variants.dense(work)()
    assert seen == [(True, False), (True, True)]


def test_on_a_gpu_every_dense_variant_is_the_default() -> None:
    assert variants.default_baselines(torch.device("cuda")) == ("dense", "flash", "compiled")
    assert variants.default_baselines(torch.device("cpu")) == ("dense",)


def test_a_baseline_that_cannot_run_is_an_error_if_asked_for_else_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Any) -> Any:
        raise RuntimeError("no compiler here\nand much more")

    monkeypatch.setitem(variants.WAYS, "compiled", broken)
    with pytest.raises(FitPruneError, match=r"^baseline compiled cannot run here: no compiler here$"):
        measure(SHAPE, [0.5], baselines=["compiled"], **QUICK)
    monkeypatch.setattr(variants, "default_baselines", lambda device: ("dense", "compiled"))
    figures = measure(SHAPE, [0.5], skip=bench.BREAKDOWN, **QUICK)
    assert figures["notes"] == ["baseline compiled cannot run here: no compiler here"]


def test_whole_maps_that_do_not_fit_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fitprune.bench.eager_maps.prefill", out_of_memory)
    figures = measure(SHAPE, [0.5], baselines=["eager-maps"], skip=bench.BREAKDOWN, **QUICK)
    assert figures["notes"] == ["baseline eager-maps, 50%: out of memory"]
    assert "eager-maps" not in figures["recipes"][0]["prefill"]


def test_a_model_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fitprune.bench.models.random_decoder", out_of_memory)
    with pytest.raises(FitPruneError, match="out of memory with 3 layers x 32, batch 1, 40 tokens: try --dtype bfloat16"):
        measure(SHAPE, [0.5], **QUICK)


def test_everything_is_taken_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = set(ALL_ATTENTION_FUNCTIONS)
    measure(SHAPE, [0.5, 0.3], find_break_even=True, **QUICK)
    assert set(ALL_ATTENTION_FUNCTIONS) == before


# The command.


def test_the_command_prints_writes_and_draws(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--repeats", "1", "--device", "cpu", "--decode-tokens", "1", "--reduction-ratio", "0.4", "60"]
    drawn: list[str] = []
    with contextlib.suppress(ImportError):
        import matplotlib  # noqa: F401

        drawn = ["--plot", str(tmp_path / "b.png")]
    assert main(["bench", *flags, "--json", str(tmp_path / "b.json"), *drawn]) == 0
    out = capsys.readouterr().out
    figures = json.loads((tmp_path / "b.json").read_text())
    assert (figures["shape"], figures["tokens"]) == ("small", [4, 30, 6])
    assert [row["name"] for row in figures["recipes"]] == ["40%", "60%", "40% recommended"]  # of three layers, 60% is out of reach
    assert f"{figures['recipes'][1]['ideal_speedup']:.2f}x" in out
    assert report(figures) in out
    if drawn:
        assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"ratios": [0.6], "batch": 1, "baselines": None, "skip": [], "merge_steps": False, "find_break_even": False}),
        (["--reduction_ratio", "0.4", "80"], {"ratios": [0.4, 0.8]}),
        (["--baseline", "dense", "--baseline", "flash", "eager-maps"], {"baselines": ["dense", "flash", "eager-maps"]}),
        (["--skip", "vision", "--skip", "decode", "memory"], {"skip": ["vision", "decode", "memory"]}),
        (["--merge-steps", "--break-even"], {"merge_steps": True, "find_break_even": True}),
        (["--batch-size", "8", "--repeats", "3", "--decode-tokens", "5"], {"batch": 8, "repeats": 3, "decode_tokens": 5}),
        (["--dtype", "bfloat16", "--device", "cpu", "--attn", "eager"], {"dtype": "bfloat16", "device": "cpu", "attn": "eager"}),
        (["--recipe", "r.json"], {"recipe_file": "r.json", "methods": None}),
        (["--methods", "paper", "recommended"], {"methods": ["paper", "recommended"]}),
        (["--shape", "llava-hr-7b"], {"shape": SHAPES["llava-hr-7b"]}),
        (
            ["--shape", "small-long", "--visual-tokens", "9", "--text-tokens", "5", "--layers", "2"],
            {"shape": SHAPES["small-long"].altered(visual=9, after=5, layers=2)},
        ),
    ],
)  # fmt: skip
def test_each_flag_reaches_the_measurement(asked: dict[str, Any], flags: list[str], expected: dict[str, Any]) -> None:
    assert main(["bench", *flags]) == 2
    assert {name: asked[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "nonsense"], "cannot use device 'nonsense'"),
        (["--device", "cuda:99"], "cannot use device 'cuda:99'"),
        (["--attn", "no_such"], "cannot use --attn no_such"),
        (["--recipe", "missing.json"], "missing.json"),
        (["--plot", "b.png"], "matplotlib"),
    ],
)
def test_bad_input_is_one_line(
    small: None, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in flags:
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    assert main(["bench", "--repeats", "1", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_tables_are_aligned_and_empty_columns_go() -> None:
    lines = aligned([["kind", "median", "none", "gain"], ["a", "10.0 ms", "", ""], ["longer", "9.0 ms", "", "2.0x"]])
    assert lines == ["kind     median  gain", "------  -------  ----", "a       10.0 ms", "longer   9.0 ms  2.0x"]


def test_the_plot_has_a_bar_for_every_variant_and_the_ideal_across_each_recipe() -> None:
    pytest.importorskip("matplotlib")
    figures = {"shape": "tiny", **measure(SHAPE, [0.5, 0.3], baselines=["eager-maps"], skip=bench.BREAKDOWN, **QUICK)}
    panel = plot(figures).axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["dense", *["pruned", "bare", "eager-maps"] * 2]
    heights = [patch.get_height() for patch in panel.patches]
    rows = [figures["dense"]["dense"], *(row for recipe in figures["recipes"] for row in recipe["prefill"].values())]
    assert heights == pytest.approx([1000 * row["seconds"]["median"] for row in rows])
    ideals = [line.get_segments()[0][0][1] for line in panel.collections if line.get_linestyle()[0][1] is not None]
    wanted = [heights[0] / recipe["ideal_speedup"] for recipe in figures["recipes"]]
    assert [value for value in ideals if any(value == pytest.approx(each) for each in wanted)] == pytest.approx(wanted)
    assert "ms" in panel.get_ylabel()
    assert len({patch.get_facecolor() for patch in panel.patches}) == 4
