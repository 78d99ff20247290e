"""The models that start from the known one: LLaVA-NeXT, LLaVA-HR and, where its own tests do not say it, Qwen3-VL.

They begin as the known model, packed questions are single ones in transformers' forward, they are trained on the pictures that
`fitprune.load` makes, and what is exported is what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_embedded_network import TINY
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

import fitprune
from embedded import batches, models, native, network, tiles, train, two_towers, warm
from embedded.canvas import CANVASES, canvas_of, place
from embedded.export import export
from embedded.make import main as make
from embedded.optimise import RATES, optimizers
from embedded.render import render
from embedded.scene import SIDE, draw
from embedded.tokens import IMAGE_ID, INSTRUCTION, prefix
from embedded.train import Plan, Run
from fitprune.errors import FitPruneError

SIZES = {"vision": (16, 4, 2, 24), "text": (16, 2, 2, 24)}  # four layers: LLaVA-HR cuts them in four parts
LLAVAS = {"next": tiles.Tiled, "hr": two_towers.TwoTowers}
FAMILIES = LLAVAS | {"qwen": native.Native}
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9's Muon")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny known model whose logits are large enough for a mistake to show."""
    folder = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(network.SIZES, "tiny", SIZES)
        model = network.Embedded("tiny", seed=5)
        torch.nn.init.normal_(model.llava.lm_head.weight, std=0.7)
        state = {"plan": asdict(Plan("tiny")), "step": 0, "model": model.state_dict()}
        torch.save(state, folder / train.CHECKPOINT)
        return export(folder, folder / "model")


