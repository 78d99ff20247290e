"""Optimizers: each parameter in one of them; rates that rise, stay, and fall to zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_embedded_network import TINY

from embedded.network import SIZES, Embedded
from embedded.optimise import DECAY, RATES, VISION_LATER, WARM_UP, Optimizers, optimizers, rate, set_rates

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9's Muon")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Embedded:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    return Embedded("tiny")


@pytest.fixture
def made(model: Embedded) -> Optimizers:
    return optimizers(model)


def held(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_every_parameter_is_in_exactly_one_optimizer(model: Embedded, made: Optimizers) -> None:
    all_held = [id(parameter) for optimizer in made.values() for parameter in held(optimizer)]
    assert len(all_held) == len(set(all_held))
    assert set(all_held) == {id(parameter) for parameter in model.parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(model: Embedded, made: Optimizers) -> None:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = {by_id[id(p)] for o in made.values() if isinstance(o, torch.optim.Muon) for p in held(o)}
    assert muon == {n for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n}
    layers = TINY["vision"][1] + TINY["text"][1]
    assert len(muon) == 6 * TINY["vision"][1] + 7 * TINY["text"][1]  # q, k, v, o and the MLP's two or three
    assert layers == len({name.split(".self_attn")[0] for name in muon if "q_proj" in name})


def test_what_sees_and_what_answers_are_apart(model: Embedded, made: Optimizers) -> None:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, optimizer in made.items():
        for parameter in held(optimizer):
            text = by_id[id(parameter)].startswith(("llava.model.language_model.", "llava.lm_head."))
            assert name.startswith("text" if text else "vision"), by_id[id(parameter)]
    projector = {by_id[id(p)] for p in held(made["vision projector"])}
    assert projector == {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}
    assert set(made) == {"vision matrix", "vision vector", "vision projector", "text matrix", "text vector"}
    for name, optimizer in made.items():
        assert {group["initial_lr"] for group in optimizer.param_groups} == {RATES[name.split()[1]]}


@given(st.floats(0, 1), st.booleans())
def test_a_rate_is_a_share(progress: float, decay: bool) -> None:
    assert 0 <= rate(progress, decay) <= 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_it_rises_stays_and_falls(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    if high <= WARM_UP:
        assert rate(low) <= rate(high)
    if low >= WARM_UP:
        assert rate(low) >= rate(high)
        assert rate(low, decay=False) == 1
    if WARM_UP <= one <= 1 - DECAY:
        assert rate(one) == 1


def test_it_starts_low_and_ends_at_zero() -> None:
    assert 0 < rate(0) < 1e-3
    assert rate(WARM_UP / 2) == pytest.approx(0.5, abs=1e-3)
    assert rate(1 - DECAY / 2) == pytest.approx(0.5)
    assert rate(1) == 0
    assert rate(1, decay=False) == 1


def factors(made: Optimizers) -> dict[str, float]:
    """By part, what every rate is against its start."""
    found = {
        (name.split()[0], round(group["lr"] / group["initial_lr"], 9)) for name, o in made.items() for group in o.param_groups
    }  # fmt: skip
    assert len(found) == 2, f"a part has several factors: {found}"
    return dict(found)


@pytest.mark.parametrize("progress", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_seeing_has_one_rate_and_no_decay(made: Optimizers, progress: float) -> None:
    factor = set_rates(made, "see", progress)
    assert factor == rate(progress, decay=False)
    assert factors(made) == pytest.approx({"vision": factor, "text": factor})


@pytest.mark.parametrize("progress", [0.02, 0.3, 0.5, 0.6, 0.8, 0.999, 1.0])
def test_the_vision_tower_goes_on_at_half_the_rate(made: Optimizers, progress: float) -> None:
    factor = set_rates(made, "answer", progress)
    assert factor == rate(progress)
    assert VISION_LATER == 0.5
    assert factors(made) == pytest.approx({"vision": factor / 2, "text": factor})


def test_the_vision_tower_is_not_warmed_up_again(made: Optimizers) -> None:
    for progress in (0.0, 0.005, 0.01):
        factor = set_rates(made, "answer", progress)
        assert factors(made) == pytest.approx({"vision": VISION_LATER, "text": factor}, abs=1e-8)


def test_rates_do_not_remember(made: Optimizers) -> None:
    set_rates(made, "answer", 0.95)
    set_rates(made, "see", 0.5)
    assert factors(made) == {"vision": 1.0, "text": 1.0}
