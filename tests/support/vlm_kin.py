"""Kin of the families in vlm_native.py: other towers, experts, hybrids, audio beside images. See vlms.py.

Each is here for something that its decoder, its inputs or its features do and no other's: see its docstring.

    pytest tests/decoder/test_vlm_support.py
"""
# ruff: noqa: RUF012

from __future__ import annotations

from typing import Any

import torch
from vlm_native import IDS, MROPE, QWEN3_TEXT, QWEN_TEXT, Glm4v, Mistral3, Qwen2_5_VL, Qwen2VL, Qwen3_5, Qwen3VL
from vlms import END, HIDDEN, IMAGE, LAYERS, MARK, NO_HEAD_DIM, START, TEXT_SIZES, TOWER, VIDEO, Draft, Family

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


class Ernie4_5_VLMoe(Qwen2VL):
    """Experts of its own for visual tokens: a kind for each token travels through the layers. Two frames of a video are one."""

    needs = "Ernie4_5_VLMoeForConditionalGeneration"
    clip = (2, 4, 6)

    def build(self) -> Any:
        from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

        text = {**QWEN_TEXT, "moe_intermediate_size": [40, 24], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
        text |= {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "rope_parameters": {**PLAIN_ROPE, "mrope_section": [3, 3, 2]}}
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END}
        ids |= {"video_start_token_id": MARK + 8, "video_end_token_id": MARK + 9, "tie_word_embeddings": False}
        return Ernie4_5_VLMoeForConditionalGeneration(Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, **ids))

    def patches(self, draft: Draft, grid: tuple[int, int, int], grids: str, pixels: str) -> None:
        draft.give(grids, torch.tensor([grid]))
        draft.pixels(grid[0] * grid[1] * grid[2], 3 * self.patch**2, name=pixels)

    def video(self, draft: Draft) -> None:
        self.patches(draft, self.clip, "video_grid_thw", "pixel_values_videos")
        draft.special(START)
        draft.visual(self.tokens(self.clip) // 2, VIDEO)
        draft.special(END)

    def inputs(self, rows: Any, padding: str | None = None) -> Any:
        inputs = super().inputs(rows, padding)
        types = inputs.call.get("mm_token_type_ids")
        if types is not None and self.takes("moe_mm_token_type_ids"):
            inputs.call["moe_mm_token_type_ids"] = types.clone().int()
        return inputs


class Qwen3_5Moe(Qwen3_5):
    needs = "Qwen3_5MoeForConditionalGeneration"

    def build(self) -> Any:
        from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

        text = {**QWEN3_TEXT, **EXPERTS, "rope_parameters": {**self.rope, "partial_rotary_factor": 1.0}}
        text["layer_types"] = ["linear_attention" if layer in self.recurrent else "full_attention" for layer in range(LAYERS)]
        text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        text |= {"shared_expert_intermediate_size": 40}
        return Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=self.vision, **IDS))


class Glm4vMoe(Glm4v):
    needs = "Glm4vMoeForConditionalGeneration"

    def build(self) -> Any:
        from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

        rope = {**PLAIN_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END}
        ids |= {"video_start_token_id": MARK + 8, "video_end_token_id": MARK + 9}
        text = {**QWEN3_TEXT, "rope_parameters": rope, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
        text |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
        return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(text_config=text, vision_config=self.vision, **ids))


class GlmOcr(Glm4v):
    needs = "GlmOcrForConditionalGeneration"
    config = "GlmOcrConfig"
    vision = {name: value for name, value in Glm4v.vision.items() if name != "image_size"}


class PaddleOCRVL(Qwen2VL):
    """Patches as small pictures; positions in three dimensions."""

    needs = "PaddleOCRVLForConditionalGeneration"
    videos = False

    def build(self) -> Any:
        from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

        text = {**TEXT_SIZES, "rope_parameters": MROPE}
        return PaddleOCRVLForConditionalGeneration(PaddleOCRVLConfig(text_config=text, vision_config={**TOWER, "image_size": 16}, **IDS))

    def patches(self, draft: Draft, grid: tuple[int, int, int], grids: str, pixels: str) -> None:
        draft.give(grids, torch.tensor([grid]))
        draft.pixels(self.tokens(grid) * 4, 3, self.patch, self.patch, name=pixels)


