"""Every family on the same walk: load → observe → fit → prune → generate, one by one and in batches of unlike images.

The checkpoints are the recorded miniatures of the original layout, made deep enough for a ratio of 0.9. What pruning
keeps is compared with the independent implementation in tiny.py, which masks deleted tokens in the unmodified model.
Entry points are in test_entry_points.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from multimodal import PARITY, Recorded
from PIL import Image
from tiny import DECODERS, dense_pruned, sharpen
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families import FAMILIES, llava, llava_next
from fitprune.families.convert import convert
from fitprune.families.loading import family_in
from fitprune.families.protocols import Family, OriginalFamily
from fitprune.families.vlm import VLM

RECORDED = {"llava": "llava15", "llava_next": "llava_next", "llava_hr": "llava_hr"}
SIZES = ((150, 40), (33, 90), (64, 64))  # wide, tall, square
TEXTS = ("What is it?", "How many people are there in this picture?", "Read.")
RATIOS = (0.3, 0.6, 0.9)
LAYERS = 12


def deeper(name: str, path: Path) -> Path:
    """A recorded checkpoint with `LAYERS` layers: its own, over and over."""
    recorded, tensors = Recorded(name), {}
    own = json.loads((recorded.checkpoint / "config.json").read_text())["num_hidden_layers"]
    for key, value in recorded.tensors().items():
        tensors[key] = value
        if (parts := key.split("."))[:2] == ["model", "layers"]:
            for layer in range(int(parts[2]), LAYERS, own):
                tensors[".".join([*parts[:2], str(layer), *parts[3:]])] = value.clone()
    return recorded.rewritten(path, tensors, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    name = RECORDED[request.param]
    return fitprune.load(str(deeper(name, tmp_path_factory.mktemp(name) / "checkpoint")), device="cpu")


@pytest.fixture(scope="module")
def asked(vlm: VLM) -> list[tuple[str, list[Image.Image]]]:
    """Three questions about three images of unlike shapes."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    return [(vlm.prompt(text), [image]) for text, image in zip(TEXTS, images, strict=True)]


@pytest.fixture(scope="module")
def recipes(vlm: VLM, asked: list[tuple[str, list[Image.Image]]]) -> dict[float, fitprune.Recipe]:
    stats = fitprune.observe(vlm.model, [vlm.encode(asked, "right")], progress=False)
    assert stats.samples == len(asked)
    assert stats.visual_tokens.tolist() == [vlm.tokens_for(images[0]) for _, images in asked]
    return fitprune.fit_all(stats, None, RATIOS)


def last_logits(vlm: VLM, inputs: dict[str, Tensor]) -> Tensor:
    """[B, vocabulary], of left-padded rows."""
    with torch.no_grad():
        return vlm.model(**inputs).logits[:, -1]


def spans(vlm: VLM, ids: Tensor) -> list[tuple[int, int]]:
    """The one image of a row."""
    at = (ids == vlm.image_token).nonzero().flatten().tolist()
    return [(at[0], at[-1] + 1)]


def names(protocol: type) -> set[str]:
    """What a protocol asks of a family's module."""
    return {
        name
        for one in protocol.__mro__
        for name in (*vars(one), *getattr(one, "__annotations__", ()))
        if one.__module__.startswith("fitprune.") and not name.startswith("_")
    }


def test_the_protocol_is_kept(vlm: VLM) -> None:
    module = sys.modules[f"fitprune.families.{FAMILIES[vlm.model.config.model_type]}"]
    asking, original = names(Family), names(OriginalFamily)
    assert {"encode", "images", "model_class", "token_ids"} <= asking
    assert {"RULES", "claims", "configure", "processor"} <= original - asking
    assert not original - vars(module).keys()
    assert type(vlm.model) is module.model_class()


def test_a_recipe_that_deletes_nothing_changes_nothing(vlm: VLM, asked: list[tuple[str, list[Image.Image]]]) -> None:
    inputs = vlm.encode(asked)
    dense = last_logits(vlm, inputs)
    with fitprune.prune(vlm.model, fitprune.Recipe.none(vlm.cost.layers)) as trace:
        assert torch.equal(last_logits(vlm, inputs), dense)
    assert trace.visual_tokens == [vlm.tokens_for(images[0]) for _, images in asked]


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_budget_is_met_and_a_batch_is_its_singles(
    vlm: VLM, asked: list[tuple[str, list[Image.Image]]], recipes: dict[float, fitprune.Recipe], ratio: float
) -> None:
    recipe = recipes[ratio]
    assert recipe.achieved is not None
    assert recipe.achieved >= ratio - 1e-9
    inputs = vlm.encode(asked)
    with fitprune.prune(vlm.model, recipe) as trace:
        together, kept = last_logits(vlm, inputs), [rows[:] for rows in trace.visual]
        answers = vlm.generate(inputs, max_new_tokens=4)
        for row, one in enumerate(asked):
            single = vlm.encode([one])
            torch.testing.assert_close(last_logits(vlm, single)[0], together[row], atol=2e-4, rtol=0)
            padding = inputs["input_ids"].shape[1] - single["input_ids"].shape[1]
            tokens = vlm.tokens_for(one[1][0])
            for layer, (alone, batch) in enumerate(zip(trace.visual, kept, strict=True)):
                assert [position + padding for position in alone[0].tolist()] == batch[row].tolist()
                assert len(alone[0]) == recipe.alive(tokens, vlm.cost.layers)[layer]
            assert vlm.generate(single, max_new_tokens=4)[0] == answers[row]


