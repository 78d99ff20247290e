"""The breakdown: the cache's bytes, decoding, what pruning adds, the break-even length, the vision tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fitprune
from fitprune.bench import break_even as break_even_module
from fitprune.bench import breakdown
from fitprune.bench.break_even import break_even, deletes, smallest_that_pays
from fitprune.bench.models import Workload, check_memory, random_tower, twin, within_memory
from fitprune.bench.shapes import SHAPES, Shape, Tower
from fitprune.cost import CostModel
from fitprune.errors import FitPruneError
from fitprune.recipe import Recipe

COST = CostModel(layers=4, hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8)
SHAPE = Shape(COST, before=3, visual=16, after=5, recipes="none")
RECIPE = Recipe.from_deletions([3, 0, 5, 2], visual_tokens=16)
CPU = torch.device("cpu")


def workload(dtype: str = "float32", batch: int = 2) -> Workload:
    return Workload.of(SHAPE, batch=batch, dtype=dtype, device="cpu", attn="sdpa")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_workload_is_what_the_shape_says(dtype: str) -> None:
    work = workload(dtype)
    assert work.embeds.shape == (2, 24, 32)
    assert work.visual_mask[1].nonzero().flatten().tolist() == list(range(3, 19))
    assert CostModel.from_config(work.model.config).to_dict() | {"vocab": 0} == COST.to_dict()
    assert {weight.dtype for weight in work.model.parameters()} == {work.embeds.dtype}
    assert torch.get_default_dtype() == torch.float32
    assert work.model.model.rotary_emb.inv_freq.dtype == torch.float32  # as in a checkpoint loaded in that precision
    longer = work.resized(40)
    assert longer.model is work.model
    assert (longer.embeds.shape[1], int(longer.visual_mask[0].sum())) == (48, 40)


def test_a_twin_has_the_same_weights_and_its_own_state() -> None:
    work = workload()
    other = twin(work.model)
    assert {id(weight) for weight in other.parameters()} == {id(weight) for weight in work.model.parameters()}
    other.set_attn_implementation("eager")
    assert work.model.config._attn_implementation == "sdpa"
    with torch.no_grad(), fitprune.prune(other, RECIPE, visual_mask=work.visual_mask):
        assert work.prefill(work.model).layers[3].get_seq_length() == 24
        assert work.prefill(other).layers[3].get_seq_length() == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_holds_the_bytes_that_the_recipe_promises(dtype: str) -> None:
    work = workload(dtype)
    with torch.no_grad():
        assert breakdown.cache_bytes(work.prefill(work.model)) == breakdown.recipe_bytes(work, None)
        with fitprune.prune(work.model, RECIPE, visual_mask=work.visual_mask):
            cache = work.prefill(work.model)
    entering = [24, 21, 21, 16]  # layer l keeps what enters it
    assert breakdown.cache_bytes(cache) == breakdown.recipe_bytes(work, RECIPE)
    assert breakdown.cache_bytes(cache) == 2 * sum(entering) * 2 * 2 * 8 * work.embeds.dtype.itemsize


def test_bytes_are_those_held_not_those_shown() -> None:
    work = workload(batch=1)
    with torch.no_grad():
        cache = work.prefill(work.model)
    whole = breakdown.cache_bytes(cache)
    cache.layers[0].keys = cache.layers[0].keys[:, :, :1]
    assert breakdown.cache_bytes(cache) == whole


def test_decoding_goes_on_from_each_cache() -> None:
    work = workload()
    model = twin(work.model)
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=work.visual_mask):
        models = {"dense": (work.model, work.prefill(work.model)), "60%": (model, work.prefill(model))}
        times = breakdown.decode(models, work, 5)
    assert {name: len(each) for name, each in times.items()} == {"dense": 5, "60%": 5}
    assert all(seconds > 0 for each in times.values() for seconds in each)
    grown = 5 + breakdown.WARM_STEPS
    assert [layer.get_seq_length() - grown for layer in models["dense"][1].layers] == [24] * 4
    assert [layer.get_seq_length() - grown for layer in models["60%"][1].layers] == [24, 21, 21, 16]


def test_overhead_is_measured_where_it_arises(monkeypatch: pytest.MonkeyPatch) -> None:
    work, calls = workload(), []

    class Counting(breakdown.Stopwatch):
        def wrap(self, label: str, function: Any) -> Any:
            timed = super().wrap(label, function)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls.append((label, getattr(function, "__name__", "")))
                return timed(*args, **kwargs)

            return wrapped

    monkeypatch.setattr(breakdown, "Stopwatch", Counting)
    with torch.no_grad():
        spent = breakdown.overhead(work, RECIPE, 2)
    assert {label: len(each) for label, each in spent.items()} == {"scoring": 2, "selection": 2, "gather": 2}
    assert all(seconds > 0 for each in spent.values() for seconds in each)
    steps, prefills = breakdown.steps(work, RECIPE), 3  # two and a warm one
    assert steps == 3
    assert [label for label, _ in calls].count("scoring") == steps * prefills
    assert calls.count(("selection", "on_attention")) == steps * prefills
    assert all("forward" not in layer.__dict__ for layer in work.model.model.layers)  # the model itself was left alone


def test_token_layers_are_tokens_through_one_dense_layer() -> None:
    work = workload()
    one = 0.5 / (24 * 4)  # seconds per token and layer of a prefill of half a second
    assert breakdown.token_layers(7 * one, 0.5, work) == pytest.approx(7)


@pytest.mark.parametrize("threshold", [1, 16, 17, 100, 577, 1000])
def test_the_search_finds_the_length_from_which_it_pays(threshold: int) -> None:
    tried: list[int] = []

    def pays(tokens: int) -> bool:
        tried.append(tokens)
        return tokens >= threshold

    found = smallest_that_pays(pays, limit=1000, start=16)
    assert found is not None
    assert max(16, threshold) <= found <= max(16, 1.12 * threshold)
    assert len(tried) == len(set(tried)) <= 12
    assert smallest_that_pays(lambda tokens: tokens > 1000, limit=1000, start=16) is None


def test_break_even_runs_the_scaled_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []

    def alternate(variants: dict[str, Any], rounds: int, device: torch.device) -> dict[str, list[float]]:
        dense, pruned = (variants[name]().layers[-1].get_seq_length() for name in ("dense", "pruned"))
        lengths.append((dense, pruned))
        return {"dense": [1.0] * rounds, "pruned": [0.9 if dense > 30 else 1.1] * rounds}

    monkeypatch.setattr(break_even_module, "alternate", alternate)
    with torch.no_grad():
        found = break_even(workload(), RECIPE, 3)
    assert found["limit"] == 32
    assert 23 <= found["tokens"] <= 25  # dense 8 + 23 = 31 is the first beyond 30; found to a tenth
    assert [tokens for tokens, _, _ in found["tried"]] == sorted({dense - 8 for dense, _ in lengths})
    for dense, pruned in lengths:  # the last layer's deletions are still in its cache
        assert dense - pruned == sum(RECIPE.deletions(dense - 8)[:-1])


def test_a_recipe_that_deletes_nothing_of_a_small_image_cannot_pay() -> None:
    assert not deletes(RECIPE, 3, 4)
    assert deletes(RECIPE, 16, 4)
    budget = Recipe((12, 0, 0, 0), 16, scaling="budget", num_layers=4, reduction_ratio=0.95, cost=COST)
    assert not deletes(budget, 1, 4)  # out of reach there


@pytest.mark.parametrize("name", SHAPES)
def test_every_tower_makes_its_shapes_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitprune.llava_hr.configuration import LlavaHrVisionConfig

    shape = SHAPES[name]
    assert shape.tower is not None
    one = LlavaHrVisionConfig().num_image_tokens if shape.tower.two else (336 // 14) ** 2
    assert shape.tower.views * one == shape.visual
    assert shape.altered(visual=shape.visual).tower == shape.tower
    assert shape.altered(visual=shape.visual - 1).tower is None


def test_a_tower_sees_views_and_projects_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    made: list[dict[str, Any]] = []

    def fewer(**sizes: Any) -> Any:
        made.append(sizes)
        return real(**{**sizes, "num_hidden_layers": 3, "image_size": 56})

    real = transformers.CLIPVisionConfig
    monkeypatch.setattr(transformers, "CLIPVisionConfig", fewer)
    tower, side = random_tower(Tower(narrower=8), 40, torch.float32, CPU)
    assert (made[0]["hidden_size"], made[0]["intermediate_size"], made[0]["num_hidden_layers"]) == (128, 512, 24)
    with torch.no_grad():
        features = tower.get_image_features(pixel_values=torch.randn(5, 3, side, side)).pooler_output
    assert [tuple(view.shape) for view in features] == [((side // 14) ** 2, 40)] * 5
    work = workload(batch=1)
    work.shape = Shape(COST, 3, 16, 5, "none", Tower(narrower=8))
    spread = breakdown.vision(work, 2)
    assert spread is not None
    assert spread.median > 0
    assert breakdown.vision(workload(), 2) is None


def test_too_little_memory_is_one_line() -> None:
    huge = CostModel(10**6, 8192, 32768, 64, 64, 128)
    with pytest.raises(FitPruneError, match="GiB are free: try --dtype"):
        check_memory(huge, 1, 10, torch.float32, CPU)
    check_memory(huge, 1, 10, torch.float32, torch.device("meta"))  # not a CPU: the allocator speaks for itself
    with pytest.raises(FitPruneError, match=r"out of memory with 4 layers: try .*--layers"), within_memory("4 layers"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    with pytest.raises(RuntimeError, match="another fault"), within_memory("4 layers"):
        raise RuntimeError("another fault")
