"""The embedded Qwen3-VL: what it takes from the known model, M-RoPE in a packed sequence, pixels and prompts of its own processor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_embedded_warm import known  # noqa: F401 (a fixture)
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from embedded import batches, chat, models, native, tokens, train, warm
from embedded.canvas import canvas_of, corner_of, place
from embedded.export import export
from embedded.network import PATCH
from embedded.scene import SIDE, draw
from embedded.targets import IGNORE, targets
from fitprune.families.clip import pillow_processor

QWEN = models.MODELS["qwen"]
GRIDS = {size: (size[1] // PATCH, size[0] // PATCH) for size in native.CANVASES}


@pytest.fixture(autouse=True)
def _start(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(warm, "KNOWN", known)


@pytest.fixture
def moved() -> native.Native:
    """A model whose new weights are no longer at their start, and whose deepstack counts."""
    made = native.Native()
    generator = torch.Generator().manual_seed(7)
    for name, weight in made.named_parameters():
        if made.pace(name) == 1:
            weight.data += (1.0 if "deepstack" in name else 0.1) * torch.randn(weight.shape, generator=generator)
    return made


def start_with(size: tuple[int, int]) -> int:
    """The first training scene of a batch on that canvas."""
    return next(index for index in range(300) if canvas_of(draw("train", index), native.CANVASES) == size)


def singles(batch: dict[str, Tensor], slots: tuple[int, ...]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Inputs of transformers' forward for single questions, and which of the ids are answer."""
    before, after = chat.around()
    for row in range(len(batch["ids"])):
        picture = [*before, *[chat.IMAGE_ID] * int(batch["grid"][row].prod()), *after]
        for slot in slots:
            own = batch["slot"][row] == slot
            ids = torch.cat([torch.tensor(picture), batch["ids"][row][own]])[None]
            inputs = {"input_ids": ids, "pixel_values": batch["pixels"][row], "image_grid_thw": batch["grid"][row : row + 1]}
            if "mm_token_type_ids" in inspect.signature(native.Qwen3VLForConditionalGeneration.forward).parameters:
                inputs["mm_token_type_ids"] = (ids == chat.IMAGE_ID).int()
            yield inputs, F.pad(batch["answer"][row][own], (len(picture), 0))


