"""Families whose images have one size, or are cut into tiles of one size: InternVL, SmolVLM, Gemma and others. See vlms.py.

How many tiles an image takes is, for most, not said by the call: the prompt says it.

    pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

from typing import Any

import torch
from vlms import BOS, BREAK, END, HIDDEN, IMAGE, LAYERS, MARK, NO_HEAD_DIM, PAD, START, TEXT_SIZES, TOWER, Draft, Family


class InternVL(Family):
    """Tiles of 9 tokens, all in one run between a start and an end; a video's frames look like images in the call."""

    needs = "InternVLForConditionalGeneration"
    videos = True
    tiles = (1, 3)

    def build(self) -> Any:
        from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

        vision = {**TOWER, "image_size": [24, 24], "patch_size": [4, 4]}
        text = Qwen2Config(**NO_HEAD_DIM)
        config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, image_seq_length=9, tie_word_embeddings=False)
        return InternVLForConditionalGeneration(config)

    def image(self, draft: Draft) -> None:
        tiles = self.tiles[draft.shown % 2]
        draft.pixels(tiles, 3, 24, 24)
        draft.special(START)
        draft.visual(9 * tiles)
        draft.special(END)

    def video(self, draft: Draft) -> None:
        draft.pixels(2, 3, 24, 24)
        draft.visuals.pop()
        for _ in range(2):
            draft.visuals.append(("image", []))
            draft.text(2)  # "Frame1: "
            draft.special(START)
            draft.visual(9)
            draft.special(END)


class SmolVLM(Family):
    """Tiles between marks of their row and column, then the whole; images of a row fill up one block of tiles."""

    needs = "SmolVLMForConditionalGeneration"
    videos = True
    grids = ((0, 0), (2, 1))  # rows and columns of tiles; none: the whole image only
    config = "SmolVLMConfig"

    def build(self) -> Any:
        import transformers

        config = getattr(transformers, self.config)(
            vision_config={**TOWER, "image_size": 24},
            text_config=transformers.LlamaConfig(**TEXT_SIZES),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=0,
        )
        return getattr(transformers, self.needs)(config)

    def image(self, draft: Draft) -> None:
        rows, columns = self.grids[draft.shown % 2]
        draft.pixels(rows * columns + 1, 3, 24, 24)
        for row in range(rows):
            for column in range(columns):
                draft.special(START, MARK + row * columns + column)
                draft.visual(9)
            draft.text(1)  # a newline
        if rows:
            draft.text(1)
        draft.special(START, MARK + 9)
        draft.visual(9)
        draft.special(START)

    def video(self, draft: Draft) -> None:
        draft.pixels(2, 3, 24, 24)
        draft.visuals.pop()
        for _ in range(2):
            draft.visuals.append(("image", []))
            draft.text(3)  # "Frame from 00:01:"
            draft.special(START, MARK + 9)
            draft.visual(9)
            draft.special(START)

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        tiles = [torch.cat(draft.fields["pixel_values"]) if draft.fields else torch.zeros(0, 3, 24, 24) for draft in drafts]
        most = max(len(one) for one in tiles)
        if not most:
            return {}
        values = torch.stack([torch.cat([one, torch.zeros(most - len(one), 3, 24, 24)]) for one in tiles])
        real = torch.stack([torch.arange(most) < len(one) for one in tiles])
        return {"pixel_values": values, "pixel_attention_mask": real[:, :, None, None].expand(-1, -1, 24, 24).long()}


class Idefics3(SmolVLM):
    needs = "Idefics3ForConditionalGeneration"
    videos = False
    config = "Idefics3Config"


class Gemma3(Family):
    """9 tokens an image, which see each other both ways; sliding layers; masks by the kind of layer."""

    needs = "Gemma3ForConditionalGeneration"
    types = "token_type_ids"

    def build(self) -> Any:
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

        kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
        return Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=Gemma3TextConfig(**TEXT_SIZES, sliding_window=12, layer_types=kinds, query_pre_attn_scalar=16),
                vision_config=SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False),
                mm_tokens_per_image=9,
                image_token_index=IMAGE,
                boi_token_index=START,
                eoi_token_index=END,
                tie_word_embeddings=False,
            )
        )

    def image(self, draft: Draft) -> None:
        draft.pixels(1, 3, 24, 24)
        draft.text(1)  # newlines
        draft.special(START)
        draft.visual(9)
        draft.special(END)
        draft.text(1)


class PaliGemma(Family):
    """The whole prompt sees itself both ways; positions from 1; masks of four dimensions."""

    needs = "PaliGemmaForConditionalGeneration"
    types = "token_type_ids"
    image_type, generated_type = 0, 1
    both_ways = True

    def build(self) -> Any:
        from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

        return PaliGemmaForConditionalGeneration(
            PaliGemmaConfig(
                text_config=GemmaConfig(**TEXT_SIZES),
                vision_config=SiglipVisionConfig(**TOWER, image_size=12, vision_use_head=False),
                image_token_index=IMAGE,
                projection_dim=HIDDEN,
                hidden_size=HIDDEN,
                vocab_size=TEXT_SIZES["vocab_size"],
                tie_word_embeddings=False,
            )
        )

    def image(self, draft: Draft) -> None:
        draft.pixels(1, 3, 12, 12)
        draft.visual(9)
        if draft.shown + 1 == draft.coming:
            draft.special(BOS)


