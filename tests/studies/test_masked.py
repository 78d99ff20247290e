"""A model with masked tokens is the model that never got them; where it cannot be, it says so."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import vlms
from torch import Tensor

import fitprune
from fitprune.decoder.attach import find_decoder
from fitprune.decoder.upstream import bound, cache_in, pass_cache
from fitprune.errors import FitPruneError, UnsupportedError
from fitprune.studies.diverse import Selection, cdpruner, divprune
from fitprune.studies.masked import masked, without_columns

FAMILIES = vlms.available()
SHAPES = ("Qwen3VL", "Qwen2_5_VL", "Mistral3", "InternVL", "PaliGemma", "LlavaNextVideo", "Pixtral")
ROWS = [[3, "image", 4, "image", 5], [2, "image", 6]]


def half(tokens: int) -> int:
    return max(1, tokens // 2)


def decoded(model: Any, call: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """What the decoder is given without anything masked, and what it makes of it with what is masked now: [B, S, E]."""
    decoder, seen = find_decoder(model), {}
    hooks = [
        decoder.register_forward_pre_hook(lambda m, a, k: seen.update(call=bound(m, a, k)), with_kwargs=True, prepend=True),
        decoder.register_forward_hook(lambda m, a, output: seen.update(hidden=output[0])),
    ]
    try:
        with torch.no_grad():
            model(**call, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["call"], seen["hidden"]


def shortened(call: dict[str, Any], row: int, at: Tensor, real: Tensor) -> dict[str, Any]:
    """A decoder's arguments for one row with only the positions `at`: nothing masked, positions as they were."""
    short: dict[str, Any] = {}
    for name, value in call.items():
        if name == "attention_mask" and isinstance(value, Tensor) and value.ndim == 4:
            value = value[row : row + 1, :, at][..., at]
        elif name == "deepstack_visual_embeds" and value is not None:
            places = call["visual_pos_masks"]
            own = torch.zeros_like(places)
            own[row, at] = places[row, at]
            value = [feature[own[places]] for feature in value]
        elif isinstance(value, Tensor) and value.shape[:2] == real.shape:
            value = value[row : row + 1, at]
        elif name == "position_ids" and value is not None:
            value = value.expand(*value.shape[:-2], len(real), -1)[..., row : row + 1, at]
        short[name] = value
    short["position_ids"] = at[None] if short.get("position_ids") is None else short["position_ids"]
    return short


@pytest.mark.parametrize("select", [divprune, cdpruner])
@pytest.mark.parametrize(
    "name", map(vlms.param, ["Qwen3VL", "Qwen2_5_VL", "Mistral3", "InternVL", "PaliGemma", "LlavaNextVideo", "Pixtral"])
)
def test_as_if_the_inputs_were_shorter(name: str, select: Selection) -> None:
    """Padding, two images a budget each, grouped heads; M-RoPE, features between layers, masks that come in four dimensions."""
    if name not in FAMILIES:
        pytest.skip(f"no {name} in this transformers")
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs(ROWS, padding="left")
    with masked(model, half, select) as chosen:
        call, hidden = decoded(model, inputs.call)
    seen = inputs.real.clone()
    for row, (images, kept) in enumerate(zip(inputs.visuals, chosen.kept, strict=True)):
        for image, places in zip(images, kept, strict=True):
            assert len(places) == half(len(image.tokens))
            assert set(places.tolist()) <= set(image.tokens.tolist())
            seen[row, image.tokens] = False
            seen[row, places] = True
    for row in range(len(seen)):
        at = seen[row].nonzero().flatten()
        with torch.no_grad():
            alone = find_decoder(model)(**shortened(call, row, at, inputs.real))[0]
        assert torch.allclose(alone[0], hidden[row, at], atol=2e-4)


@pytest.mark.parametrize("implementation", [("llava", "sdpa"), ("llava", "eager")], indirect=True)
@pytest.mark.parametrize("select", [divprune, cdpruner])
def test_each_decoded_token_as_of_shorter_inputs(implementation: Any, select: Selection) -> None:
    """Also of an image that nothing precedes, whose first tokens see nothing at all."""
    for parts in ((3, "image", 5), ("image", 5)):
        inputs = tiny.prompt(*parts)
        with masked(implementation, half, select) as chosen:
            made = implementation.generate(
                **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0
            )
        before = inputs["input_ids"].shape[1]
        ids = made.sequences
        with torch.no_grad():
            embeds = implementation.get_input_embeddings()(ids)
            features = implementation.get_image_features(inputs["pixel_values"])
            features = getattr(features, "pooler_output", features)
            visual = ids[0, :before] == tiny.IMAGE_TOKEN
            embeds[0, : len(visual)][visual] = features[0]
            keep = torch.ones(ids.shape[1], dtype=torch.bool)
            keep[:before] = ~visual
            keep[chosen.kept[0][0]] = True
            at = keep.nonzero().flatten()
            short = {"inputs_embeds": embeds[:, at], "position_ids": at[None], "attention_mask": torch.ones_like(at)[None]}
            hidden = find_decoder(implementation)(**short, use_cache=False)[0]  # without a mask gaps would be taken for packed sequences
            logits = implementation.lm_head(hidden)[0, -6:-1]
        assert torch.allclose(torch.cat(made.logits), logits, atol=1e-4)
        assert logits.argmax(-1).tolist() == ids[0, before:].tolist()