@pytest.fixture(autouse=True)
def _start(known: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(warm, "KNOWN", known)
    monkeypatch.setattr(two_towers, "DEPTHS", (1, 1, 1, 1))
    monkeypatch.setattr(two_towers, "WIDTHS", (4, 6, 8, 10))
    tiles.pictures.cache_clear()
    yield
    tiles.pictures.cache_clear()


def moved(family: str) -> Any:
    """A model whose new weights are no longer at their start."""
    made = FAMILIES[family]()
    generator = torch.Generator().manual_seed(7)
    for name, weight in made.named_parameters():
        if made.pace(name) == 1:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return made


def of_family(family: str, folder: Path) -> Path:
    """The export of such a model."""
    state = {"plan": asdict(Plan(family=family)), "step": 0, "model": moved(family).state_dict()}
    torch.save(state, folder / train.CHECKPOINT)
    return export(folder, folder / "model")


def start_with(size: tuple[int, int]) -> int:
    """The first training scene of a batch on that canvas."""
    return next(index for index in range(200) if canvas_of(draw("train", index)) == size)


CASES = [("hr", (SIDE, SIDE)), *(("next", size) for size in CANVASES)]


@pytest.mark.parametrize(("family", "size"), CASES)
def test_a_packed_sequence_equals_single_ones(family: str, size: tuple[int, int]) -> None:
    """Logits against transformers' (or LlavaHr's) own forward on one question at a time."""
    model = moved(family)
    batch = batches.answering(start_with(size), 2, models.MODELS[family].look)
    heard: list[Tensor] = []
    handle = model.llava.lm_head.register_forward_hook(lambda module, inputs, output: heard.append(output))
    (image,) = model.see(batch)
    model.answer_loss(image, batch["ids"], batch["slot"], batch["answer"])
    handle.remove()
    logits = []
    views = [key for key in batch if key in ("pixels", "image_sizes")]
    for row in range(2):
        inputs = {key.replace("pixels", "pixel_values"): batch[key][row : row + 1] for key in views}
        for slot in (1, 6, batches.SLOTS):
            own = batch["slot"][row] == slot
            ids = torch.cat([torch.tensor([*prefix(), *[IMAGE_ID] * image.shape[1]]), batch["ids"][row][own]])
            answer = F.pad(batch["answer"][row][own], (len(ids) - int(own.sum()), 0))
            logits.append(model.llava(input_ids=ids[None], **inputs).logits[0, :-1][answer[1:]])
    wanted = torch.isin(batch["slot"], torch.tensor([1, 6, batches.SLOTS]))[batch["answer"]]
    assert torch.cat(logits).std() > 0.3
    torch.testing.assert_close(heard[0][wanted], torch.cat(logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "size"), CASES)
def test_pictures_are_those_that_load_makes(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    vlm = fitprune.load(str(of_family(family, tmp_path)), device="cpu")
    start = start_with(size)
    batch = models.MODELS[family].look([draw("train", start + at) for at in range(2)])
    (tokens,) = FAMILIES[family]().see(batch)
    for at in range(2):
        picture = place(draw("train", start + at), size)
        theirs = vlm.prepare(picture)
        torch.testing.assert_close(theirs.pop("pixel_values")[0], batch["pixels"][at], rtol=0, atol=1e-5)
        assert {key: value[0].tolist() for key, value in theirs.items()} == {
            key: batch[key][at].tolist() for key in batch if key not in ("pixels", "targets")
        }
        assert vlm.tokens_for(picture) == tokens.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_exported_is_what_was_trained(family: str, tmp_path: Path) -> None:
    folder = of_family(family, tmp_path)
    trained = moved(family)
    for weight in trained.parameters():  # exported weights are rounded once
        weight.data = weight.data.bfloat16().float()
    vlm = fitprune.load(str(folder), device="cpu")
    inputs = vlm.encode([(vlm.prompt(f"What number is written?\n{INSTRUCTION}"), [render(draw("held-out", 0))])])
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**inputs).logits, trained.llava(**inputs).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hr_begins_as_the_known_model_less_its_class_token(known: Path) -> None:
    """Against transformers' CLIP whose other tokens cannot see the class token, on the same pixels."""
    model = two_towers.TwoTowers()
    batch = two_towers.look([draw("train", 0), draw("train", 1)])
    small = F.interpolate(batch["pixels"], (SIDE, SIDE), mode="bilinear", align_corners=True)
    llava: Any = LlavaForConditionalGeneration.from_pretrained(known, dtype=torch.float32, attn_implementation="eager")
    tower = getattr(llava.model.vision_tower, "vision_model", llava.model.vision_tower)
    hidden = tower.pre_layrnorm(tower.embeddings(small))
    mask = torch.zeros(1, 1, hidden.shape[1], hidden.shape[1])
    mask[..., 1:, 0] = -torch.inf
    for layer in tower.encoder.layers:
        output = layer(hidden, mask)
        hidden = output[0] if isinstance(output, tuple) else output
    wanted = llava.model.multi_modal_projector(hidden[:, 1:])
    assert wanted.std() > 0.05
    torch.testing.assert_close(model.see(batch)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", LLAVAS)
def test_every_new_weight_can_learn(family: str) -> None:
    """No gradient is zero but those behind a factor that starts at zero, and these are not after one step."""
    model = FAMILIES[family]()
    batch = batches.answering(0, 2, models.MODELS[family].look)

    def still() -> set[str]:
        model.zero_grad()
        model.answer_loss(model.see(batch)[-1], batch["ids"], batch["slot"], batch["answer"])[0].backward()
        new = {name: weight for name, weight in model.named_parameters() if model.pace(name) == 1}
        return {name for name, weight in new.items() if weight.grad is None or not weight.grad.any()}

    assert all("high_res" in name or "adapters" in name for name in still())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    assert not still()


@needs_muon
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_known_learns_more_slowly(family: str) -> None:
    model = FAMILIES[family]()
    rates = {
        id(weight): group["initial_lr"]
        for optimizer in optimizers(model).values() for group in optimizer.param_groups for weight in group["params"]
    }  # fmt: skip
    for name, weight in model.named_parameters():
        new = any(part in name for part in ("image_newline", "high_res", "adapters", "fusion", "heads", "deepstack", "q_norm", "k_norm"))
        full = [rate for rate in RATES.values() if rates[id(weight)] == pytest.approx(rate)]
        assert bool(full) == new, name
    assert {model.pace(name) for name, _ in model.named_parameters()} == {1.0, model.known_pace}


def test_llavas_have_no_phase_of_seeing(tmp_path: Path) -> None:
    run = Run(tmp_path, "cpu", 1, workers=0, quiet=True)
    with pytest.raises(FitPruneError, match="a next begins with a tower that sees: leave out --see-steps"):
        train.train(Plan(batch=2, see_steps=1, answer_steps=1, family="next"), run)


@needs_muon
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(batch=2, see_steps=int(family == "qwen"), answer_steps=2 + int(family != "qwen"), family=family)
    interrupted_as_whole(plan, FAMILIES[family]().state_dict(), tmp_path, monkeypatch)


def interrupted_as_whole(plan: Plan, start: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped twice ends with the weights of one that is not, and most of them are not those of the start."""
    ends = []
    for name, stops in (("whole", 0), ("interrupted", 2)):
        run = Run(folder / name, "cpu", 1, workers=0, save_seconds=0, quiet=True)
        for _ in range(stops):
            with monkeypatch.context() as patch:
                patch.setattr(train, "_losses", partial(_once, train._losses, []))
                with pytest.raises(KeyboardInterrupt):
                    train.train(plan, run)
        ends.append(train.load_checkpoint(train.train(plan, run)))
    whole, interrupted = (end["model"] for end in ends)
    assert all(torch.equal(whole[name], interrupted[name]) for name in whole)
    assert sum(not torch.equal(start[name], whole[name]) for name in whole) > len(whole) / 2


def _once(inner: Any, calls: list[int], *args: Any) -> Any:
    calls.append(1)
    if len(calls) > 1:
        raise KeyboardInterrupt
    return inner(*args)


@needs_muon
@pytest.mark.parametrize("family", FAMILIES)
def test_one_command_makes_the_model_and_its_card(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedded.make.SAMPLES", 2)
    run, package = tmp_path / "run", tmp_path / "package"
    flags = ["--see-steps", "1"] if family == "qwen" else []
    flags += ["--answer-steps", "1", "--batch", "2", "--ranks", "1", "--device", "cpu", "--workers", "0", "--pictures", "1"]
    flags += ["--dense-pictures", "2", "--ratios", "0.5", "--scores", "random", "--install", str(package)]
    assert make([str(run), "--family", family, *flags]) == 0
    assert [path.name for path in package.iterdir()] == [f"model_{family}"]
    folder = package / f"model_{family}"
    figures = json.loads((folder / "figures.json").read_text())
    assert list(figures["methods"]) == ["dense", "50% random", "50% fastv"]
    assert ("canvas" in figures) == (family != "hr")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "{" not in card
    assert f"--model-path embedded-{family} --pictures 1 --ratios 0.5 --scores random" in card
    vlm = fitprune.load(str(folder), device="cpu")
    assert figures["tokens"] == vlm.tokens_for(render(draw("held-out", 0)))


def test_a_canvas_shows_the_whole_picture_once() -> None:
    scene = draw("train", 3)
    picture = render(scene)
    assert place(scene, picture.size).tobytes() == picture.tobytes()
    for size in CANVASES:
        canvas = place(scene, size)
        assert canvas.size == size
        found = [
            (x, y)
            for x in range(size[0] - SIDE + 1) for y in range(size[1] - SIDE + 1)
            if canvas.getpixel((x, y)) == picture.getpixel((0, 0))
            and canvas.crop((x, y, x + SIDE, y + SIDE)).tobytes() == picture.tobytes()
        ]  # fmt: skip
        assert len(found) == 1


def test_canvases_come_as_often_as_the_table_says() -> None:
    drawn = [canvas_of(draw("train", index)) for index in range(400)]
    for size, weight in CANVASES.items():
        assert drawn.count(size) / len(drawn) == pytest.approx(weight / sum(CANVASES.values()), abs=0.06)


def test_the_known_tiny_model_is_not_the_shipped_one() -> None:
    assert warm.known_config().text_config.hidden_size == SIZES["text"][0] == TINY["text"][0]
