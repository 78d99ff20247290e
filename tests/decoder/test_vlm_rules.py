"""Every vision-language model of transformers that can be had, tiny, against a masked dense model that knows nothing of FitPrune.

What is deleted and every survivor's logits (prefill), and the logits of every step of a greedy answer; padded on either side, with
adjacent images, with videos; from layer 0 on where that is allowed. The models and the oracle are in tests/support/.

    pytest tests/decoder/test_vlms.py -k Qwen3VL
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import oracle
import pytest
import torch
import vlms
from torch import Tensor

import fitprune
from fitprune import FitPruneError, Recipe, UnsupportedError

FAMILIES = vlms.available()
NAMES = [name for name in FAMILIES if name != "Gemma4SharedKeys"]
DELETIONS = {"Qwen3_5": [0, 3, 0, 2]}  # three of four layers are linear attention in the real one, every other one here
PROMPTS = {
    "alone": ([[4, "image", 5]], None),
    "left": ([[3, "image", 2, "image", 4], [2, "image", 3]], "left"),
    "right": ([[3, "image", 2, "image", 4], [2, "image", 3]], "right"),
    "adjacent": ([[2, "image", "image", 3]], None),
    "video": ([[2, "video", 3]], None),
    "both": ([[2, "image", 3, "video", 3]], None),
}


LEFT_OUT = {  # (class, prompt): why
    ("Phi4Multimodal", "adjacent"): "refused, see below",
    ("Glm4v", "both"): "transformers takes the frames of this builder's video for images",
    ("Glm46V", "both"): "transformers takes the frames of this builder's video for images",
}


ABSOLUTE = {("Mistral3OnMinistral3", "left")}  # scales by absolute positions, which generate counts without padding, the oracle with it


def cases(prompts: Iterable[str]) -> list[tuple[str, str]]:
    """Every class with every prompt that it can be asked."""
    found = []
    for name in NAMES:
        for prompt in prompts:
            try:
                FAMILIES[name].inputs(PROMPTS[prompt][0])
            except NotImplementedError:  # no videos
                continue
            if (name, prompt) not in LEFT_OUT:
                found.append((name, prompt))
    return found


def asked(name: str, prompt: str) -> tuple[Any, Any]:
    family = FAMILIES[name]
    rows, padding = PROMPTS[prompt]
    inputs = family.inputs(rows, padding=padding) if padding else family.inputs(rows)
    model = family.model()
    if name == "Llama4":  # the builder's is small, so that what depends on it shows
        for part in (oracle.decoder_of(model).config, *model.modules()):
            if hasattr(part, "floor_scale"):
                part.floor_scale = 8192
    return model, inputs


def recipe_of(name: str) -> Recipe:
    return Recipe.from_deletions(DELETIONS.get(name, [2, 3, 1, 0]), visual_tokens=8)


@pytest.mark.parametrize(("name", "prompt"), cases(PROMPTS))
def test_a_prefill_is_the_masked_dense_model(name: str, prompt: str) -> None:
    model, inputs = asked(name, prompt)
    wanted = oracle.select(model, inputs, recipe_of(name))
    with torch.no_grad(), fitprune.prune(model, recipe_of(name)) as trace:
        logits = model(**inputs.call).logits
    for layer in range(len(trace)):
        assert [row.tolist() for row in trace.alive[layer]] == [row.tolist() for row in wanted.alive(layer)], layer
    for row, positions in enumerate(trace.positions):
        kept = positions >= 0
        torch.testing.assert_close(logits[row][kept], wanted.logits[row][positions[kept]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_deletes_nothing_changes_no_bit(name: str) -> None:
    model, inputs = asked(name, "left")
    with torch.no_grad():
        dense = model(**inputs.call).logits
        with fitprune.prune(model, Recipe.none(len(oracle.decoder_of(model).layers))):
            assert torch.equal(model(**inputs.call).logits, dense)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "prompt"), [case for case in cases(["left", "adjacent", "both"]) if case not in ABSOLUTE])
def test_every_step_of_an_answer(name: str, prompt: str, attn: str) -> None:
    model, inputs = asked(name, prompt)
    model.set_attn_implementation(attn)
    visual = list(range(100, vlms.VOCAB))  # tokens that would be images, or their frames
    with torch.no_grad(), fitprune.prune(model, recipe_of(name)) as trace:
        made = model.generate(
            **inputs.call, max_new_tokens=4, do_sample=False, suppress_tokens=visual, output_logits=True, return_dict_in_generate=True
        )
        alive = trace.alive
    length = inputs.real.shape[1]
    new = made.sequences[:, inputs.call["input_ids"].shape[1] :]
    before = [torch.arange(length)[row] for row in inputs.real]
    deleted: list[list[Tensor]] = []
    for layer in alive:
        deleted.append([was[~torch.isin(was, now)] for was, now in zip(before, layer, strict=True)])
        before = layer
    wanted = oracle.masked_dense(model, inputs.continued(new), deleted)
    for step, logits in enumerate(made.logits):
        torch.testing.assert_close(logits, wanted.logits[:, length - 1 + step], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Qwen3_5", "Gemma4")])
def test_a_recipe_is_fitted_and_meets_its_budget(name: str) -> None:
    model, inputs = asked(name, "left")
    stats = fitprune.observe(model, [inputs.call], progress=False)
    assert stats.visual_tokens.tolist() == [len(one.tokens) for row in inputs.visuals for one in row]
    recipe = fitprune.fit(stats, reduction_ratio=0.5)
    assert recipe.achieved is not None
    assert recipe.achieved >= 0.5
    with torch.no_grad(), fitprune.prune(model, recipe) as trace:
        model(**inputs.call)
    for row, visuals in enumerate(inputs.visuals):
        left = sum(len(one.tokens) - sum(recipe.deletions(len(one.tokens), len(trace))) for one in visuals)
        assert len(trace.visual[-1][row]) == left


def test_layers_without_a_ranking_do_not_delete() -> None:
    if "Qwen3_5" not in FAMILIES:
        pytest.skip("no Qwen3.5 here")
    model, inputs = asked("Qwen3_5", "alone")
    with (
        pytest.raises(
            UnsupportedError, match=r"deletes in layer 0, which has no attention that could rank tokens: let it delete in layers 1, 3 only"
        ),
        torch.no_grad(),
        fitprune.prune(model, Recipe.from_deletions([1, 0, 0, 0], visual_tokens=1)),
    ):
        model(**inputs.call)


def test_layers_that_share_keys_are_left_whole() -> None:
    if "Gemma4SharedKeys" not in FAMILIES:
        pytest.skip("no Gemma4 here")
    model, inputs = asked("Gemma4SharedKeys", "alone")
    layers = len(oracle.decoder_of(model).layers)
    with (
        pytest.raises(UnsupportedError, match="stands before layers that share keys with earlier ones: let it delete in layers 5 only"),
        torch.no_grad(),
        fitprune.prune(model, Recipe.from_deletions([0] * (layers - 2) + [1, 0], visual_tokens=1)),
    ):
        model(**inputs.call)


def test_images_without_the_ids_that_place_them_are_refused() -> None:
    """Qwen2.5-VL would run on positions of text without a word."""
    model, inputs = asked("Qwen2_5_VL", "alone")
    call = {name: value for name, value in inputs.call.items() if name != "mm_token_type_ids"}
    if len(call) == len(inputs.call):
        pytest.skip("this transformers places images by their ids")
    with pytest.raises(UnsupportedError, match="brings images without mm_token_type_ids"), fitprune.prune(model, recipe_of("Qwen2_5_VL")):
        model(**call)


@pytest.mark.parametrize("name", ["Qwen2_5_VL", "PaliGemma", "Gemma3"])
def test_a_later_turn_brings_an_image(name: str) -> None:
    """Beams as well: three rows of one prompt."""
    model, inputs = asked(name, "alone")
    with torch.no_grad(), fitprune.prune(model, recipe_of(name)):
        beams = model.generate(**inputs.call, max_new_tokens=3, num_beams=3, do_sample=False, suppress_tokens=list(range(100, vlms.VOCAB)))
        alone = model.generate(**inputs.call, max_new_tokens=3, do_sample=False, suppress_tokens=list(range(100, vlms.VOCAB)))
    assert beams.shape == alone.shape


def test_a_scale_by_the_number_of_tokens_is_refused_where_pruning_would_change_it() -> None:
    if "Llama4" not in FAMILIES:
        pytest.skip("no Llama 4 here")
    model, inputs = asked("Llama4", "alone")
    oracle.decoder_of(model).config.floor_scale = 8
    with (
        pytest.raises(UnsupportedError, match="at most 7 tokens can be pruned"),
        torch.no_grad(),
        fitprune.prune(model, recipe_of("Llama4")),
    ):
        model(**inputs.call)


def test_adjacent_images_that_nothing_tells_apart_are_refused() -> None:
    if "Phi4Multimodal" not in FAMILIES:
        pytest.skip("no Phi-4 multimodal here")
    model, inputs = asked("Phi4Multimodal", "adjacent")
    with (
        pytest.raises(FitPruneError, match="brings 2 images, its tokens are 1 runs of visual tokens, and nothing says which are whose"),
        torch.no_grad(),
        fitprune.prune(model, recipe_of("Phi4Multimodal")),
    ):
        model(**inputs.call)
