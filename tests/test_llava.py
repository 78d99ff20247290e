"""LLaVA-1.5 against the authors' code: a miniature checkpoint of the original layout, converted here, loaded by us.

Expected values were recorded from the original implementation (tests/parity/llava15/README.md gives the tolerances).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, LlamaTokenizer, LlavaConfig

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families.llava import pad_to_square
from fitprune.families.loaded import Loaded, read_image

FOLDER = Path(__file__).parent / "parity" / "llava15"
RECORDED = json.loads((FOLDER / "cases.json").read_text())
CASES = {case["name"]: case for case in RECORDED["cases"]}
BATCH = RECORDED["batch"]
SINGLE = [name for name, case in CASES.items() if len(case["images"]) == 1 and "generated_ids" in case]
PIXELS = [name for name in SINGLE if name != "short_prompt"]


def convert(target: Path) -> Path:
    """The original miniature checkpoint as transformers would store it: image token and padding appended to the vocabulary."""
    source = FOLDER / "checkpoint"
    old = json.loads((source / "config.json").read_text())
    vision = json.loads((source / "clip_tower" / "config.json").read_text())["vision_config"]
    vocabulary = old["vocab_size"]
    text = {key: old[key] for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "rms_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id", "tie_word_embeddings",
    )}  # fmt: skip
    config = LlavaConfig(
        text_config={"model_type": "llama", **text, "vocab_size": vocabulary + 64},
        vision_config={**vision, "model_type": "clip_vision_model"},
        image_token_index=vocabulary,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=old["mm_vision_select_layer"],
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(target)

    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("pytorch_model-*.bin")):
        weights |= torch.load(shard, weights_only=True)
    tower = torch.load(source / "clip_tower" / "pytorch_model.bin", weights_only=True)
    weights |= {f"vision_tower.{k}": v for k, v in tower.items() if k.startswith("vision_model.")}
    renamed = {}
    for key, value in weights.items():
        if "inv_freq" in key or "position_ids" in key:
            continue
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            value = torch.nn.functional.pad(value, (0, 0, 0, 64))
        key = key.replace("model.mm_projector.0.", "multi_modal_projector.linear_1.")
        key = key.replace("model.mm_projector.2.", "multi_modal_projector.linear_2.")
        renamed[f"language_model.{key}" if key.startswith(("model.", "lm_head.")) else key] = value.contiguous().clone()
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})

    tokenizer = LlamaTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(target)
    CLIPImageProcessor(size={"shortest_edge": vision["image_size"]}, crop_size=vision["image_size"]).save_pretrained(
        target
    )
    return target


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return fitprune.load(str(convert(tmp_path_factory.mktemp("llava15"))), device="cpu")


def pictures(name: str) -> list[Image.Image]:
    return [read_image(FOLDER / image) for image in CASES[name]["images"]]


@pytest.mark.parametrize("name", CASES)
def test_token_ids_are_those_of_the_original(llava: Loaded, name: str) -> None:
    case = CASES[name]
    expected: list[int] = []
    for token in case["input_ids"]:  # the original keeps one -200 per image
        expected += [llava.image_token] * case["num_visual_tokens"][0] if token == -200 else [token]
    assert llava.token_ids(case["prompt"], pictures(name)) == expected
    assert len(expected) == case["sequence_length"]


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_are_those_of_the_original(llava: Loaded, name: str) -> None:
    expected = load_file(FOLDER / CASES[name]["file"])["pixel_values"]
    pixels = llava.prepare(pictures(name)[0])["pixel_values"][0]
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*SINGLE, "two_images"])
def test_embeddings_logits_and_greedy_tokens(llava: Loaded, name: str) -> None:
    case, expected = CASES[name], load_file(FOLDER / CASES[name]["file"])
    inputs = llava.encode([(case["prompt"], pictures(name))])
    taken: dict[str, torch.Tensor] = {}
    decoder = llava.model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: taken.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        logits = llava.model(**inputs).logits[0, -1]
    handle.remove()
    vocabulary = expected["last_logits"].shape[0]
    largest = expected["inputs_embeds"].abs().max()
    assert (taken["embeds"] - expected["inputs_embeds"]).abs().max() <= 1e-4 * largest
    torch.testing.assert_close(logits[:vocabulary], expected["last_logits"], atol=3e-4, rtol=0)

    steps = len(case["generated_ids"])
    with torch.no_grad():
        output = llava.model.generate(
            **inputs, do_sample=False, max_new_tokens=steps, min_new_tokens=steps, eos_token_id=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    assert output.sequences[0, -steps:].tolist() == case["generated_ids"]
    stacked = torch.stack(output.logits)[:, 0, :vocabulary]
    torch.testing.assert_close(stacked, expected["step_logits"], atol=3e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_same_logits(llava: Loaded, side: str) -> None:
    expected = load_file(FOLDER / BATCH["file"])["last_logits"]
    images = [read_image(FOLDER / image) for image in BATCH["images"]]
    inputs = llava.encode([(text, [image]) for text, image in zip(BATCH["prompts"], images, strict=True)], side)
    with torch.no_grad():
        logits = llava.model(**inputs).logits
    last = torch.stack([row[mask.nonzero().max()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)])
    torch.testing.assert_close(last[:, : expected.shape[1]], expected, atol=3e-4, rtol=0)


def test_the_default_template_is_vicuna_v1(llava: Loaded) -> None:
    case = CASES["wide"]
    question = case["prompt"].split("<image>\n")[1].removesuffix(" ASSISTANT:")
    assert llava.prompt(question) == case["prompt"]


def test_squaring_keeps_every_pixel_and_uses_the_mean_colour() -> None:
    image = Image.new("RGB", (5, 2), (1, 2, 3))
    square = pad_to_square(image, (122, 116, 104))
    assert square.size == (5, 5)
    assert [square.getpixel((0, y)) for y in range(5)] == [
        (122, 116, 104),
        (1, 2, 3),
        (1, 2, 3),
        *[(122, 116, 104)] * 2,
    ]
    assert pad_to_square(square, (0, 0, 0)) is square


def test_pruning_the_converted_checkpoint_leaves_text_and_answers(llava: Loaded) -> None:
    case = CASES["two_images"]
    inputs = llava.encode([(case["prompt"], pictures("two_images"))])
    recipe = fitprune.Recipe.from_deletions([4, 4, 0], visual_tokens=16)
    with fitprune.prune(llava.model, recipe) as trace, torch.no_grad():
        llava.model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    spans = case["visual_spans_start_length"]
    kept = trace.alive[-1][0].tolist()
    assert [sum(start <= p < start + length for p in kept) for start, length in spans] == [8, 8]  # a budget per image
    visual = {p for start, length in spans for p in range(start, start + length)}
    assert [p for p in kept if p not in visual] == [p for p in range(case["sequence_length"]) if p not in visual]


def test_wrong_number_of_images_is_an_error(llava: Loaded) -> None:
    with pytest.raises(FitPruneError, match="1 <image> but there are 0"):
        llava.token_ids(llava.prompt("what?"), [])