def test_a_batch_is_its_rows(llava: Any) -> None:
    rows = [tiny.prompt(3, "image", 5), tiny.prompt(2, "image", 4, "image", 9, seed=1), tiny.prompt(7, seed=2)]
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with masked(llava, half, cdpruner) as chosen:
        together = llava.generate(**tiny.batch(rows), **options)
        kept, width = chosen.kept, together.shape[1] - 4
        for row, inputs in enumerate(rows):
            alone = llava.generate(**inputs, **options)
            length = inputs["input_ids"].shape[1]
            assert together[row, width:].tolist() == alone[0, length:].tolist()
            if row < 2:
                moved = [(places - (width - length)).tolist() for places in kept[row]]
                assert moved == [places.tolist() for places in chosen.kept[0]]
        beams = llava.generate(**tiny.batch(rows[:2]), **options, num_beams=3)
        assert beams[:1, -4:].tolist() == llava.generate(**rows[0], **options, num_beams=3)[:, -4:].tolist()


def test_keeping_all_is_the_dense_model_bit_for_bit_and_nothing_is_left_behind(llava: Any) -> None:
    inputs = tiny.batch([tiny.prompt(3, "image", 5), tiny.prompt(2, "image", 9, seed=1)])

    def state() -> list[Any]:
        return [(name, list(vars(one)), len(one._forward_pre_hooks), len(one._forward_hooks)) for name, one in llava.named_modules()]

    before = state()
    with torch.no_grad():
        dense = llava(**inputs).logits
        with masked(llava, lambda tokens: tokens, divprune) as chosen:
            assert torch.equal(llava(**inputs).logits, dense)
        assert [len(places) for row in chosen.kept for places in row] == [tiny.IMAGE_TOKENS] * 2
        with masked(llava, half, divprune):
            assert not torch.equal(llava(**inputs).logits, dense)
        with pytest.raises(FitPruneError, match="brings no images"), masked(llava, half, divprune):
            llava(input_ids=inputs["input_ids"])
        assert torch.equal(llava(**inputs).logits, dense)
    assert state() == before


def test_the_unselected_are_felt_nowhere(llava: Any) -> None:
    """A later turn with a new image, on the cache of the first: what was masked stays masked."""
    first, second = tiny.prompt(3, "image", 5), tiny.prompt(2, "image", 4, seed=3)

    def turns() -> Tensor:
        with torch.no_grad(), masked(llava, half, choose):
            cache = cache_in(llava(**first, use_cache=True))
            for layer in cache.layers:  # whatever the cache holds of them
                layer.keys[:, :, 3 + 8 : 3 + 16] += noise
                layer.values[:, :, 3 + 8 : 3 + 16] += noise
            logits: Tensor = llava(**second, **pass_cache(llava, cache)).logits
        return logits

    def choose(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
        return torch.arange(keep)

    noise = 0.0
    plain = turns()
    noise = 9.0
    assert torch.allclose(turns(), plain, atol=1e-5)


def test_the_text_after_each_image_is_its_question(llava: Any) -> None:
    asked = []

    def choose(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
        asked.append((len(tokens), len(question), keep))
        return torch.arange(keep)

    rows = [tiny.prompt(3, "image", 5), tiny.prompt(2, "image", 4, "image", 9, seed=1)]
    with torch.no_grad(), masked(llava, lambda tokens: 5, choose):
        llava(**tiny.batch(rows))
    assert asked == [(16, 5, 5), (16, 13, 5), (16, 9, 5)]


@pytest.mark.parametrize(
    ("name", "said"),
    [("Gemma3", "sliding windows"), ("Qwen3_5", "state takes masked tokens in"), ("Lfm2Vl", "layers without attention"),
     ("Phi4Multimodal", "no inputs_embeds")],
)  # fmt: skip
def test_what_would_feel_masked_tokens_is_refused_by_name(name: str, said: str) -> None:
    if name not in FAMILIES:
        pytest.skip(f"no {name} in this transformers")
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs([[2, "image", 6]], padding="left")
    with pytest.raises(UnsupportedError, match=said), masked(model, half, divprune):
        model(**inputs.call)


def test_what_else_is_refused(llava: Any, llama: Any) -> None:
    inputs = tiny.prompt(3, "image", 5)
    with fitprune.prune(llava, tiny.RECIPE), pytest.raises(FitPruneError, match="a recipe attached"), masked(llava, half, divprune):
        pass
    with torch.no_grad(), masked(llava, half, divprune):
        with pytest.raises(FitPruneError, match="called directly"):
            find_decoder(llava)(inputs_embeds=torch.zeros(1, 4, tiny.HIDDEN))
        with pytest.raises(UnsupportedError, match="this form"):
            llava.generate(**inputs, max_new_tokens=3, cache_implementation="static", pad_token_id=0)
    with pytest.raises(FitPruneError, match="names no image token"), masked(llama, half, divprune):
        pass
    llava.generation_config.prefill_chunk_size = 4
    try:
        with pytest.raises(UnsupportedError, match="prefill_chunk_size"), masked(llava, half, divprune):
            pass
    finally:
        llava.generation_config.prefill_chunk_size = None


def test_columns_go_from_masks_of_every_form() -> None:
    hidden = torch.tensor([[False, True, False], [False, False, True]])
    assert without_columns(None, hidden).tolist() == [[1, 0, 1], [1, 1, 0]]
    assert without_columns(torch.tensor([[0, 1, 1], [1, 1, 1]]), hidden).tolist() == [[0, 0, 1], [1, 1, 0]]
    square = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert without_columns(square, hidden)[:, 0, 0].tolist() == [[True, False, True], [True, True, False]]
    added = without_columns({"full": torch.zeros(2, 1, 1, 3), "none": None}, hidden)
    assert (added["full"][:, 0, 0] < -1e30).tolist() == hidden.tolist()
    assert added["none"].tolist() == [[1, 0, 1], [1, 1, 0]]
    for wrong in (torch.ones(2, 4), torch.ones(2, 3, 3), "mask"):
        with pytest.raises(UnsupportedError, match="of this form"):
            without_columns(wrong, hidden)
