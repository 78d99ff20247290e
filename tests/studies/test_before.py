"""How many tokens may enter the decoder, and that every way runs by its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fitprune
from fitprune.cost import VICUNA_7B, CostModel, LayerCost
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.studies.before import WAYS, Before, most_entering
from fitprune.studies.masked import masked
from fitprune.studies.methods import applied

UNLIKE = CostModel.of_layers([LayerCost(9, 2, 40, 4), LayerCost(30, 0, 5, 4, deletes=False), LayerCost(7, 8, 1, 2)], hidden=4)


@pytest.mark.parametrize("cost", [VICUNA_7B, UNLIKE])
@given(tokens=st.integers(1, 700), ratio=st.floats(0.01, 0.95))
def test_as_many_as_save_the_ratio_and_not_one_more(cost: CostModel, tokens: int, ratio: float) -> None:
    """By the definition: all layers, the first one too, with m tokens against all with n."""

    def saved(some: int) -> float:
        return 1 - sum(cost.visual_macs([some] * cost.layers, some)) / sum(cost.visual_macs([tokens] * cost.layers, tokens))

    enough = [some for some in range(1, tokens + 1) if saved(some) >= ratio]
    if enough:
        assert most_entering(tokens, ratio, cost) == max(enough)
    else:
        with pytest.raises(FitPruneError, match=f"cannot be reached with {tokens} visual tokens: ask for at most"):
            most_entering(tokens, ratio, cost)


def test_fewer_than_a_recipe_keeps_at_the_end_and_more_than_it_has_on_average() -> None:
    """A selection before layer 0 saves in that layer too, so that it keeps more than FastV's step does."""
    fastv = fitprune.Recipe.step(layer=1, keep=0.5)
    ratio = VICUNA_7B.visual_reduction(fastv.deletions(576, 32), 576)
    kept = Before("divprune", ratio).keep(576, VICUNA_7B)
    assert fastv.alive(576, 32)[-1] < kept < 576 * 0.6
    assert most_entering(0, 0.5, VICUNA_7B) == 0  # text
    assert most_entering(9, 0.0, VICUNA_7B) == 9


def test_the_example_of_the_paper_of_divprune() -> None:
    """Of LLaVA-1.5's 576 tokens 9.8% stay where they save as much as by its own count, in which a recipe's first layers are whole."""
    kept = Before("divprune", 0.9).keep(576, VICUNA_7B)
    assert 576 * 0.098 < kept < 576 * 0.11


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return fitprune.load("embedded", device="cpu")


def test_every_way_shows_the_decoder_what_it_may(vlm: VLM) -> None:
    picture = Image.effect_noise((120, 90), 90).convert("RGB")
    for way in WAYS:
        before = Before(way, 0.6)
        most = before.keep(vlm.tokens_for(picture), vlm.cost)
        with applied(vlm, before) as asked:
            inputs = asked.encode([(asked.prompt("What number is written?"), [picture])])
            assert asked.generate(inputs, max_new_tokens=2)
            assert asked.count_visual(inputs["input_ids"]) == (49 if before.timed else 144)
        assert most == 61
    assert [Before(way, 0.6).timed for way in WAYS] == [False, False, True]
    assert Before("divprune", 0.6).settings != Before("cdpruner", 0.6).settings != Before("cdpruner", 0.7).settings


def test_applied_runs_recipes_and_the_dense_model_as_well(vlm: VLM) -> None:
    picture = Image.effect_noise((120, 90), 90).convert("RGB")
    recipe = fitprune.Recipe.step(layer=1, keep=0.3)
    inputs = vlm.encode([(vlm.prompt("What number is written?"), [picture])])
    dense = vlm.generate(inputs, max_new_tokens=4)
    with applied(vlm, None) as asked:
        assert asked is vlm
    with applied(vlm, (recipe, "last")) as asked:
        assert asked is vlm
        with pytest.raises(FitPruneError, match="a recipe attached"), masked(vlm.model, lambda tokens: 1, lambda *_: _[0]):
            pass
    assert vlm.generate(inputs, max_new_tokens=4) == dense