@pytest.mark.parametrize("row", range(len(SIZES)))
def test_survivors_and_logits_are_those_of_a_masked_dense_model(
    vlm: VLM, asked: list[tuple[str, list[Image.Image]]], recipes: dict[float, fitprune.Recipe], row: int
) -> None:
    inputs = vlm.encode([asked[row]])
    with fitprune.prune(vlm.model, recipes[0.6]) as trace:
        ours = last_logits(vlm, inputs)[0]
    expected = dense_pruned(vlm.model, inputs, spans(vlm, inputs["input_ids"][0]), recipes[0.6])
    for layer in range(vlm.cost.layers):
        assert trace.alive[layer][0].tolist() == expected.alive(layer), f"layer {layer}"
    torch.testing.assert_close(ours, expected.logits[-1], atol=1e-4, rtol=0)


def test_several_images_in_one_prompt_have_a_budget_each(
    vlm: VLM, asked: list[tuple[str, list[Image.Image]]], recipes: dict[float, fitprune.Recipe]
) -> None:
    images = [one for _, (one,) in asked]
    adjacent = vlm.prompt("Compare.").replace("<image>", "<image><image><image>")
    with fitprune.prune(vlm.model, recipes[0.6]) as trace:
        last_logits(vlm, vlm.encode([(adjacent, images)]))
    kept, ids = trace.alive[-1][0], vlm.encode([(adjacent, images)])["input_ids"][0]
    start = int((ids == vlm.image_token).nonzero()[0])
    for image in images:
        tokens = vlm.tokens_for(image)
        alive = ((kept >= start) & (kept < start + tokens)).sum()
        assert alive == recipes[0.6].alive(tokens, vlm.cost.layers)[-1]
        start += tokens


# ---- which family a checkpoint is of --------------------------------------------------------------------------------


def added(monkeypatch: pytest.MonkeyPatch, **names: object) -> None:
    """A family "newcomer": one module with these names and one line in `FAMILIES`."""
    module = ModuleType("fitprune.families.newcomer")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "newcomer", "newcomer")


def changed(name: str, path: Path, **fields: object) -> str:
    """A recorded checkpoint with other fields in its config.json."""
    shutil.copytree(Recorded(name).checkpoint, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | fields))
    return str(path)


class NewcomerConfig(LlavaConfig):
    model_type = "newcomer"


class Newcomer(LlavaForConditionalGeneration):
    config_class = NewcomerConfig


def test_a_family_without_an_original_layout_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = {name: value for name, value in vars(llava).items() if name in names(Family)}
    source, folder = fitprune.load(str(Recorded("llava15").checkpoint), device="cpu"), tmp_path / "newcomer-hf"
    model = Newcomer(NewcomerConfig.from_dict(source.model.config.to_dict() | {"model_type": "newcomer"}))
    model.load_state_dict(source.model.state_dict())
    for part in (model, source.tokenizer, llava.image_processor(model.config, None)):
        part.save_pretrained(folder)
    with pytest.raises(
        FitPruneError, match=r"'newcomer' model, no vision-language .* of no family known here \(llava, llava_next, llava_hr\)"
    ):
        fitprune.load(str(folder), device="cpu")
    added(monkeypatch, **asking | {"model_class": lambda: Newcomer})
    vlm = fitprune.load(str(folder), device="cpu")
    assert type(vlm.model) is Newcomer
    Recorded("llava15").check_forward(vlm, "wide")
    with fitprune.prune(vlm.model, fitprune.Recipe.from_deletions([4, 4, 0], visual_tokens=16)) as trace:
        assert isinstance(vlm.ask("Why?", Image.new("RGB", (30, 20)), max_new_tokens=2), str)
    assert len(trace.visual[-1][0]) == 8
    Recorded("llava15").check_forward(fitprune.load(str(Recorded("llava15").checkpoint), device="cpu"), "wide")
    with pytest.raises(FitPruneError, match=r"no family known here \(llava, llava_next, llava_hr\)"):  # it has nothing original
        fitprune.load(changed("llava15", tmp_path / "strange", mm_patch_merge_type="strange"), device="cpu")


