"""The network: a packed sequence is as many single ones, in transformers' own forward; losses against naive loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from embedded import batches
from embedded.network import BACKGROUND, DIAGONAL, PATCH, SIZES, Embedded, config, packed, sines
from embedded.scene import SIDE
from embedded.targets import HEADS, IGNORE
from embedded.tokens import IMAGE_ID, PAD, prefix, tokenizer

TINY = {"vision": (16, 2, 2, 24), "text": (16, 2, 2, 24)}  # also for the other tests of training


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)


@pytest.fixture
def model() -> Embedded:
    """A tiny model whose logits are large enough for a wrong mask to show."""
    made = Embedded("tiny", seed=3)
    torch.nn.init.normal_(made.llava.lm_head.weight, std=0.7)
    return made


def singles(batch: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids [S], pixels [1, 3, SIDE, SIDE], which of the ids are answer) of every question by itself."""
    picture = [*prefix(), *[IMAGE_ID] * (SIDE // PATCH) ** 2]
    for row in range(len(batch["ids"])):
        for slot in range(1, int(batch["slot"][row].max()) + 1):
            own = batch["slot"][row] == slot
            ids = torch.cat([torch.tensor(picture), batch["ids"][row][own]])
            answer = F.pad(batch["answer"][row][own], (len(picture), 0))
            yield ids, batch["pixels"][row : row + 1], answer


def test_a_packed_sequence_equals_single_ones(model: Embedded) -> None:
    """Logits, loss and gradients against transformers' forward on one question at a time, two pictures, padding."""
    batch = batches.answering(11, 2)
    assert (batch["slot"] == 0).any()  # the shorter of the two is padded
    heard: list[Tensor] = []
    handle = model.llava.lm_head.register_forward_hook(lambda module, inputs, output: heard.append(output))
    loss, _, right = model.answer_loss(model.see(batch)[1], batch["ids"], batch["slot"], batch["answer"])
    handle.remove()
    loss.backward()
    packed_gradients = {name: p.grad for name, p in model.llava.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    logits, wanted = [], []
    for ids, pixels, answer in singles(batch):
        every = model.llava(input_ids=ids[None], pixel_values=pixels).logits[0]
        logits.append(every[:-1][answer[1:]])
        wanted.append(ids[answer])
    one_by_one, truth = torch.cat(logits), torch.cat(wanted)
    assert len(truth) > 2 * batches.SLOTS
    assert one_by_one.std() > 1
    torch.testing.assert_close(heard[0], one_by_one, atol=1e-4, rtol=1e-4)
    single_loss = F.cross_entropy(one_by_one, truth)
    torch.testing.assert_close(loss, single_loss, atol=1e-4, rtol=1e-4)
    assert torch.equal(right, one_by_one.argmax(-1) == truth)

    single_loss.backward()
    singles_gradients = {name: p.grad for name, p in model.llava.named_parameters() if p.grad is not None}
    assert set(packed_gradients) == set(singles_gradients)
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, singles_gradients[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_question_does_not_see_the_others(model: Embedded) -> None:
    """Another text in slot 2 changes the loss of slot 2 alone."""
    batch = batches.answering(5, 1)
    image = model.see(batch)[1]

    def logits(ids: Tensor) -> Tensor:
        heard: list[Tensor] = []
        handle = model.llava.lm_head.register_forward_hook(lambda module, inputs, output: heard.append(output))
        model.answer_loss(image, ids, batch["slot"], batch["answer"])
        handle.remove()
        return heard[0]

    changed = batch["ids"].clone()
    changed[(batch["slot"] == 2) & ~batch["answer"]] = PAD
    moved = (logits(batch["ids"]) - logits(changed)).abs().amax(-1) > 1e-5
    assert torch.equal(moved, batch["slot"][batch["answer"]] == 2)


def test_away_is_the_attention_that_visual_tokens_pay_to_others(model: Embedded) -> None:
    """Against the attention weights of transformers' eager implementation, mean over layers, heads and visual tokens."""
    batch = batches.answering(3, 2)
    _, away, _ = model.answer_loss(model.see(batch)[1], batch["ids"], batch["slot"], batch["answer"])
    model.llava.set_attn_implementation("eager")
    shown, patches, kept = len(prefix()), (SIDE // PATCH) ** 2, []
    for ids, pixels, _ in list(singles(batch))[:: batches.SLOTS]:  # one question of each picture
        for weights in model.llava(input_ids=ids[None], pixel_values=pixels, output_attentions=True).attentions:
            kept.append(weights[0].diagonal(dim1=1, dim2=2)[:, shown : shown + patches].mean())
    assert len(kept) == 2 * TINY["text"][1]
    torch.testing.assert_close(away, 1 - torch.stack(kept).mean(), atol=1e-4, rtol=1e-4)
    assert 0.01 < away < 0.99


@st.composite
def slots(draw: st.DrawFn) -> Tensor:
    """Rows of numbered slots of any lengths, padded to one length, and the length of what they share."""
    rows = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=3))
    table = [[slot for slot, length in enumerate(row, start=1) for _ in range(length)] for row in rows]
    longest = max(map(len, table))
    return torch.tensor([row + [0] * (longest - len(row)) for row in table])


@given(slot=slots(), shared=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_who_sees_whom_and_where_each_stands(slot: Tensor, shared: int) -> None:
    mask, positions = packed(slot, shared)
    for row, own in enumerate(slot.tolist()):
        whole = [-1] * shared + own
        seen: dict[int, int] = {}
        for at, belongs in enumerate(whole):
            expected = [before <= at and whole[before] in (-1, belongs) for before in range(len(whole))]
            assert mask[row, at].tolist() == expected
            place = seen.get(belongs, 0 if belongs == -1 else shared)
            assert positions[row, at] == place
            seen[belongs] = place + 1


def test_patch_loss_against_a_loop(model: Embedded) -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.stack(
        [torch.randint(-1, classes, (2, 9), generator=generator) for classes in HEADS.values()], dim=1
    )  # fmt: skip
    targets[targets < 0] = IGNORE
    outputs = (torch.randn(2, 9, 16, generator=generator), torch.randn(2, 9, 16, generator=generator))
    loss, right = model.patch_loss(outputs, targets)

    losses = []
    for head, output in zip(model.heads, outputs, strict=True):
        total, weights = 0.0, 0.0
        hits: dict[str, list[bool]] = {name: [] for name in HEADS}
        for picture in range(2):
            for patch in range(9):
                logits, start = head(output[picture, patch]), 0
                for at, (name, classes) in enumerate(HEADS.items()):
                    own, start = logits[start : start + classes], start + classes
                    wanted = int(targets[picture, at, patch])
                    if wanted == IGNORE:
                        continue
                    weight = BACKGROUND if wanted == 0 else 1.0
                    total -= weight * own.log_softmax(0)[wanted].item()
                    weights += weight
                    if wanted:
                        hits[name].append(int(own.argmax()) == wanted)
        losses.append(total / weights)
    assert loss.item() == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert right.tolist() == pytest.approx([sum(of_name) / len(of_name) for of_name in hits.values()])


def test_patches_that_are_not_asked_teach_nothing(model: Embedded) -> None:
    outputs = tuple(torch.randn(1, 4, 16, requires_grad=True) for _ in range(2))
    targets = torch.full((1, len(HEADS), 4), IGNORE)
    targets[0, :, 1] = 1
    model.patch_loss(outputs, targets)[0].backward()  # type: ignore[arg-type]
    for output in outputs:
        assert output.grad is not None
        assert output.grad[0, 1].abs().sum() > 0
        assert output.grad[0, [0, 2, 3]].abs().sum() == 0


@pytest.mark.parametrize("size", ["small", "large"])
def test_sizes_are_llavas(size: str) -> None:
    settings = config(size)
    vision, text = settings.vision_config, settings.text_config
    assert (vision.hidden_size, vision.num_hidden_layers) == SIZES[size]["vision"][:2]
    assert (text.hidden_size, text.num_hidden_layers) == SIZES[size]["text"][:2]
    assert settings.image_seq_length == (vision.image_size // vision.patch_size) ** 2
    assert SIDE % PATCH == 0
    assert text.vocab_size >= tokenizer().get_vocab_size()
    assert settings.image_token_id == IMAGE_ID
    longest = settings.image_seq_length + batches.answering(0, 8)["ids"].shape[1]
    assert longest < text.max_position_embeddings


@torch.no_grad()
def test_queries_equal_keys_and_tokens_attend_to_themselves() -> None:
    model: Any = Embedded("small").llava.model
    for part, inside in (("vision", model.vision_tower), ("text", model.language_model)):
        attentions = [module.self_attn for module in inside.modules() if hasattr(module, "self_attn")]
        assert len(attentions) == SIZES["small"][part][1]
        for attention in attentions:
            assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
            x = torch.randn(64, attention.q_proj.in_features)
            q, k = (proj(x).view(64, -1, attention.head_dim) for proj in (attention.q_proj, attention.k_proj))
            scores = torch.einsum("qhd,khd->hqk", q, k) * attention.head_dim**-0.5
            assert scores.diagonal(dim1=1, dim2=2).mean() == pytest.approx(DIAGONAL[part], rel=0.1)
            assert scores.mean().abs() < 0.25
    for linear in (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None):
        assert not linear.bias.any()


def test_weights_hang_on_the_seed_alone() -> None:
    def flat(seed: int) -> Tensor:
        return torch.cat([parameter.flatten() for parameter in Embedded("tiny", seed).parameters()])

    first = flat(0)
    torch.randn(5)
    assert torch.equal(flat(0), first)
    assert (flat(1) != first).float().mean() > 0.5


@pytest.mark.parametrize(("grid", "width"), [(12, 192), (12, 256), (12, 16), (7, 32)])
def test_sines_are_distinct_per_place(grid: int, width: int) -> None:
    places = sines(grid, width)
    assert places.shape == (grid**2, width)
    assert places.abs().max() <= 0.5
    apart = torch.cdist(places, places) + torch.eye(grid**2) * 9
    assert apart.min() > 0.1
    nearest = apart.argmin(dim=1)
    rows, columns = torch.arange(grid**2) // grid, torch.arange(grid**2) % grid
    assert ((rows - rows[nearest]).abs() + (columns - columns[nearest]).abs() == 1).all()  # neighbours are the nearest


def test_position_embeddings_start_as_sines() -> None:
    tower: Any = Embedded("tiny").llava.model.vision_tower
    table = next(m for m in tower.modules() if hasattr(m, "position_embedding")).position_embedding.weight
    assert torch.equal(table[1:], sines(SIDE // PATCH, TINY["vision"][0]))


def test_what_the_projector_says_is_what_transformers_gives_the_decoder(model: Embedded) -> None:
    batch = batches.seeing(0, 2)
    seen, image = model.see(batch)
    assert seen.shape == image.shape == (2, (SIDE // PATCH) ** 2, 16)
    theirs = model.llava.model.get_image_features(pixel_values=batch["pixels"], return_dict=True)
    torch.testing.assert_close(image, torch.stack(list(getattr(theirs, "pooler_output", theirs))))