class Ovis2(Family):
    """The whole, then tiles with marks between them, all of them words of a visual vocabulary."""

    needs = "Ovis2ForConditionalGeneration"
    grids = ((1, 1), (1, 2))

    def build(self) -> Any:
        from transformers import Ovis2Config, Ovis2ForConditionalGeneration, Qwen2Config

        model = Ovis2ForConditionalGeneration(
            Ovis2Config(
                vision_config={**TOWER, "image_size": 12, "vocab_size": 40, "num_visual_indicator_tokens": 5},
                text_config=Qwen2Config(**NO_HEAD_DIM),
                image_token_id=IMAGE,
                visual_indicator_token_ids=[START, MARK, MARK + 1, MARK + 2, END],
                vocab_size=TEXT_SIZES["vocab_size"],
                hidden_size=HIDDEN,
                tie_word_embeddings=False,
            )
        )
        model.model.vision_tower.head_norm.weight.data *= 3  # else every patch is much the same mixture of words
        return model

    def image(self, draft: Draft) -> None:
        rows, columns = self.grids[draft.shown % 2]
        tiles = rows * columns if rows * columns > 1 else 0
        draft.pixels(1 + tiles, 3, 12, 12)
        draft.special(START)
        draft.visual(9)
        draft.special(MARK)
        for tile in range(tiles):
            draft.visual(9)
            if tile + 1 < tiles:
                draft.special(MARK + (1 if (tile + 1) % columns else 2))
        draft.special(END)


class AyaVision(Family):
    """Numbered tiles, then the whole; layers with windows and layers without positions."""

    needs = "AyaVisionForConditionalGeneration"
    tiles = (1, 3)

    def text(self) -> Any:
        from transformers import Cohere2Config

        kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
        return Cohere2Config(**NO_HEAD_DIM, layer_types=kinds, sliding_window=12, logit_scale=1.0)

    def build(self) -> Any:
        from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, SiglipVisionConfig

        vision = SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False)
        config = AyaVisionConfig(vision_config=vision, text_config=self.text(), image_token_index=IMAGE, tie_word_embeddings=False)
        return AyaVisionForConditionalGeneration(config)

    def image(self, draft: Draft) -> None:
        tiles = self.tiles[draft.shown % 2]
        draft.pixels(tiles, 3, 24, 24)
        draft.special(START)
        for tile in range(1, tiles):
            draft.special(MARK, MARK + tile)  # "TILE", "_1"
            draft.visual(9)
        draft.special(MARK + 9)
        draft.visual(9)
        draft.special(END)


class Cohere2Vision(AyaVision):
    """A line break after each tile."""

    needs = "Cohere2VisionForConditionalGeneration"

    def build(self) -> Any:
        from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration, SiglipVisionConfig

        vision = SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False)
        ids = {"image_token_id": IMAGE, "alignment_intermediate_size": 64, "tie_word_embeddings": False}
        return Cohere2VisionForConditionalGeneration(Cohere2VisionConfig(vision_config=vision, text_config=self.text(), **ids))

    def image(self, draft: Draft) -> None:
        tiles = self.tiles[draft.shown % 2]
        draft.pixels(tiles, 3, 24, 24)
        draft.special(START)
        for _ in range(tiles):
            draft.visual(9)
            draft.special(BREAK)
        draft.special(END)


class Llama4(Family):
    """Chunks in most layers, no rotation but a temperature by position in the last; rotary factors are complex."""

    needs = "Llama4ForConditionalGeneration"
    since = (5, 17)  # 5.0 reads a field that its tower's output lacks
    absolute = True
    grids = ((1, 1), (1, 2))

    def build(self) -> Any:
        from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4TextConfig, Llama4VisionConfig

        text = {**TEXT_SIZES, "intermediate_size": 40, "intermediate_size_mlp": 80, "num_local_experts": 2, "num_experts_per_tok": 1}
        text |= {"interleave_moe_layer_step": 2, "attention_chunk_size": 16, "floor_scale": 512, "attn_scale": 0.5}
        vision = {**TOWER, "image_size": 24, "intermediate_size": 128}
        vision |= {"projector_input_dim": 48, "projector_output_dim": 48, "vision_output_dim": 48}
        model = Llama4ForConditionalGeneration(
            Llama4Config(
                text_config=Llama4TextConfig(**text),
                vision_config=Llama4VisionConfig(**vision),
                image_token_index=IMAGE,
                boi_token_index=START,
                eoi_token_index=END,
                pad_token_id=PAD,
            )
        )
        # transformers 5.24 reads this field of an output that lacks it, so every forward of the class fails
        model.language_model.register_forward_hook(lambda module, args, output: setattr(output, "image_outputs", None))
        return model

    def image(self, draft: Draft) -> None:
        rows, columns = self.grids[draft.shown % 2]
        tiles = rows * columns if rows * columns > 1 else 0
        draft.pixels(tiles + 1, 3, 24, 24)
        draft.special(START)
        for tile in range(tiles):
            draft.visual(9)
            draft.special(MARK if (tile + 1) % columns else MARK + 1)
        draft.special(MARK + 2)
        draft.visual(9)
        draft.special(END)


FAMILIES: dict[str, Family] = {
    "InternVL": InternVL(),
    "SmolVLM": SmolVLM(),
    "Idefics3": Idefics3(),
    "Ovis2": Ovis2(),
    "AyaVision": AyaVision(),
    "Cohere2Vision": Cohere2Vision(),
    "Llama4": Llama4(),
    "Gemma3": Gemma3(),
    "PaliGemma": PaliGemma(),
}
