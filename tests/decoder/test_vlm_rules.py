"""What cannot be right on a vision-language model is refused by name: each of these once ran on without a word, or ended in a traceback.

pytest tests/decoder/test_vlm_rules.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
import vlms

import fitprune
from fitprune import FitPruneError, Recipe, UnsupportedError
from fitprune.cost.parts import cache_argument
from fitprune.decoder.graphs import Graphs

FAMILIES = vlms.available()
ONE = [4, "image", 5]


def asked(name: str, row: Any = ONE) -> tuple[Any, dict[str, Any]]:
    """A model, if this transformers has it, and a call of it."""
    if name not in FAMILIES:
        pytest.skip(f"no {name} here")
    return FAMILIES[name].model(), dict(FAMILIES[name].inputs([row]).call)


def deleting(model: Any, *layers: int) -> Recipe:
    count = len(oracle.decoder_of(model).layers)
    return Recipe.from_deletions([20 * (layer in layers) for layer in range(count)], visual_tokens=100)


def test_layers_without_a_ranking_do_not_delete() -> None:
    model, call = asked("Qwen3_5")
    with (
        pytest.raises(
            UnsupportedError, match=r"deletes in layer 0, which has no attention that could rank tokens: let it delete in layers 1, 3 only"
        ),
        fitprune.prune(model, deleting(model, 0, 1)),
    ):
        model(**call)


def test_rows_of_a_later_turn_do_not_lose_unlike_numbers_of_tokens_in_a_linear_layer() -> None:
    """What fills rows up would be taken into a state that is not empty any more."""
    model, _ = asked("Qwen3_5")
    inputs = FAMILIES["Qwen3_5"].inputs([[4, "image", 5], [4, "image", 2, "image", 3]], "left").call
    first = {"input_ids": torch.full((2, 3), 7)}
    with torch.no_grad(), fitprune.prune(model, deleting(model, 1)):
        cache = model(**first, use_cache=True).past_key_values
        mask = torch.cat([torch.ones(2, 3, dtype=torch.long), inputs["attention_mask"]], 1)
        with pytest.raises(UnsupportedError, match="rows of this later turn lose unlike numbers of tokens"):
            model(**{**inputs, "attention_mask": mask}, past_key_values=cache)


def test_layers_between_shared_keys_and_their_readers_do_not_delete() -> None:
    model, call = asked("Gemma4SharedKeys")
    with (
        pytest.raises(UnsupportedError, match=r"deletes in layer 2, which stands between keys .* let it delete in layers 0, 1 only"),
        fitprune.prune(model, deleting(model, 2)),
    ):
        model(**call)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL"])
def test_images_without_the_ids_that_place_them_are_refused(name: str) -> None:
    """These classes run on positions of text then, without a word: logits differ by as much as the largest of them."""
    model, call = asked(name)
    if call.pop("mm_token_type_ids", None) is None:
        pytest.skip("this transformers places images by their ids")
    with pytest.raises(UnsupportedError, match="brings images without mm_token_type_ids"), fitprune.prune(model, deleting(model, 1)):
        model(**call)


def test_pixels_without_visual_tokens_are_refused() -> None:
    model, call = asked("Qwen2_5_VL")
    call["input_ids"] = call["input_ids"].masked_fill(call["input_ids"] == vlms.IMAGE, 5)
    with pytest.raises(FitPruneError, match="brings pixel_values, but none of its tokens is"), fitprune.prune(model, deleting(model, 1)):
        model(**call)


def test_visual_tokens_without_images_are_refused() -> None:
    """Placeholders of a prompt whose images were forgotten; with embeddings instead of ids nothing is known of them."""
    model, call = asked("Qwen2_5_VL")
    with pytest.raises(FitPruneError, match="visual tokens and brings no images"), fitprune.prune(model, deleting(model, 1)):
        model(input_ids=call["input_ids"])


def test_images_without_ids_or_positions_are_refused() -> None:
    model, call = asked("Qwen2_5_VL")
    mask = call["input_ids"] == vlms.IMAGE
    call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids"))
    with (
        pytest.raises(UnsupportedError, match=r"brings images without input_ids, by which .* places them"),
        fitprune.prune(model, deleting(model, 1), visual_mask=mask),
    ):
        model(**call)


@pytest.mark.parametrize("cached", [False, True], ids=["prompt", "image before"])
def test_a_prompt_that_is_read_in_pieces_is_refused(cached: bool) -> None:
    """The pieces come one by one, and the text that asks in the last: earlier ones would be ranked by text of the middle.

    Older versions of transformers do not hand images on to the pieces, or refuse them."""
    model, call = asked("LlavaOnevision", [2, 3, "image", 4, 5])
    size = 4 if cached else int(call["input_ids"].shape[1])
    said = f"prefill_chunk_size={size} cuts this prompt into pieces|brings no images|Cannot use prefill chunking"
    with torch.no_grad(), fitprune.prune(model, deleting(model, 1)):
        with pytest.raises((FitPruneError, ValueError), match=said):
            model.generate(**call, max_new_tokens=2, do_sample=False, prefill_chunk_size=size)
        model.generate(**call, max_new_tokens=2, do_sample=False)  # and nothing of it stays behind
    assert "_prefill" not in vars(model)


def test_layers_that_choose_their_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek's sparse attention and its kin (GLM-5): an index tells each query which places of the cache it sees."""
    model, _ = asked("Qwen2_5_VL")
    layer = oracle.decoder_of(model).layers[1]
    monkeypatch.setattr(layer.self_attn, "indexer", type("Indexer", (torch.nn.Module,), {"forward": lambda self, x: x})(), raising=False)
    with pytest.raises(UnsupportedError, match="chooses by an index which keys each token sees"):
        fitprune.attach(model, deleting(model, 1))


