"""The judge: it begins as the known model in more layers, looks where it likes, and is trained and exported like the others."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_embedded_warm import interrupted_as_whole, known, needs_muon  # noqa: F401 (a fixture)
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

import fitprune
from embedded import batches, deeper, models, train, warm
from embedded.canvas import place
from embedded.clutter import SIDE, scene
from embedded.export import export
from embedded.make import main as make
from embedded.network import PATCH
from embedded.scene import SIDE as PLAIN_SIDE
from embedded.tokens import IMAGE_ID, INSTRUCTION, prefix
from embedded.train import Plan
from fitprune.embedded import model_path

JUDGE = models.MODELS["judge"]
answering = partial(batches.answering, look=JUDGE.look, prompts=JUDGE.prompts, draw=JUDGE.draw)
NEW = ("language_model.layers.1.", "encoder.layers.2.", "encoder.layers.5.")


@pytest.fixture
def tiny(known: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """Two layers of the decoder and four of the tower, to which one and two are added."""
    monkeypatch.setattr(warm, "KNOWN", known)
    monkeypatch.setattr(deeper, "TEXT_LAYERS", (0,))
    monkeypatch.setattr(deeper, "VISION_LAYERS", (1, 3))
    monkeypatch.setattr(deeper, "SAMPLES", 2)
    return known


def moved() -> deeper.Judge:
    """A model whose new layers no longer add nothing."""
    made = deeper.Judge()
    generator = torch.Generator().manual_seed(7)
    for name, weight in made.named_parameters():
        if made.pace(name) == 1:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return made


def of_judge(folder: Path) -> Path:
    """The export of such a model."""
    state = {"plan": asdict(Plan(family="judge")), "step": 0, "model": moved().state_dict()}
    torch.save(state, folder / train.CHECKPOINT)
    return export(folder, folder / "model")


def test_it_is_as_deep_and_sees_as_much_as_was_asked_for() -> None:
    settings = deeper.settings()
    assert settings.text_config.num_hidden_layers >= 12
    assert settings.image_seq_length == (settings.vision_config.image_size // PATCH) ** 2 == 256


@torch.no_grad()
def test_layers_put_in_between_change_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On plain pictures of the known size, with the known model's own queries, every logit is the known model's."""
    monkeypatch.setattr(deeper, "SIDE", PLAIN_SIDE)
    monkeypatch.setattr(deeper, "loosened", lambda model: [one.self_attn.q_proj.weight for one in model.model.language_model.layers])
    llava: Any = LlavaForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    batch = batches.answering(0, 2)
    ids = torch.cat([torch.tensor([*prefix(), *[IMAGE_ID] * 144]).expand(2, -1), batch["ids"]], dim=1)
    logits = [model(input_ids=ids, pixel_values=batch["pixels"]).logits for model in (llava, deeper.Judge().llava)]
    assert logits[0].std() > 0.3
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


def test_it_is_trained_in_full_precision(tiny: Path) -> None:
    """The known model's configuration says bf16: weights of that type would lose what small steps add."""
    assert {weight.dtype for weight in deeper.Judge().parameters()} == {torch.float32}


def test_new_layers_stand_where_the_table_says(tiny: Path) -> None:
    made = deeper.Judge()
    fresh = {name for name, _ in made.named_parameters() if made.pace(name) == 1 and not name.startswith("heads")}
    assert fresh == {name for name, _ in made.named_parameters() if any(part in name for part in NEW)}
    assert {made.pace(name) for name, _ in made.named_parameters()} == {1.0, made.known_pace}


def test_every_new_weight_can_learn(tiny: Path) -> None:
    """No gradient is zero but those behind a projection that starts at zero, and these are not after one step."""
    made, batch = deeper.Judge(), answering(0, 2)

    def still() -> set[str]:
        made.zero_grad()
        outputs = made.see(batch)
        (made.loss(outputs, batch)[0] + made.see_loss(outputs, batch)[0]).backward()
        new = {name: weight for name, weight in made.named_parameters() if made.pace(name) == 1}
        return {name for name, weight in new.items() if weight.grad is None or not weight.grad.any()}

    first = still()
    assert first
    assert not any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2", "heads") for name in first)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    # a key's bias shifts all scores of a row alike: its gradient is rounding
    assert not {name for name in still() if not name.endswith("k_proj.bias")}


def test_positions_are_carried_over_to_a_larger_square() -> None:
    positions = torch.randn(1 + 9, 5)
    torch.testing.assert_close(deeper.larger(positions, 3), positions)
    grown = deeper.larger(positions, 7)
    square, wide = positions[1:].view(3, 3, 5), grown[1:].view(7, 7, 5)
    assert torch.equal(grown[0], positions[0])
    torch.testing.assert_close(wide[::3, ::3], square)  # corners on corners, the middle on the middle
    ramp = torch.cat([torch.zeros(1, 1), torch.arange(4.0).repeat_interleave(4)[:, None]])
    rows = deeper.larger(ramp, 8)[1:].view(8, 8)
    assert (rows[1:] >= rows[:-1] - 1e-6).all()
    torch.testing.assert_close(rows, rows[:, :1].expand(-1, 8))


