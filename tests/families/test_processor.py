"""Models of transformers without a module here: loaded and asked by their own processor and chat template, and nothing else.

Tiny checkpoints with real processors (tests/support/processors.py). What is expected is made by transformers' processor and `generate`,
called from here. Commands are in tests/cli/test_any_model.py, videos in tests/video/.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from multimodal import Recorded
from PIL import Image

import fitprune
from fitprune.errors import FitPruneError
from fitprune.families import VLM, loading
from fitprune.families.parts import has_torchvision
from fitprune.images.video import Video
from fitprune.studies.against_dense import teacher_forced_logits

FIRST = ("Qwen2_5_VL", "InternVL", "Gemma3")  # the others go to `make test-rest`
NAMES = [name if name in FIRST else pytest.param(name, marks=pytest.mark.rest) for name in processors.BUILDERS]
SIZES = ((50, 30), (30, 60), (40, 40))
TEXTS = ("Why?", "How many people are there?", "Read.")
NOISE = np.random.default_rng(0)
IMAGES = [Image.fromarray(NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


@pytest.fixture(scope="module", params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processors.for_module(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def vlm(path: Path) -> VLM:
    return fitprune.load(str(path), device="cpu")


def equal(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name, check_dtype=False)


# ---- asking


@pytest.mark.parametrize("images", [1, 2, 0])
def test_inputs_and_answers_are_those_of_transformers(path: Path, vlm: VLM, images: int) -> None:
    shown = IMAGES[:images]
    content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": "What is it?"}]
    expected = processors.expected_inputs(path, vlm.model, *content)
    prompt = vlm.write([("<image>\n" * images + "What is it?", None)])
    equal(vlm.encode([(prompt, shown)]), expected)
    ids = vlm.model.generate(**expected, do_sample=False, max_new_tokens=6)[:, expected["input_ids"].shape[1] :]
    answer = vlm.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert vlm.ask("What is it?", *shown, max_new_tokens=6) == answer
    with fitprune.prune(vlm.model, fitprune.Recipe.none(vlm.cost.layers)):
        assert vlm.ask("What is it?", *shown, max_new_tokens=6) == answer
    if images == 1:
        assert vlm.prompt("What is it?") == prompt
        assert vlm.tokens_for(shown[0]) == int((expected["input_ids"] == vlm.image_token).sum())
        assert vlm.token_ids(prompt, shown) == expected["input_ids"][0].tolist()


def test_a_batch_of_unlike_images_is_its_rows_pruned_and_not(vlm: VLM) -> None:
    asked = [(vlm.prompt(text), [image]) for text, image in zip(TEXTS, IMAGES, strict=True)]
    asked.insert(1, (vlm.prompt("Why not?", image=False), []))
    for recipe in (fitprune.Recipe.none(vlm.cost.layers), fitprune.Recipe.step(layer=1, keep=0.5)):
        with fitprune.prune(vlm.model, recipe):
            together = vlm.generate(vlm.encode(asked), max_new_tokens=4)
            assert together == [vlm.generate(vlm.encode([one]), max_new_tokens=4)[0] for one in asked]


def test_padding_sides_hold_the_same_tokens(vlm: VLM) -> None:
    asked = [(vlm.prompt(text), [image]) for text, image in zip(TEXTS, IMAGES, strict=True)]
    left, right = vlm.encode(asked, "left"), vlm.encode(asked, "right")
    for row in range(len(asked)):
        pick = [batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() for batch in (left, right)]
        assert pick[0] == pick[1] == vlm.token_ids(*asked[row])
    assert not left["attention_mask"][:, 0].all()
    assert left["attention_mask"][:, -1].all()
    assert right["attention_mask"][:, 0].all()


def test_statistics_and_a_fitted_recipe_meet_the_budget(vlm: VLM) -> None:
    asked = [(vlm.prompt(text), [image]) for text, image in zip(TEXTS, IMAGES, strict=True)]
    stats = fitprune.observe(vlm.model, [vlm.encode(asked, "right")], progress=False)
    assert stats.visual_tokens.tolist() == [vlm.tokens_for(image) for image in IMAGES]
    recipe = fitprune.fit(stats, None, 0.5)
    with fitprune.prune(vlm.model, recipe) as trace:
        vlm.generate(vlm.encode(asked), max_new_tokens=2)
    assert trace.visual_tokens == stats.visual_tokens.tolist()
    for layer, rows in enumerate(trace.visual):
        assert [len(row) for row in rows] == [recipe.alive(count, vlm.cost.layers)[layer] for count in trace.visual_tokens]
    assert len(trace.visual[-1][0]) < trace.visual_tokens[0]


def test_logits_along_an_answer_are_those_of_the_whole_sequence(vlm: VLM) -> None:
    """Positions in three dimensions, token types and windows included: rows of a padded batch, each against itself in one forward."""
    asked = [(vlm.prompt(text), [image]) for text, image in zip(TEXTS, IMAGES, strict=True)]
    answer = torch.randint(5, 200, (len(asked), 4))
    along = teacher_forced_logits(vlm.model, vlm.encode(asked), answer)
    for row, one in enumerate(asked):
        whole = vlm.encode([one])
        length = whole["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            if name in whole:
                more = answer[row : row + 1, :-1] if name == "input_ids" else torch.full((1, 3), int(name == "attention_mask"))
                whole[name] = torch.cat([whole[name], more], 1)
        with torch.no_grad():
            torch.testing.assert_close(along[row], vlm.model(**whole).logits[0, length - 1 :], rtol=1e-3, atol=1e-3)


def test_later_turns_and_answers_are_written_by_the_template(vlm: VLM) -> None:
    turns = [("<image>\nOne?", "yes"), ("Two?", None)]
    prompt = vlm.write(turns)
    assert prompt.index("One?") < prompt.index("yes") < prompt.index("Two?")
    assert "'type'" not in prompt
    assert vlm.write([("<image>\nOne?", "yes")]).startswith(vlm.write([("<image>\nOne?", None)]))
    assert isinstance(vlm.generate(vlm.encode([(prompt, IMAGES[:1])]), max_new_tokens=2)[0], str)


# ---- what is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return processors.saved("Qwen2_5_VL", tmp_path_factory.mktemp("small") / "checkpoint")


def edited(path: Path, target: Path, **files: dict[str, Any] | str | None) -> str:
    """A copy with other files in it; None takes one away."""
    target.mkdir()
    for file in path.iterdir():
        (target / file.name).symlink_to(file)
    for name, content in files.items():
        place = target / name.replace("__", ".")
        place.unlink(missing_ok=True)
        if content is not None:
            place.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(target)


def test_a_checkpoint_without_chat_template(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match=r"has no chat template, so nothing says how it is asked: put one into chat_template\.jinja"):
        fitprune.load(edited(small, tmp_path / "bare", chat_template__jinja=None), device="cpu")


def test_a_checkpoint_without_processor(small: Path, tmp_path: Path) -> None:
    files = dict.fromkeys(("processor_config__json", "preprocessor_config__json", "tokenizer_config__json"))
    with pytest.raises(FitPruneError, match="has no processor"):
        fitprune.load(edited(small, tmp_path / "bare", **files), device="cpu")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"processor_class": "FutureProcessor"}, "has no FutureProcessor"),
        (
            {"processor_class": "TheirProcessor", "auto_map": {"AutoProcessor": "their.TheirProcessor"}},
            "is code of its own, which is not run",
        ),
        ({"processor_class": "Wav2Vec2Processor"}, "the processor"),
    ],
)
def test_a_processor_that_cannot_be_used(small: Path, tmp_path: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(FitPruneError, match=message) as error:
        fitprune.load(edited(small, tmp_path / "strange", processor_config__json=said), device="cpu")
    assert "\n" not in str(error.value)


def test_a_damaged_processor_is_one_line_and_comes_before_the_weights(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = edited(small, tmp_path / "torn", preprocessor_config__json="{ torn")
    monkeypatch.setattr(loading, "from_transformers", lambda *_: pytest.fail("the weights were read first"))
    with pytest.raises(FitPruneError, match=r"preprocessor_config\.json: not JSON, or torn") as error:
        fitprune.load(path, device="cpu")
    assert "\n" not in str(error.value)


def test_a_template_of_ours_is_refused_by_name(small: Path) -> None:
    with pytest.raises(FitPruneError, match="asked by the chat template that it brings: leave out --conv-mode vicuna_v1"):
        fitprune.load(str(small), device="cpu", template="vicuna_v1")


def test_marks_and_images_are_counted(small: Path) -> None:
    vlm = fitprune.load(str(small), device="cpu")
    for prompt, shown in ((vlm.prompt("What?"), []), (vlm.prompt("What?"), IMAGES[:2]), (vlm.prompt("<|image_pad|>?"), IMAGES[:1])):
        with pytest.raises(FitPruneError, match=r"the prompt has \d <\|image_pad\|> but there are \d image\(s\)"):
            vlm.encode([(prompt, shown)])
    with pytest.raises(FitPruneError, match=r"Qwen2_5_VLProcessor cannot take this prompt: .*aspect ratio"):
        vlm.ask("What?", Image.new("RGB", (4000, 4)))


@pytest.mark.skipif(has_torchvision(), reason="torchvision is installed")
def test_without_torchvision_images_work_and_videos_say_what_to_install(small: Path) -> None:
    vlm = fitprune.load(str(small), device="cpu")
    with pytest.raises(FitPruneError, match=r"a video needs torchvision: pip install 'fitprune\[video\]'"):
        vlm.ask("What happens?", video=[IMAGES[0]] * 4)


def test_models_that_know_no_videos_say_so(tmp_path: Path) -> None:
    clip = Video(IMAGES[:1], [0], 1, 1.0)
    with pytest.raises(FitPruneError, match="knows no videos"):
        fitprune.load("embedded", device="cpu").ask("What?", video=clip)
    vlm = fitprune.load(str(processors.saved("Gemma3", tmp_path / "gemma")), device="cpu")
    with pytest.raises(FitPruneError, match="Gemma3Processor reads no videos"):
        vlm.ask("What?", video=clip)


# ---- which family


def test_a_tower_that_our_llava_does_not_know_is_asked_by_its_processor(tmp_path: Path) -> None:
    path = processors.saved("LlavaSiglip", tmp_path / "siglip")
    assert json.loads((path / "config.json").read_text())["model_type"] == "llava"
    vlm = fitprune.load(str(path), device="cpu")
    assert vlm.family.__name__.endswith("families.processor")  # type: ignore[attr-defined]
    assert vlm.tokens_for(IMAGES[0]) == 36
    assert fitprune.load("embedded", device="cpu").family.__name__.endswith("families.llava")  # type: ignore[attr-defined]


def test_pixtral_is_no_llava_of_ours(tmp_path: Path) -> None:
    path = processors.saved("Pixtral", tmp_path / "pixtral")
    if not processors.missing("Pixtral"):
        pytest.skip("its processor is there: asked with the others")
    with pytest.raises(FitPruneError, match=r"PixtralProcessor, the processor of .*, needs torchvision: pip install 'fitprune\[video\]'"):
        fitprune.load(str(path), device="cpu")


def test_a_llava_with_another_template_of_its_own_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llava = fitprune.load(str(Recorded("llava15").checkpoint), device="cpu")
    path = tmp_path / "llava-hf"
    for part in (llava.model, llava.tokenizer, llava.processor):
        part.save_pretrained(path)
    (path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    turn = "USER: {% for part in m['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}\nASSISTANT:"
    other = "{% for m in messages %}" + turn + "{% endfor %}"
    ours = "{% for m in messages %}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    ours += "detailed, and polite answers to the user's questions. " + turn.replace("\nASSISTANT", " ASSISTANT") + "{% endfor %}"
    for template, options, said in ((other, {}, 1), (ours, {}, 0), (other, {"template": "llava_v1"}, 0)):
        (path / "chat_template.jinja").write_text(template)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fitprune"):
            assert fitprune.load(str(path), device="cpu", **options).ask("Why?", IMAGES[0], max_new_tokens=1) is not None
        assert len([record for record in caplog.records if "chat template" in record.message]) == said


# ---- generation


def test_the_checkpoints_own_penalties_do_nothing(small: Path) -> None:
    vlm = fitprune.load(str(small), device="cpu")
    before = vlm.ask("What is it?", IMAGES[0], max_new_tokens=12)
    vlm.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, do_sample=True, temperature=3.0, top_k=9)  # type: ignore[union-attr,operator]
    assert vlm.ask("What is it?", IMAGES[0], max_new_tokens=12) == before