@pytest.mark.parametrize("size", [(SIDE, SIDE), (224, SIDE), (SIDE, 224)])
def test_a_packed_sequence_equals_single_ones(size: tuple[int, int], moved: native.Native) -> None:
    """Logits against transformers' own forward, positions and all, on one question at a time."""
    batch = batches.answering(start_with(size), 2, QWEN.look, QWEN.prompts)
    assert batch["grid"][0].tolist() == [1, *GRIDS[size]]
    heard: list[Tensor] = []
    handle = moved.llava.lm_head.register_forward_hook(lambda module, inputs, output: heard.append(output))
    with torch.no_grad():
        moved.loss(moved.see(batch), batch)
        handle.remove()
        slots, logits = (1, 6, batches.SLOTS), []
        for inputs, answer in singles(batch, slots):
            logits.append(moved.llava(**inputs).logits[0, :-1][answer[1:]])
    wanted = torch.isin(batch["slot"], torch.tensor(slots))[batch["answer"]]
    assert torch.cat(logits).std() > 0.3
    torch.testing.assert_close(heard[0][wanted], torch.cat(logits), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("size", native.CANVASES)
def test_pixels_are_those_of_qwens_processor(size: tuple[int, int]) -> None:
    processor = pillow_processor("qwen2_vl", "Qwen2VLImageProcessor")(
        patch_size=PATCH, merge_size=1, size={"shortest_edge": 1, "longest_edge": 10**6}
    )
    start = start_with(size)
    batch = QWEN.look([draw("train", start + at) for at in range(2)])
    for at in range(2):
        theirs = processor(place(draw("train", start + at), size), return_tensors="pt")
        torch.testing.assert_close(batch["pixels"][at], theirs["pixel_values"], rtol=0, atol=1e-5)
        assert batch["grid"][at].tolist() == theirs["image_grid_thw"][0].tolist()


def test_what_patches_show_moves_with_the_picture() -> None:
    """On a canvas, a corner at whole patches gives the picture's own targets, and nothing around them."""
    scene, size = draw("train", 4), (SIDE + 3 * PATCH, SIDE + PATCH)
    own = targets(scene, SIDE // PATCH).reshape(-1, SIDE // PATCH, SIDE // PATCH)
    wide = targets(scene, SIDE // PATCH, size, (2 * PATCH, PATCH)).reshape(len(own), size[1] // PATCH, size[0] // PATCH)
    assert (wide[:, 1:, 2:-1] == own).all()
    wide[:, 1:, 2:-1] = 0
    assert (wide[:5] == 0).all()
    assert (own > 0).any()
    assert (own == IGNORE).any()


def test_targets_of_a_batch_lie_where_its_pictures_lie() -> None:
    size = (224, 224)
    scenes = [draw("train", start_with(size) + at) for at in range(2)]
    found = QWEN.look(scenes)["targets"]
    for at, scene in enumerate(scenes):
        assert (found[at].numpy() == targets(scene, SIDE // PATCH, size, corner_of(scene, size))).all()
    assert any(corner_of(scene, size) != (0, 0) for scene in scenes)


def test_positions_by_hand() -> None:
    """Two words, a picture of 2 × 3, one word, then two questions of two words."""
    flat = torch.tensor([[0, 1, *range(2, 8), 8, 9, 10, 9, 10]])
    found = native.three_axes(flat, torch.tensor([[1, 2, 3]]), 2)
    text = [5, 6, 7, 6, 7]  # the picture advances it by three
    assert found[:, 0].tolist() == [[0, 1, 2, 2, 2, 2, 2, 2, *text], [0, 1, 2, 2, 2, 3, 3, 3, *text], [0, 1, 2, 3, 4, 2, 3, 4, *text]]


@torch.no_grad()
def test_it_begins_with_what_is_known() -> None:
    """Layers, words and the merger's are copies; deepstack adds nothing; a norm is the mean size of what it is a norm of."""
    made: Any = native.Native()
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(warm.KNOWN, dtype=torch.float32)
    here, there = chat.tokenizer().get_vocab(), tokens.tokenizer().get_vocab()
    for name, known_name in {"circle": "circle", "##7": "##7", "<|im_end|>": "</s>", "assistant": "ASSISTANT:"}.items():
        for ours, known_rows in (
            (made.llava.lm_head, theirs.lm_head),
            (made.llava.model.language_model.embed_tokens, theirs.model.language_model.embed_tokens),
        ):
            assert torch.equal(ours.weight[here[name]], known_rows.weight[there[known_name]]), name
    decoder, known_decoder = made.llava.model.language_model, theirs.model.language_model
    for layer, known_layer in zip(decoder.layers, known_decoder.layers, strict=True):
        for name, weight in known_layer.state_dict().items():
            assert torch.equal(layer.state_dict()[name], weight), name
        assert 0.1 < layer.self_attn.q_norm.weight.mean() < 20
        assert layer.self_attn.k_norm.weight.unique().numel() == 1
    deep = made.see(QWEN.look([draw("train", 0)]))[2]
    assert deep.shape[0] == len(native.DEEP)
    assert not deep.any()


@torch.no_grad()
def test_patches_begin_as_those_of_clip_before_its_layers() -> None:
    """CLIP's embeddings after its first norm, but for their size: folded in is the mean size, so directions agree."""
    made: Any = native.Native()
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(warm.KNOWN, dtype=torch.float32)
    tower = getattr(theirs.model.vision_tower, "vision_model", theirs.model.vision_tower)
    scene = draw("train", 0)
    wanted = tower.pre_layrnorm(tower.embeddings(batches.plain_pictures([scene])["pixels"]))[0, 1:]
    visual, heard = made.llava.model.visual, []
    handle = visual.blocks[0].register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    visual(native.patches(np.array(place(scene, (SIDE, SIDE)))[None])[0], grid_thw=torch.tensor([[1, 12, 12]]))
    handle.remove()
    assert F.cosine_similarity(heard[0], wanted).min() > 0.99
    assert heard[0].std() == pytest.approx(wanted.std().item(), rel=0.5)  # sizes vary by patch


def test_every_new_weight_can_learn() -> None:
    """No gradient is zero but those of deepstack behind what starts at zero, and the first of these are not after one step."""
    model = native.Native()
    batch = batches.answering(0, 2, QWEN.look, QWEN.prompts)

    def still() -> set[str]:
        model.zero_grad()
        outputs = model.see(batch)
        (model.loss(outputs, batch)[0] + model.see_loss(outputs, batch)[0]).backward()
        return {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}

    assert all("deepstack" in name for name in still())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    assert all("merger_list.1." in name for name in still())  # added after the last of two layers, where nothing reads it


def test_away_is_the_attention_that_visual_tokens_pay_to_others(moved: native.Native) -> None:
    batch = batches.answering(start_with((224, SIDE)), 1, QWEN.look, QWEN.prompts)
    with torch.no_grad():
        away = moved.loss(moved.see(batch), batch)[1]
        moved.llava.set_attn_implementation("eager")
        ((inputs, _),) = singles(batch, (1,))
        weights = moved.llava(**inputs, output_attentions=True).attentions
    visual = (inputs["input_ids"][0] == chat.IMAGE_ID).nonzero()[:, 0]
    kept = torch.stack([layer[0][:, visual, visual].mean() for layer in weights]).mean()
    torch.testing.assert_close(away, 1 - kept, atol=1e-4, rtol=1e-4)
    assert 0.01 < away < 0.99


def test_the_template_writes_the_prompt_that_was_trained(tmp_path: Path) -> None:
    torch.save({"plan": asdict(train.Plan(family="qwen")), "step": 0, "model": native.Native().state_dict()}, tmp_path / train.CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path, tmp_path / "model"))
    said = [{"type": "image"}, {"type": "text", "text": "What number is written?"}]
    written = tokenizer.apply_chat_template([{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True)
    assert written == chat.prompt("What number is written?")
    before, after = chat.around()
    whole = [*before, chat.IMAGE_ID, *after, *chat.question_ids("What number is written?", False)]
    assert tokenizer(written)["input_ids"] == whole
    more = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": "47"},
        {"role": "user", "content": "How many shapes are there?"},
    ]
    later = tokenizer.apply_chat_template(more, tokenize=False, add_generation_prompt=True)
    assert tokenizer(later)["input_ids"] == [
        *whole,
        *chat.answer_ids("47"),
        *tokenizer(chat.prompt("How many shapes are there?", image=False))["input_ids"],
    ]
    assert tokenizer.decode(chat.answer_ids("4 red"), skip_special_tokens=True) == "4 red"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (chat.END, chat.PAD)