def test_experts_by_the_kind_of_token_have_no_known_cost() -> None:
    """Ernie 4.5 VL: text meets one set of experts, images another of another size. Pruning it is exact; a budget needs its costs."""
    model, call = asked("Ernie4_5_VLMoe")
    with pytest.raises(FitPruneError, match="has several sets of experts"):
        fitprune.observe(model, [call], progress=False)


def test_a_scale_by_the_number_of_tokens_is_refused_where_pruning_would_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 scales attention by how far a token is in its cache, in steps of `floor_scale`."""
    model, call = asked("Llama4")
    monkeypatch.setattr(oracle.decoder_of(model).config, "floor_scale", 8)
    with pytest.raises(UnsupportedError, match="at most 7 tokens can be pruned"), fitprune.prune(model, deleting(model, 1)):
        model(**call)


def test_adjacent_images_that_nothing_tells_apart_are_refused() -> None:
    model, call = asked("Phi4Multimodal", [2, "image", "image", 3])
    with (
        pytest.raises(FitPruneError, match="brings 2 images, its tokens are 1 runs of visual tokens, and nothing says which are whose"),
        fitprune.prune(model, deleting(model, 1)),
    ):
        model(**call)


def test_images_that_are_no_tokens_are_refused() -> None:
    """Llama 3.2 Vision reads them by cross-attention; its prompts have one token for each."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    text = {**vlms.NO_HEAD_DIM, "num_hidden_layers": 2, "cross_attention_layers": [1], "eos_token_id": 2}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "vision_output_dim": 32, "intermediate_layers_indices": [0]}
    config = MllamaConfig(text_config=MllamaTextConfig(**text), vision_config=MllamaVisionConfig(**vision), image_token_index=vlms.IMAGE)
    model = MllamaForConditionalGeneration(config)
    with pytest.raises(UnsupportedError, match="reads images by cross-attention"):
        fitprune.attach(model, deleting(model, 1))


def test_encoder_decoders_are_refused() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 1), ("attention_heads", 2))}
    model = BartForConditionalGeneration(BartConfig(vocab_size=8, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes))
    with pytest.raises(UnsupportedError, match="is an encoder-decoder"):
        fitprune.attach(model, Recipe.none(1))


def test_layers_with_states_of_another_shape_are_refused() -> None:
    """Gemma 3n carries four streams of every token."""
    model, call = asked("Qwen2_5_VL")
    layer = oracle.decoder_of(model).layers[1]
    with fitprune.prune(model, deleting(model, 1)):
        hook = layer.register_forward_pre_hook(lambda module, args: (args[0][None], *args[1:]))
        try:
            with pytest.raises(UnsupportedError, match="takes hidden states of shape"):
                model(**call)
        finally:
            hook.remove()


def test_a_cache_of_a_models_own_kind_is_refused() -> None:
    """LFM2 made one in transformers 5.0, that is no `Cache`: later steps would have gone on without the notes of what is left."""
    model, call = asked("Qwen2_5_VL")
    field = cache_argument(oracle.decoder_of(model)) or ""

    def swap(module: Any, args: Any, output: Any) -> None:
        output[field] = SimpleNamespace(key_cache=[])

    hook = oracle.decoder_of(model).register_forward_hook(swap)
    try:
        with pytest.raises(UnsupportedError, match="cannot prune with a SimpleNamespace"), fitprune.prune(model, deleting(model, 1)):
            model(**call)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["Qwen3VL", "Qwen3_5", "Cohere2Vision"])
def test_recordings_leave_out_what_they_do_not_know(name: str) -> None:
    """A recorded prefill would forget features added in the layers, states and windows."""
    model, call = asked(name)
    recipe = deleting(model, 1)

    def never(run: Any, inputs: Any) -> Any:
        raise AssertionError("recorded")

    with torch.no_grad():
        with fitprune.prune(model, recipe):
            plain = model(**call).logits
        with fitprune.prune(model, recipe, graphs=Graphs(4, recorder=never)):
            assert torch.equal(model(**call).logits, plain)
