"""Tiny models built in code, and the slow obvious FitPrune that the product is compared with.

Weights are drawn large enough that heads attend sharply: scores of neighbouring ranks then differ by far more than
floating-point noise, and a wrong rule deletes other tokens. `dense_pruned` is the independent implementation: the
unmodified model, eager, never shortened; a deleted token is masked as a key from the layer after its deletion on.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fitprune import Recipe
from fitprune.decoder.visual_tokens import ByTokenId
from fitprune.images.lengths import ImageLengths

LAYERS, HIDDEN, VOCAB, IMAGE_TOKEN, IMAGE_TOKENS, PAD = 4, 32, 64, 63, 16, 0
NEVER = 10**6  # the layer at which a survivor is deleted

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}

DECODERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES)),  # layers of another class: cut at their exit
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.7, attention_multiplier=0.3)),
}

RECIPE = Recipe.from_deletions([3, 0, 5, 2], visual_tokens=16)  # scales with the number of visual tokens
FIRST = 3  # text tokens before the image of the `trace` fixture


def sharpen(model: nn.Module, seed: int = 0) -> Any:
    """Redraws weights: unit activations, queries and keys large enough for peaked attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            gain = 1.6 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
            scale = 1.0 if "embed" in name else gain * weight.shape[1] ** -0.5
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    return model.eval()


def decoder(kind: str, seed: int = 0) -> Any:
    """A causal language model of a kind in `DECODERS`."""
    return sharpen(DECODERS[kind](), seed)


def llama(seed: int = 0) -> LlamaForCausalLM:
    return decoder("llama", seed)


def llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """16 image tokens (16×16 pixels in patches of 4, without the class token)."""
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**SIZES),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
    )
    config.pad_token_id = PAD
    return sharpen(LlavaForConditionalGeneration(config), seed)


def embedded(length: int, *images: tuple[int, int], seed: int = 0, rows: int = 1) -> tuple[Tensor, Tensor]:
    """inputs_embeds [rows, length, HIDDEN] and visual_mask [rows, length] with the given image spans."""
    generator = torch.Generator().manual_seed(1000 + seed)
    embeds = torch.randn(rows, length, HIDDEN, generator=generator)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for start, end in images:
        mask[:, start:end] = True
    return embeds, mask


def prompt(*parts: int | str, seed: int = 0) -> dict[str, Tensor]:
    """LLaVA inputs of one row: numbers are that many text tokens, "image" an image. `prompt(3, "image", 5)`."""
    generator = torch.Generator().manual_seed(2000 + seed)
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(2, IMAGE_TOKEN, (part,), generator=generator).tolist()
        else:
            ids += [IMAGE_TOKEN] * IMAGE_TOKENS
    inputs = {"input_ids": torch.tensor([ids])}
    if count := sum(part == "image" for part in parts):
        inputs["pixel_values"] = torch.randn(count, 3, 16, 16, generator=generator)
    return inputs


def batch(rows: list[dict[str, Tensor]], side: str = "left") -> dict[str, Tensor]:
    """Several `prompt`s as one padded batch with an attention mask."""
    width = max(row["input_ids"].shape[1] for row in rows)
    ids, masks = [], []
    for row in rows:
        missing = width - row["input_ids"].shape[1]
        pad = (missing, 0) if side == "left" else (0, missing)
        ids.append(nn.functional.pad(row["input_ids"], pad, value=PAD))
        masks.append(nn.functional.pad(torch.ones_like(row["input_ids"]), pad))
    out = {"input_ids": torch.cat(ids), "attention_mask": torch.cat(masks)}
    if pixels := [row["pixel_values"] for row in rows if "pixel_values" in row]:
        out["pixel_values"] = torch.cat(pixels)
    return out


def spans_of(mask: Tensor) -> list[tuple[int, int]]:
    """Runs of True in a row, written the slow way."""
    spans: list[tuple[int, int]] = []
    for at, visual in enumerate(mask.tolist()):
        if visual and (at == 0 or not mask[at - 1]):
            spans.append((at, at))
        if visual:
            spans[-1] = (spans[-1][0], at + 1)
    return spans


@dataclass
class DensePruned:
    """What `dense_pruned` found. removed [S]: the layer that deletes a token, or `NEVER`."""

    logits: Tensor  # [S, V]
    removed: Tensor
    hidden: list[Tensor]  # after each layer [S, E]; before the final norm

    def alive(self, layer: int) -> list[int]:
        return (self.removed > layer).nonzero().flatten().tolist()


def layers_of(model: nn.Module) -> nn.ModuleList:
    return next(m for n, m in model.named_modules() if n.endswith("layers") and "vision" not in n)  # type: ignore[return-value]


def dense_pruned(
    model: Any,
    inputs: dict[str, Any],
    spans: list[tuple[int, int]],
    recipe: Recipe | None,
    *,
    start: int = 0,
    removed: Tensor | None = None,
) -> DensePruned:
    """FitPrune on the unmodified model at full length, by masks alone. One row, no padding, no cache.

    Args:
        spans: Images that this call prunes (positions in the whole sequence); needs `recipe`.
        start: First token of this turn: earlier tokens are only looked at, as with a cache.
        removed: [≤ S] earlier deletions; tokens beyond it are alive.
    """
    length = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]).shape[1]
    gone = torch.full((length,), NEVER)
    if removed is not None:
        gone[: len(removed)] = removed
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visual = torch.zeros(length, dtype=torch.bool)
    for span in spans:
        visual[slice(*span)] = True
    hidden: list[Tensor] = []
    lowest = torch.finfo(torch.float32).min

    def before(index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            entering = gone >= index
            mask = torch.zeros(length, length).masked_fill(~(causal & entering[None, :]), lowest)
            return args, {**kwargs, "attention_mask": mask[None, None]}

        return hook

    def attended(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            weights = output[1][0].amax(0).double()  # [S, S]
            here = torch.arange(length)
            asks = (gone >= index) & (here >= start)  # queries of this turn that are still there
            text = asks & ~visual
            for first, last in spans:
                count = recipe.deletions(last - first, len(layers_of(model)))[index]  # type: ignore[union-attr]
                members = [k for k in range(first, last) if gone[k] >= index]
                own = asks & (here >= first) & (here < last)
                cross = {k: weights[text, k].sum().item() for k in members}
                intra = {k: weights[own, k].sum().item() for k in members}
                follows = bool(text[last:].any())
                score = {k: (cross[k] if follows else 1.0) * intra[k] for k in members}
                for k in sorted(members, key=lambda k: (score[k], k))[:count]:
                    gone[k] = index

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        hidden.append((output[0] if isinstance(output, tuple) else output)[0])

    before_implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with ExitStack() as undo:
        for index, layer in enumerate(layers_of(model)):
            undo.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            undo.callback(layer.register_forward_hook(after).remove)
            if spans and recipe is not None:
                undo.callback(layer.self_attn.register_forward_hook(attended(index)).remove)
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits[0]
    model.set_attn_implementation(before_implementation)
    return DensePruned(logits, gone, hidden)


def cut_at_exit():
    """Inside this `with` block layers that are attached to are cut at their exits: slower, with the same survivors."""
    return mock.patch("fitprune.decoder.attach.read_block", return_value=None)


def found_by(config):
    """What finds the images of a model with this config, with the lengths that `prune` hands in."""
    return ByTokenId(config, ImageLengths(config))