@torch.no_grad()
def test_loosened_queries_let_go_of_visual_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the shipped model and pictures that it was not done on: visual tokens look around, answers are as before."""
    assert model_path() == warm.KNOWN
    made = deeper.Judge()
    monkeypatch.setattr(made, "charged", True, raising=False)  # only to measure
    seen = batches.answering(5000, 3)
    known_model: Any = LlavaForConditionalGeneration.from_pretrained(warm.KNOWN, dtype=torch.float32).model
    visual = known_model.multi_modal_projector(known_model.vision_tower(seen["pixels"], output_hidden_states=True).hidden_states[-1][:, 1:])
    loss, away, right = made.answer_loss(visual, seen["ids"], seen["slot"], seen["answer"])
    assert away > 0.9
    assert loss < 0.2
    assert right.float().mean() > 0.95


def test_no_attention_is_charged(tiny: Path) -> None:
    made, batch = deeper.Judge(), answering(0, 1)
    assert not made.charged
    assert made.loss(made.see(batch), batch)[1] == 0
    answer = made.loss(made.see(batch), batch)[0].item()
    patches = made.see_loss(made.see(batch), batch)[0].item()
    loss, figures = train._losses(made, batch, "answer", 0.5)
    assert loss.item() == pytest.approx(answer + train.PATCHES * patches, rel=1e-5)
    assert figures["away"] == 0


def test_a_packed_sequence_equals_single_ones(tiny: Path) -> None:
    """Logits against transformers' own forward on one question at a time."""
    model, batch = moved(), answering(4, 2)
    heard: list[Tensor] = []
    handle = model.llava.lm_head.register_forward_hook(lambda module, inputs, output: heard.append(output))
    with torch.no_grad():
        outputs = model.see(batch)
        model.loss(outputs, batch)
        handle.remove()
        logits, slots = [], (1, 6, batches.SLOTS)
        for row in range(2):
            for slot in slots:
                own = batch["slot"][row] == slot
                ids = torch.cat([torch.tensor([*prefix(), *[IMAGE_ID] * outputs[-1].shape[1]]), batch["ids"][row][own]])
                answer = F.pad(batch["answer"][row][own], (len(ids) - int(own.sum()), 0))
                found = model.llava(input_ids=ids[None], pixel_values=batch["pixels"][row : row + 1])
                logits.append(found.logits[0, :-1][answer[1:]])
    wanted = torch.isin(batch["slot"], torch.tensor(slots))[batch["answer"]]
    assert torch.cat(logits).std() > 0.3
    torch.testing.assert_close(heard[0][wanted], torch.cat(logits), atol=1e-4, rtol=1e-4)


def test_what_is_exported_is_what_was_trained_on_the_same_pixels(tiny: Path, tmp_path: Path) -> None:
    folder = of_judge(tmp_path)
    trained = moved()
    for weight in trained.parameters():  # exported weights are rounded once
        weight.data = weight.data.bfloat16().float()
    vlm = fitprune.load(str(folder), device="cpu")
    shown = place(scene("train", 9))
    inputs = vlm.encode([(vlm.prompt(f"What number is written?\n{INSTRUCTION}"), [shown])])
    torch.testing.assert_close(inputs["pixel_values"], JUDGE.look([scene("train", 9)])["pixels"], rtol=0, atol=1e-5)
    assert shown.size == (SIDE, SIDE)
    assert vlm.tokens_for(shown) == vlm.count_visual(inputs["input_ids"]) == 256
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**inputs).logits, trained.llava(**inputs).logits, rtol=1e-4, atol=1e-5)


@needs_muon
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(batch=2, see_steps=1, answer_steps=2, family="judge")
    interrupted_as_whole(plan, deeper.Judge().state_dict(), tmp_path, monkeypatch)


@needs_muon
def test_one_command_makes_the_model_and_its_card(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedded.make.SAMPLES", 2)
    run, repository = tmp_path / "run", tmp_path / "embedded"
    flags = ["--see-steps", "1", "--answer-steps", "1", "--batch", "2", "--ranks", "1", "--device", "cpu", "--workers", "0"]
    flags += ["--pictures", "1", "--dense-pictures", "2", "--ratios", "0.5", "--scores", "random", "--install", str(repository)]
    assert make([str(run), "--family", "judge", *flags]) == 0
    assert [path.name for path in repository.iterdir()] == ["judge"]
    figures = json.loads((repository / "judge" / "figures.json").read_text())
    assert figures["tokens"] == 256
    assert list(figures["attention"])[:2] == ["embedded/judge", "embedded"]
    card = (repository / "judge" / "README.md").read_text(encoding="utf-8")
    assert "{" not in card
    assert "--model-path embedded/judge --scenes cluttered --pictures 1 --ratios 0.5 --scores random" in card
    assert "224 pixels" in card
    assert "charged\nfor nothing" in card
