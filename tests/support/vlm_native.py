"""Families whose images have their own resolution: Qwen-VL and its kin, GLM-V, Mistral 3, Gemma 4. See vlms.py.

How many tokens an image takes is said by its grid or its size in the call.

    pytest tests/decoder/test_vlm_support.py
"""
# ruff: noqa: RUF012

from __future__ import annotations

from typing import Any

import torch
from vlms import BREAK, END, HIDDEN, IMAGE, LAYERS, MARK, START, TEXT_SIZES, VIDEO, Draft, Family

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


class Qwen3_5(Qwen3VL):
    """Every other layer is linear attention, which deletes nothing; no deepstack."""

    needs = "Qwen3_5ForConditionalGeneration"
    recurrent = (0, 2)
    vision = {name: value for name, value in Qwen3VL.vision.items() if name != "deepstack_visual_indexes"}

    def build(self) -> Any:
        from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

        text = {**QWEN3_TEXT, "rope_parameters": {**self.rope, "partial_rotary_factor": 1.0}}
        text["layer_types"] = ["linear_attention" if layer in self.recurrent else "full_attention" for layer in range(LAYERS)]
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=self.vision, **IDS))


class Glm4v(Qwen2VL):
    """A video's frames are written with the image's token, each before its timestamp, between a start and an end."""

    needs = "Glm4vForConditionalGeneration"
    mixes = False
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
    vision |= {"image_size": 32}
    config, stamp = "Glm4vConfig", (MARK,)

    def build(self) -> Any:
        import transformers

        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END}
        ids |= {"video_start_token_id": MARK + 8, "video_end_token_id": MARK + 9}
        text = {**QWEN3_TEXT, "rope_parameters": rope}
        return getattr(transformers, self.needs)(getattr(transformers, self.config)(text_config=text, vision_config=self.vision, **ids))

    def video(self, draft: Draft) -> None:
        self.patches(draft, self.clip, "video_grid_thw", "pixel_values_videos")
        frames, rows, columns = self.clip
        draft.special(MARK + 8)
        for frame in range(frames):
            draft.special(START)
            draft.visual(rows * columns // 4)
            draft.special(END, *(one + frame for one in self.stamp))
        draft.special(MARK + 9)


class Glm46V(Glm4v):
    needs = "Glm46VForConditionalGeneration"
    config, stamp = "Glm46VConfig", (MARK, MARK + 2, MARK + 4)


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
    since = (5, 17)  # 5.0 scales queries by the places of all tokens of the call, which pruned ones have left
    absolute = True

    def text(self) -> Any:
        from transformers import Ministral3Config

        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
        rope |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
        return Ministral3Config(**TEXT_SIZES, rope_parameters={**rope, "max_position_embeddings": 1024})


class Gemma4(Family):
    """Masks by the kind of layer, two sizes of heads, inputs of their own for each layer; images see themselves both ways."""

    needs = "Gemma4ForConditionalGeneration"
    videos = True
    types = "mm_token_type_ids"
    norms = -0.3  # scores are not scaled down
    layers, shared = LAYERS, 0
    grids, clip = ((4, 6), (6, 8)), (4, 4)  # rows and columns of patches; 2 × 2 make a token

    def build(self) -> Any:
        from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig, Gemma4VisionConfig

        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        vision |= {"head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 16}
        text = {**TEXT_SIZES, "num_hidden_layers": self.layers, "num_kv_shared_layers": self.shared, "sliding_window": 12}
        text |= {"layer_types": ["sliding_attention", "full_attention"] * (self.layers // 2), "global_head_dim": 32}
        text |= {"vocab_size_per_layer_input": TEXT_SIZES["vocab_size"], "hidden_size_per_layer_input": 8}
        return Gemma4ForConditionalGeneration(
            Gemma4Config(
                text_config=Gemma4TextConfig(**text, use_bidirectional_attention="vision"),
                vision_config=Gemma4VisionConfig(**vision),
                image_token_id=IMAGE,
                video_token_id=VIDEO,
                boi_token_id=START,
                eoi_token_id=END,
                audio_token_id=MARK + 9,
                tie_word_embeddings=False,
            )
        )

    def patches(self, draft: Draft, grid: tuple[int, int], pixels: str, places: str, count: int = 1) -> None:
        """Patches, and where they are (column, row), both filled up to the most that there may be."""
        rows, columns = grid
        most = max(one * other for one, other in self.grids)
        where = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        where = torch.nn.functional.pad(where, (0, 0, 0, most - len(where)), value=-1)
        draft.pixels(count, most, 3 * 4 * 4, name=pixels)
        draft.give(places, where.expand(count, -1, -1))

    def image(self, draft: Draft) -> None:
        grid = self.grids[draft.shown % 2]
        self.patches(draft, grid, "pixel_values", "image_position_ids")
        draft.special(START)
        draft.visual(grid[0] * grid[1] // 4)
        draft.special(END)

    def video(self, draft: Draft) -> None:
        self.patches(draft, self.clip, "pixel_values_videos", "video_position_ids", count=2)
        if self.takes("num_frames_per_video"):
            draft.give("num_frames_per_video", torch.tensor([2]))
        else:  # until some version after 5.17: [videos, frames, patches, …]
            draft.fields.update({name: [draft.fields[name][0][None]] for name in ("pixel_values_videos", "video_position_ids")})
        for frame in range(2):
            draft.special(MARK + frame, START)
            draft.visual(self.clip[0] * self.clip[1] // 4, VIDEO)
            draft.special(END)


class Gemma4SharedKeys(Gemma4):
    """The last two layers attend to the keys of the two before them."""

    layers, shared = 6, 2


FAMILIES: dict[str, Family] = {
    "Qwen2VL": Qwen2VL(),
    "Qwen2_5_VL": Qwen2_5_VL(),
    "Qwen3VL": Qwen3VL(),
    "Qwen3VLMoe": Qwen3VLMoe(),
    "Qwen3_5": Qwen3_5(),
    "Glm4v": Glm4v(),
    "Glm46V": Glm46V(),
    "Gemma4": Gemma4(),
    "Gemma4SharedKeys": Gemma4SharedKeys(),
    "Mistral3": Mistral3(),
    "Mistral3OnMinistral3": Mistral3OnMinistral3(),
}
