"""The embedded LLaVA-1.5: its sizes, its first weights, and its loss over a packed sequence.

The modules are transformers' own (`LlavaForConditionalGeneration`), called piece by piece, so that what is trained is
what `fitprune.load` runs. One sequence holds a picture once and many questions about it: every question attends to
BOS, system sentence and picture, and to itself, and its positions follow the picture's. That equals as many one-question
samples (tests/test_embedded_network.py compares), at a fraction of the cost. Only answers are learned.

First weights: queries and keys start equal, so that attention starts near the diagonal, as it ends in trained models
(Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", https://arxiv.org/abs/2305.09828), and the
tower's position embeddings start as two-dimensional sines. Both shorten training; left out are their value-output terms.

    python -c "from embedded.network import *; print(sum(p.numel() for p in Embedded().llava.parameters()))"
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .scene import SIDE
from .targets import HEADS, IGNORE
from .tokens import BOS, EOS, IMAGE_ID, PAD, prefix, tokenizer

PATCH = 14  # pixels along a patch's edge, as in CLIP-L/14
SIZES = {
    "small": {"vision": (192, 4, 4, 512), "text": (192, 9, 4, 512)},  # hidden, layers, heads, MLP
    "large": {"vision": (256, 6, 4, 704), "text": (256, 10, 4, 704)},
}
ATTENTION = "embedded-training"  # the text decoder's attention function while it is trained
BACKGROUND = 0.25  # weight of a patch that shows nothing
DIAGONAL = {"vision": 3.0, "text": 6.0}  # attention score of a token for itself, at the start


def config(size: str) -> LlavaConfig:
    """The transformers configuration of a size of `SIZES`."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision, text = (dict(zip(names, SIZES[size][part], strict=True)) for part in ("vision", "text"))
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=SIDE, patch_size=PATCH, projection_dim=vision["hidden_size"]),
        text_config=LlamaConfig(
            **text,
            vocab_size=-(-tokenizer().get_vocab_size() // 16) * 16,
            max_position_embeddings=1024,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        ),
        image_token_index=IMAGE_ID,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


class Embedded(nn.Module):
    """The model with the heads that ask its patches what they show (`targets.HEADS`)."""

    charged: ClassVar[bool] = True  # whether attention that visual tokens pay to others is measured, to be charged

    def __init__(self, size: str = "small", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        settings = config(size)
        self.llava = LlavaForConditionalGeneration._from_config(settings, attn_implementation="sdpa")
        self.llava.model.language_model.config._attn_implementation = ATTENTION
        self.heads = question_heads(settings.vision_config.hidden_size, settings.text_config.hidden_size)
        _start(self.llava)

    def pace(self, name: str) -> float:
        """Factor on the learning rate of a weight."""
        return 1.0

    def see(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Batch with pixels [B, 3, SIDE, SIDE] → the tower's and the projector's output per patch, both [B, n, width].

        The last is what the language model is given: the visual tokens.
        """
        inner: Any = self.llava.model
        seen = inner.vision_tower(batch["pixels"], output_hidden_states=True).hidden_states[-1][:, 1:]
        return seen, inner.multi_modal_projector(seen)

    def see_loss(self, outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """What is learned from looking alone: the loss, and figures for the log."""
        loss, read = self.patch_loss(outputs, batch["targets"])
        return loss, {"patch loss": loss.item(), **{f"patch {head}": share for head, share in zip(HEADS, read.tolist(), strict=True)}}

    def patch_loss(self, outputs: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of both heads, and the share of patches read rightly per entry of `HEADS` (projector's head).

        targets: int64 [B, len(HEADS), n]; patches that show nothing count `BACKGROUND`, `IGNORE` not at all.
        """
        weight = (targets > 0).float() + BACKGROUND * (targets == 0).float()  # [B, heads, n]
        losses, right = [], torch.zeros(len(HEADS))
        for head, output in zip(self.heads, outputs, strict=True):
            logits = head(output).float().split(list(HEADS.values()), dim=-1)  # each [B, n, classes]
            each = torch.stack(
                [F.cross_entropy(logit.mT, targets[:, at], ignore_index=IGNORE, reduction="none") for at, logit in enumerate(logits)],
                dim=1,
            )  # fmt: skip
            losses.append((each * weight).sum() / weight.sum())
            guess = torch.stack([logit.argmax(-1) for logit in logits], dim=1)
            right = ((guess == targets) & (targets > 0)).sum((0, 2)) / (targets > 0).sum((0, 2)).clamp(min=1)
        return torch.stack(losses).mean(), right

    def loss(self, outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`answer_loss` of what `see` gave."""
        return self.answer_loss(outputs[-1], batch["ids"], batch["slot"], batch["answer"])

    def answer_loss(self, image: Tensor, ids: Tensor, slot: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy over answer tokens, attention away from home, and per answer token whether it was the likeliest.

        image: projector output [B, n, C]; ids [B, T] of all questions and answers of a picture, one after the other;
        slot [B, T] the question that a token belongs to, from 1 on, 0 for padding; answer [B, T] whether it is answer.
        """
        inner: Any = self.llava.model
        embed = inner.language_model.get_input_embeddings()
        before = embed(torch.tensor(prefix(), device=ids.device)).expand(len(ids), -1, -1)
        embeds = torch.cat([before.to(image.dtype), image, embed(ids).to(image.dtype)], dim=1)  # [B, P + T, C]
        shared = embeds.shape[1] - ids.shape[1]  # P
        mask, positions = packed(slot, shared)
        away: list[Tensor] = []
        hidden = inner.language_model(
            inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=positions, use_cache=False,
            visual=(shared - image.shape[1], shared), away=away if self.charged else None,
        ).last_hidden_state  # fmt: skip
        return self.judge(hidden[:, shared:], ids, answer, away)

    def judge(self, hidden: Tensor, ids: Tensor, answer: Tensor, away: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What `answer_loss` returns, of the decoder's output [B, T, C] for `ids`."""
        ahead = F.pad(answer[:, 1:], (0, 1))  # the token before an answer's token predicts it
        logits = self.llava.lm_head(hidden[ahead]).float()
        wanted = ids[answer]
        charge = torch.stack(away).mean() if away else logits.new_zeros(())
        return F.cross_entropy(logits, wanted), charge, logits.argmax(-1) == wanted


def question_heads(*widths: int) -> nn.ModuleList:
    """What asks patches of these widths what they show; thrown away after training."""
    return nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(HEADS.values()))) for width in widths)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """transformers' sdpa attention, which also notes how much attention visual tokens pay to others than themselves.

    options: `visual`, the range of visual tokens, and `away`, a list that gets one mean per layer; without them, plain sdpa.
    """
    visual, away = options.pop("visual", None), options.pop("away", None)
    if away is not None:
        start, end = visual
        logits = (query[:, :, start:end] @ key[:, :, :end].mT).float() * options["scaling"]  # [B, H, n, end]
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(start + 1)
        home = logits.diagonal(start, -2, -1) - logits.masked_fill(later, -torch.inf).logsumexp(-1)
        away.append(1 - home.exp().mean())
    return sdpa_attention_forward(module, query, key, value, mask, **options)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def packed(slot: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """What may attend to what (bool [B, P + T, P + T]) and the positions ([B, P + T]) of a packed sequence.

    slot: int [B, T], 0 for padding; shared: P, the tokens that all questions see.
    """
    whole = F.pad(slot, (shared, 0), value=-1)  # the shared part is -1
    length = whole.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=slot.device).tril()
    same = whole[:, :, None] == whole[:, None, :]
    mask = causal & (same | (whole == -1)[:, None, :])
    places = torch.arange(length, device=slot.device)
    starts = torch.where(F.pad(slot[:, 1:] != slot[:, :-1], (1, 0), value=True), places[shared:], 0).cummax(1).values
    positions = torch.cat([places[:shared].expand(len(slot), -1), places[shared:] - starts + shared], dim=1)
    return mask, positions


@torch.no_grad()
def start_layers(llava: LlavaForConditionalGeneration) -> None:
    """First weights of the layers: unit-variance linear layers, quiet residual outputs, equal queries and keys."""
    inner: Any = llava.model
    layers = {"vision": inner.vision_tower.modules(), "text": inner.language_model.modules()}
    for part, modules in layers.items():
        depth = (llava.config.vision_config if part == "vision" else llava.config.text_config).num_hidden_layers
        for module in modules:
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    quiet = (2 * depth) ** -0.5 if name in ("o_proj", "out_proj", "down_proj", "fc2") else 1.0
                    nn.init.normal_(child.weight, std=quiet * child.in_features**-0.5)
                    if child.bias is not None:
                        nn.init.zeros_(child.bias)
            if hasattr(module, "q_proj"):
                module.q_proj.weight.mul_((DIAGONAL[part] * module.head_dim**-0.5) ** 0.5)
                module.k_proj.weight.copy_(module.q_proj.weight)


@torch.no_grad()
def _start(llava: LlavaForConditionalGeneration) -> None:
    """First weights: those of the layers, embeddings, sine positions, projector."""
    start_layers(llava)
    inner: Any = llava.model
    nn.init.normal_(inner.language_model.get_input_embeddings().weight, std=0.5)
    nn.init.normal_(llava.lm_head.weight, std=0.02)
    embeddings = next(m for m in inner.vision_tower.modules() if hasattr(m, "position_embedding"))
    nn.init.normal_(embeddings.patch_embedding.weight, std=(3 * PATCH**2) ** -0.5)
    embeddings.position_embedding.weight[1:] = sines(SIDE // PATCH, embeddings.embed_dim)
    for linear in (inner.multi_modal_projector.linear_1, inner.multi_modal_projector.linear_2):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)


def sines(grid: int, width: int) -> Tensor:
    """Two-dimensional sine position embeddings, [grid², width]: a quarter each of sine and cosine of row and column."""
    frequency = grid ** -torch.linspace(0, 1, width // 4)
    angle = torch.arange(grid)[:, None] * frequency * torch.pi / 2  # [grid, width / 4]
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    row, column = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    return torch.cat([row, column], dim=2).reshape(grid**2, width) / 2