def test_a_family_with_an_original_layout_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed("llava15", tmp_path / "newcomer-7b", mm_patch_merge_type="newcomer")
    with pytest.raises(FitPruneError, match=r"no family known here \(llava, llava_next, llava_hr\): see docs/new_family\.md"):
        fitprune.load(path, device="cpu")
    added(
        monkeypatch,
        **{name: value for name, value in vars(llava).items() if name in names(OriginalFamily)}
        | {
            "claims": lambda config: config.get("mm_patch_merge_type") == "newcomer",
            "RULES": ((r"model\.new_projector\.", "model.multi_modal_projector.linear_"),),
        },
    )
    Recorded("llava15").check_forward(fitprune.load(path, device="cpu"), "wide")
    tensors = {key.replace("mm_projector.0", "new_projector.1"): value for key, value in Recorded("llava15").tensors().items()}
    renamed = Recorded("llava15").rewritten(tmp_path / "renamed", tensors, mm_patch_merge_type="newcomer")
    Recorded("llava15").check_forward(fitprune.load(str(renamed), device="cpu"), "wide")


@pytest.mark.parametrize("use", [lambda path, target: fitprune.load(path, device="cpu"), convert], ids=["load", "convert"])
def test_a_config_that_two_families_claim_is_refused_with_both_names(
    tmp_path: Path, use: Callable[[str, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed("llava_hr", tmp_path / "both", image_aspect_ratio="anyres")
    with pytest.raises(FitPruneError, match="image_aspect_ratio 'anyres', which is not supported"):  # one claims it, and says what is wrong
        use(path, tmp_path / "target")
    monkeypatch.setattr(llava_next, "claims", lambda config: config["image_aspect_ratio"] == "anyres")
    with pytest.raises(FitPruneError, match="is claimed by llava_next and llava_hr, which no checkpoint is both of"):
        use(path, tmp_path / "target")


@pytest.mark.parametrize("file", sorted(PARITY.glob("*/checkpoint/config.json")), ids=lambda file: file.parts[-3])
def test_one_family_claims_each_recorded_checkpoint(file: Path) -> None:
    config = json.loads(file.read_text())
    claiming = [name for name, module in FAMILIES.items() if family_in(module).claims(config)]
    assert [RECORDED[name] for name in claiming] == [file.parts[-3]]


@pytest.mark.parametrize(
    ("kind", "special", "template", "opening"),
    [
        ("llama", (), "vicuna_v1", "A chat between a curious user"),
        ("llama", ("<|im_start|>", "<|im_end|>"), "chatml_direct", "<|im_start|>system\nAnswer the questions.<|im_end|>"),
        ("llama", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llava_llama_3", "<|begin_of_text|>"),
        ("mistral", (), "mistral_instruct", "[INST] <image>"),
        ("qwen2", ("<|im_start|>", "<|im_end|>"), "qwen_1_5", "<|im_start|>system\nYou are a helpful assistant."),
    ],
)
def test_language_models_of_llava_next_in_transformers_layout(
    tmp_path: Path, kind: str, special: tuple[str, ...], template: str, opening: str
) -> None:
    """Vicuna, Yi-34B, Llama-3, Mistral, Qwen1.5: the prompt is theirs, answers end where theirs do, pruning is right."""
    tokenizer = LlamaTokenizer.from_pretrained(Recorded("llava_next").checkpoint)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, "<image>")])
    decoder = type(DECODERS[kind]().config)(**{**DECODERS[kind]().config.to_dict(), "vocab_size": len(tokenizer)})
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
        ),
        text_config=decoder,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )
    sharpen(LlavaNextForConditionalGeneration(config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llava_next.image_processor(config, None).save_pretrained(tmp_path)
    vlm = fitprune.load(str(tmp_path), device="cpu")
    assert vlm.template == vlm.default_template == template
    assert vlm.prompt("Why?").startswith(opening)
    ends = special[-1:] or (("</s>",) if template == "vicuna_v1" else ())  # this config names none
    assert vlm.ends() == tokenizer.convert_tokens_to_ids(list(ends))
    assert fitprune.load(str(tmp_path), device="cpu", template="llava_v1").template == "llava_v1"
    inputs = vlm.encode([(vlm.prompt("Why?"), [Image.effect_noise((90, 50), 60).convert("RGB")])])
    recipe = fitprune.Recipe.from_deletions([3, 0, 5, 2], visual_tokens=16)
    with fitprune.prune(vlm.model, recipe) as trace:
        ours = last_logits(vlm, inputs)[0]
        assert isinstance(vlm.generate(inputs, max_new_tokens=3)[0], str)
    expected = dense_pruned(vlm.model, inputs, spans(vlm, inputs["input_ids"][0]), recipe)
    assert [trace.alive[layer][0].tolist() for layer in range(4)] == [expected.alive(layer) for layer in range(4)]
    torch.testing.assert_close(ours, expected.logits[-1], atol=1e-4, rtol=0)
