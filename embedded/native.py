"""The embedded Qwen3-VL: M-RoPE, queries and keys with norms, pictures at native resolution, two features for deepstack.

It starts from the known model (warm.py), as nearly as the layouts allow: words keep their embeddings; norms of queries and
keys begin at the mean size that those had; CLIP's first norm, which Qwen's tower lacks, is folded into its patch and
position embeddings; the merger's norm begins at the mean size of what the projector was given; deepstack's mergers begin
at zero. New without a like are the rotary positions in the tower and the decoder's, so the tower first sees again (`see`),
as that of the LLaVA-1.5 did. A patch is a token (14 pixels, merging 1 × 1): a picture of 168 × 168 takes 144, as in the LLaVA-1.5.

    python -m embedded.train /tmp/run --family qwen
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from . import tokens
from .batches import Batch, answering, pixels
from .canvas import Size, canvas_of, corner_of, place
from .chat import IMAGE_ID, KNOWN_AS, PAD, VIDEO_ID, VISION_END, VISION_START, around, tokenizer
from .network import PATCH, Embedded, packed, question_heads
from .scene import SIDE, Scene
from .targets import targets
from .warm import Warm, known_config

FRAMES = 2  # a patch's depth in time; a still picture fills both
DEEP = (1, 2)  # of the tower's layers, what is added to visual tokens after the decoder's first ones
SECTIONS = (1, 1, 1)  # time, row, column: how they share the decoder's rotary frequencies, in parts of all
CANVASES: dict[Size, int] = {
    (SIDE, SIDE): 12, (196, SIDE): 1, (SIDE, 196): 1, (224, SIDE): 1, (SIDE, 224): 1, (210, 210): 1, (224, 224): 1,
}  # (width, height) of the canvas of a batch in training: how often  # fmt: skip
SAMPLES = 6  # training pictures on which sizes of the known model's activations are measured


def settings(size: str = "small") -> Qwen3VLConfig:
    """The known model's sizes in Qwen3-VL's layout; `size` is the known model's, whatever is given."""
    known = known_config()
    text, vision = known.text_config, known.vision_config
    return Qwen3VLConfig(
        vision_config={
            "depth": vision.num_hidden_layers, "hidden_size": vision.hidden_size, "num_heads": vision.num_attention_heads,
            "intermediate_size": vision.intermediate_size, "hidden_act": vision.hidden_act, "patch_size": PATCH,
            "spatial_merge_size": 1, "temporal_patch_size": FRAMES, "out_hidden_size": text.hidden_size,
            "num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": list(DEEP),
        },
        text_config={
            "vocab_size": -(-tokenizer().get_vocab_size() // 16) * 16, "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size, "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads, "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim, "rms_norm_eps": text.rms_norm_eps, "max_position_embeddings": 1024, "pad_token_id": PAD,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"], "mrope_interleaved": True,
                "mrope_section": [text.head_dim // 2 * part // sum(SECTIONS) for part in SECTIONS],
            },
        },
        image_token_id=IMAGE_ID, video_token_id=VIDEO_ID, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )  # fmt: skip


def patches(pictures: np.ndarray) -> Tensor:
    """uint8 [B, height, width, 3] → what the tower takes of each patch, row by row, [B, n, 3 * FRAMES * PATCH²]."""
    seen = pixels(pictures)  # [B, 3, height, width]
    of = seen.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5)  # [B, rows, columns, 3, PATCH, PATCH]
    return of[:, :, :, :, None].expand(-1, -1, -1, -1, FRAMES, -1, -1).reshape(len(seen), of.shape[1] * of.shape[2], -1)


