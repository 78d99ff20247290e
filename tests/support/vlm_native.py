"""Families whose images have their own resolution: Qwen-VL and its kin, GLM-V, Mistral 3. See vlms.py.

pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

from typing import Any

import torch
from vlms import BREAK, END, HIDDEN, IMAGE, MARK, START, TEXT_SIZES, VIDEO, Draft, Family

IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
QWEN_TEXT = {name: value for name, value in TEXT_SIZES.items() if name not in ("head_dim", "tie_word_embeddings")}
QWEN3_TEXT = {name: value for name, value in TEXT_SIZES.items() if name not in ("eos_token_id", "bos_token_id", "tie_word_embeddings")}


class Qwen2VL(Family):
    """Patches in one row over all images, grids beside them; 2 × 2 patches and two frames are a token's."""

    needs = "Qwen2VLForConditionalGeneration"
    videos = True
    types = "mm_token_type_ids"
    grids, clip, patch = ((1, 4, 6), (1, 6, 8)), (2, 4, 4), 4  # frames, rows, columns of patches
    vision: dict[str, Any] = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}

    def build(self) -> Any:
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

        text = {**QWEN_TEXT, "rope_parameters": MROPE}
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=self.vision, **IDS))

    def image(self, draft: Draft) -> None:
        grid = self.grids[draft.shown % 2]
        self.patches(draft, grid, "image_grid_thw", "pixel_values")
        draft.special(START)
        draft.visual(self.tokens(grid))
        draft.special(END)

    def video(self, draft: Draft) -> None:
        self.patches(draft, self.clip, "video_grid_thw", "pixel_values_videos")
        draft.special(START)
        draft.visual(self.tokens(self.clip), VIDEO)
        draft.special(END)

    def patches(self, draft: Draft, grid: tuple[int, int, int], grids: str, pixels: str) -> None:
        draft.give(grids, torch.tensor([grid]))
        draft.pixels(self.tokens(grid) * 4, 3 * 2 * self.patch**2, name=pixels)

    @staticmethod
    def tokens(grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2] // 4


class Qwen2_5_VL(Qwen2VL):
    """Windows in the vision tower, and seconds in the positions of a video."""

    needs = "Qwen2_5_VLForConditionalGeneration"

    def build(self) -> Any:
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        text = {**QWEN_TEXT, "rope_parameters": MROPE}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS))

    def video(self, draft: Draft) -> None:
        super().video(draft)
        draft.give("second_per_grid_ts", torch.tensor([0.5]))


class Qwen3VL(Qwen2VL):
    """Deepstack features go into the first layers; each frame of a video stands between timestamps of its own."""

    needs = "Qwen3VLForConditionalGeneration"
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    rope: dict[str, Any] = {**MROPE, "mrope_interleaved": True}

    def build(self) -> Any:
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        text = {**QWEN3_TEXT, "rope_parameters": self.rope}
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=self.vision, **IDS))

    def video(self, draft: Draft) -> None:
        self.patches(draft, self.clip, "video_grid_thw", "pixel_values_videos")
        frames, rows, columns = self.clip
        for frame in range(frames):
            draft.special(MARK, MARK + 1 + frame, MARK + 5, START)  # "<", "0.2 seconds", ">"
            draft.visual(rows * columns // 4, VIDEO)
            draft.special(END)


class Qwen3VLMoe(Qwen3VL):
    needs = "Qwen3VLMoeForConditionalGeneration"

    def build(self) -> Any:
        from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

        text = {**QWEN3_TEXT, "rope_parameters": self.rope, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
        return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=self.vision, **IDS))


class Mistral3(Family):
    """Images of unlike sizes in one padded block; a break ends each row of patches, an end the last."""

    needs = "Mistral3ForConditionalGeneration"
    sizes = ((16, 24), (32, 24))  # height, width; a token is 8 × 8 pixels

    def text(self) -> Any:
        from transformers import MistralConfig

        return MistralConfig(**TEXT_SIZES, sliding_window=None)

    def build(self) -> Any:
        from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PixtralVisionConfig

        vision = PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4
        )
        return Mistral3ForConditionalGeneration(
            Mistral3Config(vision_config=vision, text_config=self.text(), image_token_index=IMAGE, tie_word_embeddings=False)
        )

    def image(self, draft: Draft) -> None:
        height, width = self.sizes[draft.shown % 2]
        draft.pixels(1, 3, height, width)
        draft.give("image_sizes", torch.tensor([[height, width]]))
        rows = height // 8
        for row in range(rows):
            draft.visual(width // 8)
            draft.special(BREAK if row + 1 < rows else END)

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        pixels = [one for draft in drafts for one in draft.fields.get("pixel_values", [])]
        if not pixels:
            return {}
        height, width = (max(one.shape[axis] for one in pixels) for axis in (2, 3))
        padded = [torch.nn.functional.pad(one, (0, width - one.shape[3], 0, height - one.shape[2])) for one in pixels]
        sizes = torch.cat([one for draft in drafts for one in draft.fields.get("image_sizes", [])])
        return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


class Mistral3OnMinistral3(Mistral3):
    """A decoder whose layers take position ids beside the rotary embeddings: far queries are scaled."""

    needs = "Ministral3Config"
    absolute = True

    def text(self) -> Any:
        from transformers import Ministral3Config

        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
        rope |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
        return Ministral3Config(**TEXT_SIZES, rope_parameters={**rope, "max_position_embeddings": 1024})


FAMILIES: dict[str, Family] = {
    "Qwen2VL": Qwen2VL(),
    "Qwen2_5_VL": Qwen2_5_VL(),
    "Qwen3VL": Qwen3VL(),
    "Qwen3VLMoe": Qwen3VLMoe(),
    "Mistral3": Mistral3(),
    "Mistral3OnMinistral3": Mistral3OnMinistral3(),
}
