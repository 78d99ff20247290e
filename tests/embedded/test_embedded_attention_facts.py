"""Where attention goes: facts of maps that are known, and maps that are the model's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fitprune
from embedded import attention_facts
from embedded.attention_facts import FACTS, entropy, facts, in_turn, listening, main, of_layer, table
from embedded.clutter import scene
from embedded.tokens import INSTRUCTION
from fitprune.decoder.attach import find_decoder
from fitprune.embedded import embedded
from fitprune.families import VLM

N = 8  # visual tokens, after two tokens and before three
VISUAL = torch.tensor([False] * 2 + [True] * N + [False] * 3)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return fitprune.load("embedded", device="cpu")


def alike() -> Tensor:
    """[1, S, S]: everything that may be seen is paid the same."""
    lower = torch.ones(len(VISUAL), len(VISUAL)).tril()
    return (lower / lower.sum(1, keepdim=True))[None]


def test_facts_of_a_model_that_looks_at_everything_alike() -> None:
    found = of_layer(alike(), VISUAL)
    rows = torch.arange(2, 2 + N)
    assert found["itself"] == pytest.approx((1 / (rows + 1)).mean().item())
    assert found["first"] == pytest.approx(found["itself"].item())
    assert found["others"] == pytest.approx(((rows - 2) / (rows + 1)).mean().item())
    assert found["evenness"] == pytest.approx(1)
    assert found["last to visual"] == pytest.approx(N / len(VISUAL))
    assert found["last's evenness"] == pytest.approx(1)
    late = [sum(1 / (2 + q + 1) for q in range(k + 1, N)) / (N - 1 - k) for k in range(N) if N - 1 - k >= N // 4]
    assert found["sink"] == pytest.approx(max(late))


def test_facts_of_a_model_that_looks_at_itself_and_of_one_with_a_sink() -> None:
    diagonal = torch.eye(len(VISUAL))[None]
    found = of_layer(diagonal, VISUAL)
    assert [found[name].item() for name in ("itself", "others", "first", "evenness", "sink", "last to visual")] == [1, 0, 0, 0, 0, 0]
    sunk = torch.zeros(1, len(VISUAL), len(VISUAL))
    sunk[:, torch.arange(len(VISUAL)), torch.arange(len(VISUAL)).clamp(max=4)] = 1  # the third visual token takes all
    found = of_layer(sunk, VISUAL)
    assert found["sink"] == 1
    assert found["others"] == (N - 3) / N
    assert found["last to visual"] == 1
    assert found["last's evenness"] == 0


def test_means_are_over_heads() -> None:
    both = of_layer(torch.cat([alike(), torch.eye(len(VISUAL))[None]]), VISUAL)
    for name in ("itself", "others", "first", "evenness", "sink", "last to visual"):
        each = [of_layer(one, VISUAL)[name].item() for one in (alike(), torch.eye(len(VISUAL))[None])]
        assert both[name].item() == pytest.approx(sum(each) / 2)


def test_entropy() -> None:
    assert entropy(torch.tensor([0.0, 2.0, 0.0])) == 0
    assert entropy(torch.full((2, 5), 0.1)).tolist() == pytest.approx([math.log(5)] * 2)


def test_maps_are_the_models_own(vlm: VLM) -> None:
    """Against transformers' eager attention."""
    (picture, question), *_ = in_turn(1)
    inputs = vlm.encode([(vlm.prompt(f"{question.text}\n{INSTRUCTION}"), [picture])])
    eager: Any = fitprune.load("embedded", device="cpu", attn="eager").model
    with torch.no_grad(), listening(vlm.model) as heard:
        logits = vlm.model(**inputs, use_cache=False).logits
    with torch.no_grad():
        wanted = eager(**inputs, output_attentions=True)
    assert len(heard) == find_decoder(vlm.model).config.num_hidden_layers
    for one, other in zip(heard, wanted.attentions, strict=True):
        torch.testing.assert_close(one, other[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, wanted.logits, atol=1e-3, rtol=1e-3)


def test_a_model_is_left_as_it_was(vlm: VLM) -> None:
    config: Any = find_decoder(vlm.model).config
    before = config.to_dict() | {"attention": config._attn_implementation}
    with pytest.raises(RuntimeError, match="stop"), listening(vlm.model):
        raise RuntimeError("stop")
    assert config.to_dict() | {"attention": config._attn_implementation} == before
    assert not hasattr(config, "heard")


def test_visual_tokens_of_the_shipped_model_keep_to_themselves(vlm: VLM) -> None:
    """They were charged for anything else; the facts say so."""
    found = facts(vlm, in_turn(2))
    assert list(found) == list(FACTS)
    assert {len(values) for values in found.values()} == {9}
    assert min(found["itself"]) > 0.9
    for one, other in zip(found["itself"], found["others"], strict=True):
        assert 0.95 < one + other <= 1.0001


def test_questions_come_one_a_picture_and_of_many_families() -> None:
    asked = in_turn(10)
    assert len({id(picture) for picture, _ in asked}) == 10
    assert len({question.family for _, question in asked}) >= 6
    assert in_turn(1, scene)[0][0].size == (224, 224)


def test_tables() -> None:
    found = {"a": {name: [0.25, 0.75] for name in FACTS}, "b": {name: [1.0] for name in FACTS}}
    assert table(found, layers=False).splitlines()[2:] == [f"| a |{' 50.0 |' * len(FACTS)}", f"| b |{' 100.0 |' * len(FACTS)}"]
    assert table(found).splitlines()[3] == f"| a | 1 |{' 75.0 |' * len(FACTS)}"
    assert all(line.count("|") == len(FACTS) + 3 for line in table(found).splitlines())


def test_the_command_prints_and_writes(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "facts.json"
    assert main([str(embedded().model), "--questions", "1", "--output", str(output)]) == 0
    assert "| layer |" in capsys.readouterr().out
    assert output.read_text().count("evenness") == 2
    assert main(["/nowhere", "--questions", "1"]) == 2
    assert attention_facts.NAME not in capsys.readouterr().out
