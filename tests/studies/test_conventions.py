"""FLOPs by other people's conventions: against their own published code and figures, and against calflops itself."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

import fitprune
from fitprune import Recipe
from fitprune.cost import VICUNA_7B, CostModel
from fitprune.decoder.upstream import version_numbers
from fitprune.studies import conventions
from fitprune.studies.conventions import CONVENTIONS

VISUAL, BEFORE, TEXT = 576, 35, 99
PUBLISHED = Recipe.published("llava-v1.5-7b", 0.6)
SMALL = CostModel(layers=4, hidden=96, intermediate=250, heads=6, kv_heads=6, head_dim=16, vocab=50)
schedules = st.lists(st.integers(0, 40), min_size=4, max_size=4).map(lambda alive: sorted(alive, reverse=True))


def saved(name: str, alive: list[int], cost: CostModel = VICUNA_7B) -> float:
    count = CONVENTIONS[name].count
    return 1 - count(cost, alive, VISUAL, TEXT) / count(cost, [VISUAL] * cost.layers, VISUAL, TEXT)


def test_fitprune_is_the_ratio_that_recipes_report() -> None:
    assert saved("FitPrune", PUBLISHED.alive(VISUAL)) == pytest.approx(PUBLISHED.achieved, abs=1e-12)


@pytest.mark.parametrize(("k", "r"), [(2, 0.5), (2, 0.75), (5, 0.5), (3, 0.25)])
def test_fastv_is_its_equation_5(k: int, r: float) -> None:
    """1 − [K·F(n) + (T − K)·F(n̂)] / [T·F(n)], written down anew."""
    n, d, m, layers = VISUAL, 4096, 11008, 32

    def f(n: float) -> float:
        return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m

    alive = Recipe.step(layer=k - 1, keep=1 - r).alive(n, layers)
    assert saved("FastV", alive) == pytest.approx(1 - (k * f(n) + (layers - k) * f((1 - r) * n)) / (layers * f(n)))


def test_divprune_gives_the_figures_that_its_script_prints() -> None:
    """tflops.py of vbdi/divprune at commit 799e2d9: eleven image benchmarks, LLaVA-1.5-7B, 9.8% kept before layer 0.

    Run as it is there, it prints these three numbers for LLaVA-1.5-7B.
    """
    texts = [15, 15, 23, 83, 25, 113, 15, 39, 21, 91, 57]
    kept = VISUAL - round((1 - 0.098) * VISUAL)
    count = CONVENTIONS["DivPrune"].count
    full = [count(VICUNA_7B, [VISUAL] * 32, VISUAL, text) for text in texts]
    pruned = [count(VICUNA_7B, [kept] * 32, kept, text) for text in texts]
    assert f"{sum(full) / 11e12:.4f}" == "3.2280"
    assert f"{sum(pruned) / 11e12:.4f}" == "0.5122"
    assert f"{sum(100 * p / f for p, f in zip(pruned, full, strict=True)) / 11:.4f}" == "15.6303"


@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_calflops_counts_what_is_said(implementation: str, pruned: bool) -> None:
    """The whole 7B decoder on the meta device; MACs to the last one, FLOPs but for activations and the like."""
    if version_numbers(transformers.__version__) < (5, 17):
        pytest.skip("transformers 5.0 does not run its rotary embeddings on the meta device of newer torch")
    calflops = pytest.importorskip("calflops", reason="pip install 'fitprune[docs]' brings calflops")
    config = LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32000,
        use_cache=False, attn_implementation=implementation,
    )  # fmt: skip
    length = VISUAL + TEXT
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        inputs = {"input_ids": torch.zeros(1, length).long(), "attention_mask": torch.zeros(1, 1, length, length)}
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, BEFORE : BEFORE + VISUAL] = True
    recipe = PUBLISHED if pruned else Recipe.none(32)
    with torch.inference_mode(), fitprune.prune(model, recipe, visual_mask=visual, score="random"):
        flops, macs, _ = calflops.calculate_flops(model, kwargs=inputs, print_results=False, output_as_string=False)
    said = CONVENTIONS[f"calflops, {implementation} attention"].count(VICUNA_7B, recipe.alive(VISUAL), VISUAL, TEXT)
    assert 2 * macs == said
    assert flops == pytest.approx(said, rel=2e-4)


def test_prefill_is_what_the_ideal_speed_up_is_made_of() -> None:
    alive = PUBLISHED.alive(VISUAL)
    assert 1 - saved("whole prefill (ours)", alive) == pytest.approx(1 / VICUNA_7B.speedup(alive, VISUAL, TEXT))


@given(alive=schedules, text=st.integers(0, 30))
def test_counts_are_whole_never_rise_with_pruning_and_know_whose_tokens_they_count(alive: list[int], text: int) -> None:
    for name, convention in CONVENTIONS.items():
        left, dense = (convention.count(SMALL, curve, 40, text) for curve in (alive, [40] * 4))
        assert isinstance(left, int)
        assert 0 <= left <= dense
        same = left == convention.count(SMALL, alive, 40, text + 1)
        assert same == (convention.tokens == "visual"), name


def test_the_table_has_a_row_per_convention_and_a_column_per_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    lines = conventions.example().splitlines()
    assert len(lines) == 2 + len(CONVENTIONS)
    assert len({line.count(" |") for line in lines if "---" not in line}) == 1
    assert "−59.7%" in lines[2]
    with pytest.raises(fitprune.FitPruneError, match="layers"):
        conventions.table({"7B": PUBLISHED}, SMALL)