class Exaone4_5(Qwen2_5_VL):
    """Windows and, in every other layer, no rotation; positions count tokens."""

    needs = "Exaone4_5_ForConditionalGeneration"
    types = None

    def build(self) -> Any:
        from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration

        text = {**NO_HEAD_DIM, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
        vision = {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1], "num_key_value_heads": 2}
        ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
        text["model_type"] = "exaone4"
        return Exaone4_5_ForConditionalGeneration(
            Exaone4_5_Config(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
        )

    def video(self, draft: Draft) -> None:
        Qwen2VL.video(self, draft)


class Qwen2_5Omni(Qwen2VL):
    """The thinker; positions are made by ids alone."""

    needs = "Qwen2_5OmniThinkerForConditionalGeneration"
    types = None
    masked = True
    audio: dict[str, Any] = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16, "num_mel_bins": 8}

    def video(self, draft: Draft) -> None:
        super().video(draft)
        draft.give("video_second_per_grid", torch.tensor([0.5]))

    def build(self) -> Any:
        from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

        vision = {**QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
        text = {**QWEN_TEXT, "rope_parameters": MROPE, "model_type": "qwen2_5_omni_text"}
        config = Qwen2_5OmniThinkerConfig(
            text_config=text, vision_config=vision, audio_config={**self.audio, "output_dim": HIDDEN, "n_window": 4},
            image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=MARK + 9,
        )  # fmt: skip
        config.vision_start_token_id, config.vision_end_token_id = START, END
        config.audio_start_token_id, config.audio_end_token_id = MARK + 8, MARK + 7
        return Qwen2_5OmniThinkerForConditionalGeneration(config)


class Qwen3Omni(Qwen3VL):
    """The thinker; deepstack, experts."""

    needs = "Qwen3OmniMoeThinkerForConditionalGeneration"
    types = None
    masked = True
    videos = False  # whose positions need how long a frame is

    def build(self) -> Any:
        from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

        audio = {**Qwen2_5Omni.audio, "output_dim": HIDDEN, "downsample_hidden_size": 8, "n_window": 4, "n_window_infer": 8}
        text = {**QWEN3_TEXT, **EXPERTS, "rope_parameters": self.rope, "model_type": "qwen3_omni_moe_text"}
        config = Qwen3OmniMoeThinkerConfig(
            text_config=text, vision_config=self.vision, audio_config=audio,
            image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=MARK + 9,
        )  # fmt: skip
        config.vision_start_token_id, config.vision_end_token_id = START, END
        config.audio_start_token_id, config.audio_end_token_id = MARK + 8, MARK + 7
        return Qwen3OmniMoeThinkerForConditionalGeneration(config)


class VideoLlama3(Qwen2VL):
    """Videos are made by the method for images."""

    needs = "VideoLlama3ForConditionalGeneration"
    types = None

    def build(self) -> Any:
        from transformers import Qwen2Config, VideoLlama3Config, VideoLlama3ForConditionalGeneration

        config = VideoLlama3Config(
            text_config=Qwen2Config(**NO_HEAD_DIM),
            vision_config=TOWER,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            tie_word_embeddings=False,
        )
        return VideoLlama3ForConditionalGeneration(config)

    def patches(self, draft: Draft, grid: tuple[int, int, int], grids: str, pixels: str) -> None:
        draft.give(grids, torch.tensor([grid]))
        draft.give(grids.replace("grid_thw", "merge_sizes"), torch.tensor([2]))
        draft.pixels(grid[0] * grid[1] * grid[2], 3 * self.patch**2, name=pixels)


class Kimi_K25(Qwen2VL):
    """Keys and values through one latent vector (DeepSeek V3)."""

    needs = "Kimi_K25ForConditionalGeneration"
    types = None
    videos = False

    def build(self) -> Any:
        from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration

        text = {
            **QWEN_TEXT,
            "num_key_value_heads": HIDDEN // 16,
            "moe_intermediate_size": 40,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        }
        text |= {"q_lora_rank": 24, "kv_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_group": 1}
        text |= {"topk_group": 1, "first_k_dense_replace": 2, "rope_parameters": PLAIN_ROPE}
        vision = {**TOWER, "pos_emb_height": 8, "pos_emb_width": 8, "pos_emb_time": 2}
        config = Kimi_K25Config(text_config=DeepseekV3Config(**text), vision_config=vision, projection_hidden_size=32, **IDS)
        return Kimi_K25ForConditionalGeneration(config)

    def patches(self, draft: Draft, grid: tuple[int, int, int], grids: str, pixels: str) -> None:
        draft.give(grids, torch.tensor([grid]))
        draft.pixels(grid[0] * grid[1] * grid[2], 3, self.patch, self.patch, name=pixels)


class LightOnOcr(Mistral3):
    """Patches of an image in one run, on a Qwen3 decoder."""

    needs = "LightOnOcrForConditionalGeneration"

    def build(self) -> Any:
        from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration, PixtralVisionConfig, Qwen3Config

        vision = PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=4
        )
        config = LightOnOcrConfig(
            vision_config=vision, text_config=Qwen3Config(**TEXT_SIZES), image_token_id=IMAGE, tie_word_embeddings=False
        )
        return LightOnOcrForConditionalGeneration(config)

    def image(self, draft: Draft) -> None:
        height, width = self.sizes[draft.shown % 2]
        draft.pixels(1, 3, height, width)
        draft.give("image_sizes", torch.tensor([[height, width]]))
        draft.special(START)
        draft.visual(height * width // 64)
        draft.special(END)


class Pixtral(Mistral3):
    """Through the class of LLaVA; a break ends each row of patches."""

    needs = "LlavaForConditionalGeneration"

    def build(self) -> Any:
        from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

        vision = PixtralVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
        )
        return LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision, text_config=self.text(), image_token_index=IMAGE, tie_word_embeddings=False,
                vision_feature_select_strategy="full", vision_feature_layer=-1,
            )
        )  # fmt: skip


FAMILIES: dict[str, Family] = {
    one.__name__: one()
    for one in (
        Ernie4_5_VLMoe,
        Qwen3_5Moe,
        Glm4vMoe,
        GlmOcr,
        PaddleOCRVL,
        Exaone4_5,
        Qwen2_5Omni,
        Qwen3Omni,
        VideoLlama3,
        Kimi_K25,
        LightOnOcr,
        Pixtral,
    )
}
