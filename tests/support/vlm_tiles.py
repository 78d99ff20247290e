"""Families whose images have one size, or are cut into tiles of one size: InternVL, LLaVA, Gemma and others. See vlms.py.

pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

from typing import Any

import torch
from vlms import BOS, END, HIDDEN, IMAGE, LAYERS, MARK, START, TEXT_SIZES, VIDEO, Draft, Family

TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
NO_HEAD_DIM = {name: value for name, value in TEXT_SIZES.items() if name != "head_dim"}


class InternVL(Family):
    """Tiles of 9 tokens, all in one run between a start and an end; a video's frames look like images in the call."""

    needs = "InternVLForConditionalGeneration"
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


class LlavaOnevision(Family):
    """One image of a row comes as a whole and in tiles, with a token at the end of each line; several come whole."""

    needs = "LlavaOnevisionForConditionalGeneration"
    videos = True
    side, sizes = 3, ((12, 24), (24, 12))  # tokens along a side of a tile; height and width of images, in pixels

    def build(self) -> Any:
        from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

        return LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                vision_config=SiglipVisionConfig(**TOWER, image_size=12, vision_use_head=False),
                text_config=Qwen2Config(**NO_HEAD_DIM),
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                image_grid_pinpoints=[[12, 24], [24, 12], [24, 24]],
            )
        )

    def image(self, draft: Draft) -> None:
        size, pixels = self.sizes[draft.shown % 2], self.side * 4
        draft.give("image_sizes", torch.tensor([size]))
        if not draft.fields.get("batch_num_images"):
            draft.give("batch_num_images", torch.tensor([draft.coming]))
        if draft.coming > 1:
            draft.pixels(1, 3, pixels, pixels)
            draft.visual(self.side**2 + 1)
        else:
            rows, columns = size[0] // 4, size[1] // 4
            draft.pixels(1 + rows * columns // self.side**2, 3, pixels, pixels)
            draft.visual(self.side**2 + rows * columns + rows)

    def video(self, draft: Draft) -> None:
        draft.pixels(1, 4, 3, self.side * 4, self.side * 4, name="pixel_values_videos")
        draft.visual(4 * ((self.side + 1) // 2) ** 2 + 1, VIDEO)

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        """Tiles are padded to the most that an image has: [images, tiles, 3, height, width]."""
        images = [one for draft in drafts for one in draft.fields.pop("pixel_values", [])]
        call: dict[str, Any] = super().fields(drafts)
        if images:
            most = max(map(len, images))
            call["pixel_values"] = torch.stack([torch.cat([one, torch.zeros(most - len(one), *one.shape[1:])]) for one in images])
        return call


class LlavaNextVideo(LlavaOnevision):
    """Every image whole and in tiles; a video pooled 2 × 2, without a token at its end."""

    needs = "LlavaNextVideoForConditionalGeneration"
    side, sizes = 4, ((16, 32), (32, 16))

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

        return LlavaNextVideoForConditionalGeneration(
            LlavaNextVideoConfig(
                vision_config=CLIPVisionConfig(**TOWER, image_size=16),
                text_config=LlamaConfig(**TEXT_SIZES),
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
            )
        )

    def image(self, draft: Draft) -> None:
        size = self.sizes[draft.shown % 2]
        rows, columns = size[0] // 4, size[1] // 4
        draft.give("image_sizes", torch.tensor([size]))
        draft.pixels(1 + rows * columns // self.side**2, 3, self.side * 4, self.side * 4)
        draft.visual(self.side**2 + rows * columns + rows)

    def video(self, draft: Draft) -> None:
        draft.pixels(1, 4, 3, self.side * 4, self.side * 4, name="pixel_values_videos")
        draft.visual(4 * (self.side // 2) ** 2, VIDEO)


class SmolVLM(Family):
    """Tiles between marks of their row and column, then the whole; images of a row fill up one block of tiles."""

    needs = "SmolVLMForConditionalGeneration"
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


FAMILIES: dict[str, Family] = {
    "InternVL": InternVL(),
    "LlavaOnevision": LlavaOnevision(),
    "LlavaNextVideo": LlavaNextVideo(),
    "SmolVLM": SmolVLM(),
    "Idefics3": Idefics3(),
    "Gemma3": Gemma3(),
    "PaliGemma": PaliGemma(),
}
