"""Messages given to transformers alone are answered as `fitprune.load(…).ask` answers: ids, pixels, text, dense and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from multimodal import PARITY
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import fitprune
import fitprune.llava_hr  # registers the model that transformers lacks
from fitprune import Recipe
from fitprune.embedded import MODELS, embedded, model_path
from fitprune.families.conversation import build_prompt
from fitprune.families.convert import convert
from fitprune.families.vlm import VLM

QUESTION = "What number is written?\nAnswer the question using a single word or phrase."
RECIPE = Recipe.step(layer=1, keep=0.4)
LLAVAS = [name for name in MODELS if name != "embedded-qwen"]  # which AutoProcessor does not load without torchvision
ORIGINALS = ("llava15", "llava_next", "llava_hr")


@pytest.fixture(scope="module", params=[*LLAVAS, *ORIGINALS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ships, or a conversion."""
    if request.param in LLAVAS:
        return model_path(request.param)
    return convert(PARITY / request.param / "checkpoint", tmp_path_factory.mktemp("messages") / request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> VLM:
    return fitprune.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """One that is no square: some is lost where it is cropped."""
    small = Image.open(embedded().picture).convert("RGB")
    wide = Image.new("RGB", (small.width * 2, small.height), (120, 30, 200))
    wide.paste(small, (0, 0))
    return wide


def shown(picture: Image.Image, *texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": picture}, *({"type": "text", "text": text} for text in texts)]}


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def inputs_of(processor: Any, messages: Any, **options: Any) -> Any:
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def test_the_inputs_are_ours(ours: VLM, processor: Any, picture: Image.Image) -> None:
    made = inputs_of(processor, [shown(picture, QUESTION)])
    wanted = ours.encode([(ours.prompt(QUESTION), [picture])])
    assert made["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert made["attention_mask"].tolist() == wanted["attention_mask"].tolist()
    assert made["input_ids"][0].tolist().count(ours.tokenizer.bos_token_id) == 1
    torch.testing.assert_close(made["pixel_values"], wanted["pixel_values"], atol=1e-6, rtol=0)
    assert ("image_sizes" in made) == ("image_sizes" in wanted)
    if "image_sizes" in made:
        assert made["image_sizes"].tolist() == wanted["image_sizes"].tolist()


def test_a_dialogue_with_two_images_and_a_system_message(ours: VLM, processor: Any, picture: Image.Image) -> None:
    square = picture.crop((0, 0, 90, 90))
    messages = [said("system", "Be short."), shown(picture, "One?"), said("assistant", "Red."), shown(square, "Two?", "And more?")]
    turns = [("<image>\nOne?", "Red."), ("<image>\nTwo?\nAnd more?", None)]
    wanted = ours.encode([(build_prompt(ours.template, turns, "Be short."), [picture, square])])
    made = inputs_of(processor, messages)
    assert made["input_ids"].tolist() == wanted["input_ids"].tolist()
    torch.testing.assert_close(made["pixel_values"], wanted["pixel_values"], atol=1e-6, rtol=0)


def test_a_batch_is_padded_ahead(ours: VLM, processor: Any, picture: Image.Image) -> None:
    messages = [[shown(picture, "Why?")], [shown(picture, QUESTION)]]
    texts = [processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    made = processor(images=[picture, picture], text=texts, padding=True, return_tensors="pt")
    wanted = ours.encode([(ours.prompt("Why?"), [picture]), (ours.prompt(QUESTION), [picture])])
    assert made["attention_mask"].tolist() == wanted["attention_mask"].tolist()
    assert (made["input_ids"] * made["attention_mask"]).tolist() == (wanted["input_ids"] * wanted["attention_mask"]).tolist()
    torch.testing.assert_close(made["pixel_values"], wanted["pixel_values"], atol=1e-6, rtol=0)


def test_a_text_alone(ours: VLM, processor: Any) -> None:
    assert inputs_of(processor, [said("user", "Why?")])["input_ids"].tolist() == [ours.token_ids(ours.prompt("Why?", image=False), [])]


def answered(model: Any, processor: Any, inputs: Any, **options: Any) -> list[str]:
    output = model.generate(**inputs, max_new_tokens=8, **options)
    return [text.strip() for text in processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)]


def test_generate_answers_as_ours_does_dense_and_pruned(folder: Path, ours: VLM, processor: Any, picture: Image.Image) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = inputs_of(processor, [shown(picture, QUESTION)])
    assert answered(model, processor, inputs) == [ours.ask(QUESTION, picture, max_new_tokens=8)]
    with fitprune.prune(model, RECIPE) as theirs:
        pruned = answered(model, processor, inputs)
    with fitprune.prune(ours.model, RECIPE) as own:
        assert pruned == [ours.ask(QUESTION, picture, max_new_tokens=8)]
    assert [layer[0].tolist() for layer in theirs.alive] == [layer[0].tolist() for layer in own.alive]
    assert len(own.alive[-1][0]) < len(own.alive[0][0])


def test_a_pipeline_answers_as_ours_does(folder: Path, ours: VLM, picture: Image.Image) -> None:
    asked = pipeline("image-text-to-text", model=str(folder), dtype=torch.float32, device="cpu")
    messages = [shown(picture, QUESTION)]
    wanted = ours.ask(QUESTION, picture, max_new_tokens=8)
    assert asked(text=messages, max_new_tokens=8, return_full_text=False)[0]["generated_text"].strip() == wanted
    whole = asked(text=messages, max_new_tokens=8)[0]["generated_text"]
    assert whole[-1]["role"] == "assistant"
    assert whole[-1]["content"].strip() == wanted
    with fitprune.prune(asked.model, RECIPE), fitprune.prune(ours.model, RECIPE):
        pruned = asked(text=messages, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
        assert pruned.strip() == ours.ask(QUESTION, picture, max_new_tokens=8)


def test_the_template_is_known_again(ours: VLM) -> None:
    assert ours.default_template == "vicuna_v1"
    assert ours.tokenizer.chat_template


def test_the_form_outlives_a_folder_that_is_called_otherwise(tmp_path: Path) -> None:
    """Llama-2-chat is told by its name only; a conversion may have any."""
    (tmp_path / "llava-llama-2-tiny").symlink_to(PARITY / "llava15" / "checkpoint", target_is_directory=True)
    made = fitprune.load(str(convert(tmp_path / "llava-llama-2-tiny", tmp_path / "renamed")), device="cpu")
    assert made.template == "llava_llama_2"
    assert made.model.generation_config.eos_token_id == made.ends()
