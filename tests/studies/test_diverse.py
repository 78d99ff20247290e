"""DivPrune and CDPruner choose what their definitions say, whatever the order of the tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fitprune.studies.diverse import Selection, cdpruner, conditional_kernel, divprune, naive_cdpruner, naive_divprune

both = pytest.mark.parametrize(("select", "naive"), [(divprune, naive_divprune), (cdpruner, naive_cdpruner)], ids=["divprune", "cdpruner"])


def drawn(tokens: int, size: int = 6, text: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, size, generator=generator), torch.randn(text, size, generator=generator)


@both
@given(tokens=st.integers(1, 14), share=st.floats(0, 1), text=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_as_by_definition(select: Selection, naive: Selection, tokens: int, share: float, text: int, seed: int) -> None:
    """Beyond the kernel's rank, 6, as well."""
    given = drawn(tokens, text=text, seed=seed)
    keep = 1 + round(share * (tokens - 1))
    chosen = select(*given, keep)
    assert chosen.tolist() == naive(*given, keep).tolist()
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == keep


@both
def test_all_of_them(select: Selection, naive: Selection) -> None:
    for tokens in (1, 2, 9):
        assert select(*drawn(tokens), tokens).tolist() == list(range(tokens))


@both
def test_order_length_and_precision_do_not_matter(select: Selection, naive: Selection) -> None:
    tokens, question = drawn(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    chosen = select(tokens, question, 5)
    assert order[select(tokens[order], question.flip(0), 5)].sort().values.tolist() == chosen.tolist()
    longer = tokens * torch.linspace(0.5, 4, 20)[:, None]  # only directions count
    assert select(longer, 3 * question, 5).tolist() == chosen.tolist()
    assert select(tokens.bfloat16(), question.bfloat16(), 5).tolist() == select(tokens.bfloat16().double(), question.bfloat16(), 5).tolist()


@both
def test_no_duplicate_before_what_differs(select: Selection, naive: Selection) -> None:
    tokens, question = drawn(5)
    twice = torch.cat([tokens, tokens, 2 * tokens])
    for keep in range(1, 6):
        chosen = select(twice, question, keep)
        assert len(set((chosen % 5).tolist())) == keep
    assert len(select(twice, question, 12)) == 12  # then they come in any case


def test_the_farthest_of_a_line_of_directions() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.5])
    tokens = torch.stack([angles.cos(), angles.sin()], 1)
    none = torch.empty(0, 2)
    assert divprune(tokens, none, 1).tolist() == [3]  # nobody's nearest is as far as 3 and 4 are apart: the first of them
    assert divprune(tokens, none, 2).tolist() == [0, 3]
    assert divprune(tokens, none, 3).tolist() == [0, 3, 4]


def test_relevance_is_the_mean_cosine_between_least_and_most() -> None:
    tokens, question = drawn(7)
    kernel, relevance = conditional_kernel(tokens, question)
    cosine = torch.cosine_similarity(tokens[:, None].double(), question[None].double(), dim=-1).mean(1)
    assert relevance.argsort().tolist() == cosine.argsort().tolist()
    assert (relevance.min().item(), relevance.max().item()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    similar = torch.cosine_similarity(tokens[:, None].double(), tokens[None].double(), dim=-1)
    assert torch.allclose(kernel, relevance[:, None] * similar * relevance[None])
    assert cdpruner(tokens, question, 1).tolist() == [int(cosine.argmax())]


def test_without_a_question_only_diversity_counts() -> None:
    tokens, _ = drawn(7)
    kernel, relevance = conditional_kernel(tokens, tokens[:0])
    assert relevance.tolist() == [1.0] * 7
    assert conditional_kernel(tokens, torch.ones(1, 6) * 0)[1].tolist() == [1.0] * 7  # as relevant, all of them
    assert torch.allclose(kernel.diagonal(), torch.ones(7, dtype=torch.float64))
