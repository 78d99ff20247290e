"""Biases, penalties and stops: against what OpenAI's API says they do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitprune import FitPruneError
from fitprune.web.sampling import CutQueue, HeldBack, Sampling


def sampling(**fields: Any) -> Sampling:
    return Sampling.of(fields, lambda ids: "".join(chr(97 + one) for one in ids.tolist()), 8)


def test_penalties_are_subtracted_for_what_was_answered() -> None:
    answered, logits = torch.tensor([[1, 1, 3], [0, 2, 2]]), torch.randn(2, 8)
    found = sampling(logit_bias={3: -7.0, 5: 2.5}, frequency_penalty=-1.5, presence_penalty=0.5).adjusted(answered, logits)
    for row in range(2):
        counts = Counter(answered[row].tolist())
        for token in range(8):
            expected = logits[row, token] + {3: -7.0, 5: 2.5}.get(token, 0) + 1.5 * counts[token] - 0.5 * (counts[token] > 0)
            torch.testing.assert_close(found[row, token], expected)
    nothing = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(sampling(frequency_penalty=2.0).adjusted(nothing, logits), logits)


def test_only_what_was_answered_counts_and_nothing_is_given_for_nothing() -> None:
    assert sampling().arguments(5) == {}
    made = sampling(presence_penalty=1.0, stop=["bc"]).arguments(2)
    ids = torch.tensor([[1, 2, 0], [0, 0, 1]])
    assert torch.equal(made["logits_processor"][0](ids, torch.zeros(2, 8)).nonzero(), torch.tensor([[0, 0], [1, 1]]))
    assert made["stopping_criteria"][0](ids, None).tolist() == [False, False]
    assert sampling(stop=["bc"]).arguments(0)["stopping_criteria"][0](ids, None).tolist() == [True, False]


def test_a_bias_on_no_token_is_refused() -> None:
    with pytest.raises(FitPruneError, match="token 8"):
        sampling(logit_bias={8: 1.0})


@given(st.lists(st.text("ab", max_size=4), max_size=6), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    held = HeldBack(stops)
    given_out = [held.feed(piece) for piece in pieces]
    assert "".join(given_out) + held.rest() == whole[: min(ends, default=None) if ends else None] == sampling(stop=stops).cut(whole)


def test_a_queue_is_read_up_to_its_stop_and_to_its_end() -> None:
    async def read(*items: Any) -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for item in items:
            queue.put_nowait(item)
        cut, found = CutQueue(queue, ["END"], lambda item: item if item is None else ("passed", item)), []
        while True:  # as transformers' handlers do
            found.append(await cut.get())
            try:
                while True:
                    found.append(cut.get_nowait())
            except asyncio.QueueEmpty:
                pass
            if None in found:
                return found

    assert asyncio.run(read("a E", "ND b", None)) == ["a ", "", None]
    assert asyncio.run(read("a E", None)) == ["a ", "E", None]
    assert asyncio.run(read("a", 5, None)) == ["a", ("passed", 5), None]