def look(scenes: list[Scene]) -> Batch:
    """The scenes on a canvas, one for all: pixels [B, n, values of a patch], grid [B, 3] (1, rows, columns), targets."""
    size = canvas_of(scenes[0], CANVASES)
    return {
        "pixels": patches(np.stack([np.asarray(place(scene, size)) for scene in scenes])),
        "grid": torch.tensor([[1, size[1] // PATCH, size[0] // PATCH]] * len(scenes)),
        "targets": torch.from_numpy(np.stack([targets(s, SIDE // PATCH, size, corner_of(s, size)) for s in scenes])),
    }


class Native(Warm):
    """Qwen3-VL from the known model."""

    new = ("deepstack", "heads", "q_norm", "k_norm")
    known_pace = 0.4

    def build(self) -> Any:
        made = settings()
        self.heads = question_heads(made.vision_config.hidden_size, made.text_config.hidden_size)
        return Qwen3VLForConditionalGeneration._from_config(made, attn_implementation="sdpa")

    @torch.no_grad()
    def take(self, known: Any) -> None:
        tower = getattr(known.model.vision_tower, "vision_model", known.model.vision_tower)  # one level deeper in 5.0
        size = _sizes(known, tower)
        self._take_words(known)
        self._take_layers(known.model.language_model, size)
        self._take_tower(tower, size)
        self._take_projector(known.model.multi_modal_projector, size)

    def _take_words(self, known: Any) -> None:
        theirs = tokens.tokenizer().get_vocab()
        here = {id: theirs.get(KNOWN_AS.get(piece, piece)) for piece, id in tokenizer().get_vocab().items()}
        rows = {id: row for id, row in here.items() if row is not None}
        for ours, weights in (
            (self.llava.model.language_model.embed_tokens, known.model.language_model.embed_tokens),
            (self.llava.lm_head, known.lm_head),
        ):
            ours.weight.normal_(std=0.02)
            ours.weight[list(rows)] = weights.weight[list(rows.values())]

    def _take_layers(self, decoder: Any, size: dict[Any, float]) -> None:
        self.llava.model.language_model.norm.load_state_dict(decoder.norm.state_dict())
        for ours, theirs in zip(self.llava.model.language_model.layers, decoder.layers, strict=True):
            norms = {name: weight for name, weight in ours.state_dict().items() if "q_norm" in name or "k_norm" in name}
            ours.load_state_dict(theirs.state_dict() | norms)
            ours.self_attn.q_norm.weight.fill_(size[theirs.self_attn.q_proj])
            ours.self_attn.k_norm.weight.fill_(size[theirs.self_attn.k_proj])

    def _take_tower(self, clip: Any, size: dict[Any, float]) -> None:
        visual, norm = self.llava.model.visual, clip.pre_layrnorm

        def folded(weight: Tensor) -> Tensor:  # [C, …] of which CLIP takes the norm over C
            flat = weight.flatten(1)
            return ((flat - flat.mean(0)) * (norm.weight / size[norm])[:, None]).view_as(weight)

        embed = folded(clip.embeddings.patch_embedding.weight)  # [C, 3, PATCH, PATCH]
        visual.patch_embed.proj.weight.copy_(embed[:, :, None] / FRAMES)
        visual.patch_embed.proj.bias.copy_(norm.bias)
        visual.pos_embed.weight.copy_(folded(clip.embeddings.position_embedding.weight[1:].T).T)
        for ours, theirs in zip(visual.blocks, clip.encoder.layers, strict=True):
            attention = theirs.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            ours.attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            ours.attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
            for mine, known in (
                (ours.attn.proj, attention.out_proj), (ours.norm1, theirs.layer_norm1), (ours.norm2, theirs.layer_norm2),
                (ours.mlp.linear_fc1, theirs.mlp.fc1), (ours.mlp.linear_fc2, theirs.mlp.fc2),
            ):  # fmt: skip
                mine.load_state_dict(known.state_dict())

    def _take_projector(self, projector: Any, size: dict[Any, float]) -> None:
        visual = self.llava.model.visual
        visual.merger.norm.weight.fill_(size[projector.linear_1])
        for merger in (visual.merger, *visual.deepstack_merger_list):
            merger.linear_fc1.load_state_dict(projector.linear_1.state_dict())
            merger.linear_fc2.load_state_dict(projector.linear_2.state_dict())
        for merger in visual.deepstack_merger_list:
            nn.init.normal_(merger.linear_fc1.weight, std=merger.linear_fc1.in_features**-0.5)
            nn.init.zeros_(merger.linear_fc2.weight)
            nn.init.zeros_(merger.linear_fc2.bias)

    def see(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The tower's output per patch, the visual tokens, both [B, n, width], and what deepstack adds, [len(DEEP), B, n, C]."""
        count = len(batch["pixels"])
        found = self.llava.model.visual(batch["pixels"].flatten(0, 1), grid_thw=batch["grid"], return_dict=True)
        deep = torch.stack([one.unflatten(0, (count, -1)) for one in found.deepstack_features])
        return found.last_hidden_state.unflatten(0, (count, -1)), found.pooler_output.unflatten(0, (count, -1)), deep

    def see_loss(self, outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return Embedded.see_loss(self, outputs[:2], batch)

    def loss(self, outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`answer_loss` in Qwen's order: the picture between what `around` says, at positions of three axes."""
        image, deep, ids, device = outputs[1], outputs[2], batch["ids"], batch["ids"].device
        embed, count = self.llava.model.language_model.get_input_embeddings(), image.shape[1]
        before, after = (embed(torch.tensor(part, device=device)).expand(len(ids), -1, -1).to(image.dtype) for part in around())
        embeds = torch.cat([before, image, after, embed(ids).to(image.dtype)], dim=1)  # [B, P + T, C]
        start, shared = before.shape[1], embeds.shape[1] - ids.shape[1]
        mask, flat = packed(batch["slot"], shared)
        visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=device)
        visual[:, start : start + count] = True
        away: list[Tensor] = []
        hidden = self.llava.model.language_model(
            inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=three_axes(flat, batch["grid"], start),
            use_cache=False, visual_pos_masks=visual, deepstack_visual_embeds=list(deep.flatten(1, 2)),
            visual=(start, start + count), away=away,
        ).last_hidden_state  # fmt: skip
        return self.judge(hidden[:, shared:], ids, batch["answer"], away)


def three_axes(flat: Tensor, grid: Tensor, start: int) -> Tensor:
    """M-RoPE's positions, [3, B, L]: a picture that begins at `start` advances the text by its longer edge.

    flat: [B, L], positions as if every visual token counted one; grid: [B, 3], the same (1, rows, columns) for all.
    """
    _, rows, columns = grid[0].tolist()
    count, longer = rows * columns, max(rows, columns)
    place = torch.where(flat >= start + count, flat - count + longer, flat).expand(3, -1, -1).clone()
    at = torch.arange(count, device=flat.device)
    place[:, :, start : start + count] = start + torch.stack([at * 0, at // columns, at % columns])[:, None]
    return place


def _sizes(known: Any, tower: Any) -> dict[Any, float]:
    """Mean sizes in the known model, on a few training pictures: by module, the root mean square of what the decoder's queries
    and keys are, and the deviation over channels of what `pre_layrnorm` and the projector are given."""
    sums: dict[Any, list[float]] = {}
    decoder = [layer.self_attn for layer in known.model.language_model.layers]
    head = decoder[0].head_dim

    def out(module: Any, inputs: Any, output: Tensor) -> None:
        sums.setdefault(module, []).append(output.unflatten(-1, (-1, head)).square().mean(-1).sqrt().mean().item())

    def deviation(module: Any, inputs: Any, output: Tensor) -> None:
        sums.setdefault(module, []).append(inputs[0].std(-1, correction=0).mean().item())

    handles = [proj.register_forward_hook(out) for layer in decoder for proj in (layer.q_proj, layer.k_proj)]
    handles += [module.register_forward_hook(deviation) for module in (tower.pre_layrnorm, known.model.multi_modal_projector.linear_1)]
    batch = answering(0, SAMPLES)
    for row in range(SAMPLES):
        ids = batch["ids"][row][batch["slot"][row] == 1]
        picture = [*tokens.prefix(), *[tokens.IMAGE_ID] * (SIDE // PATCH) ** 2]
        known(input_ids=torch.cat([torch.tensor(picture), ids])[None], pixel_values=batch["pixels"][row : row + 1])
    for handle in handles:
        handle.remove()
    return {module: sum(found) / len(found) for module, found in sums.items()}
