"""Families that pad the tiles of their images to the most that one has, and write them line by line: LLaVA, Phi-4. See vlms.py.

The size of an image comes with it, and says how many tokens it takes.

    pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

from typing import Any

import torch
from vlms import IMAGE, MARK, NO_HEAD_DIM, TEXT_SIZES, TOWER, VIDEO, Draft, Family


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


class Phi4Multimodal(Family):
    """Crops of an image line by line, then the whole, with ends of lines: one run. The config names no image token itself."""

    needs = "Phi4MultimodalForCausalLM"
    shows_maps = False
    sizes = ((16, 16), (16, 32))  # height, width; a crop is 16 × 16 pixels and 2 × 2 tokens

    def build(self) -> Any:
        from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

        audio = {"hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 16}
        audio |= {"depthwise_separable_out_channel": 16, "nemo_conv_channels": 16, "input_size": 16, "audio_token_id": MARK + 9}
        vision = {**TOWER, "image_size": 16, "crop_size": 16, "image_token_id": IMAGE}
        return Phi4MultimodalForCausalLM(Phi4MultimodalConfig(**NO_HEAD_DIM, vision_config=vision, audio_config=audio))

    def image(self, draft: Draft) -> None:
        height, width = self.sizes[draft.shown % 2]
        draft.pixels(1 + height * width // 16**2, 3, 16, 16, name="image_pixel_values")
        draft.give("image_sizes", torch.tensor([[height, width]]))
        draft.visual(height // 8 * (width // 8 + 1) + 1 + 2 * (2 + 1))

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        images = [one for draft in drafts for one in draft.fields.get("image_pixel_values", [])]
        if not images:
            return {}
        most = max(map(len, images))
        values = torch.stack([torch.cat([one, torch.zeros(most - len(one), *one.shape[1:])]) for one in images])
        real = torch.stack([torch.arange(most) < len(one) for one in images])
        sizes = torch.cat([one for draft in drafts for one in draft.fields.get("image_sizes", [])])
        return {
            "image_pixel_values": values,
            "image_sizes": sizes,
            "image_attention_mask": real[:, :, None, None].expand(-1, -1, 4, 4).long(),
        }


FAMILIES: dict[str, Family] = {"LlavaOnevision": LlavaOnevision(), "LlavaNextVideo": LlavaNextVideo(), "Phi4Multimodal": Phi4Multimodal()}
