"""Families that people use less, or that differ from one in vlm_native.py or vlm_tiles.py by their tower alone. See vlms.py.

Each is here for something that its decoder, its inputs or its features do and no other's: see its docstring.

    pytest tests/decoder/test_vlm_support.py
"""
# ruff: noqa: RUF012

from __future__ import annotations

from typing import Any

import torch
from vlm_lines import LlavaOnevision
from vlm_native import IDS, MROPE, QWEN3_TEXT, QWEN_TEXT, Glm4v, Mistral3, Qwen2_5_VL, Qwen2VL, Qwen3_5, Qwen3VL
from vlms import END, HIDDEN, IMAGE, LAYERS, MARK, NO_HEAD_DIM, PAD, START, TEXT_SIZES, TOWER, VIDEO, Draft, Family

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


class OneSize(Family):
    """Images of one size: `tokens` each, between a start and an end."""

    side, tokens = 12, 9

    def image(self, draft: Draft) -> None:
        draft.pixels(1, 3, self.side, self.side)
        draft.special(START)
        draft.visual(self.tokens)
        draft.special(END)


class Lfm2Vl(Family):
    """Layers of short convolutions between those with attention; images as rows of patches, padded to the longest."""

    needs = "Lfm2VlForConditionalGeneration"
    recurrent = (0, 2)
    grids = ((4, 6), (6, 8))

    def build(self) -> Any:
        from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

        kinds = ["conv" if layer in self.recurrent else "full_attention" for layer in range(LAYERS)]
        text = Lfm2Config(**NO_HEAD_DIM, layer_types=kinds, block_auto_adjust_ff_dim=False)
        vision = Siglip2VisionConfig(**TOWER, num_patches=16, vision_use_head=False)
        return Lfm2VlForConditionalGeneration(
            Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, projector_hidden_size=48, tie_word_embeddings=False)
        )

    def image(self, draft: Draft) -> None:
        rows, columns = self.grids[draft.shown % 2]
        most = max(one * other for one, other in self.grids)
        pixels = torch.randn(1, rows * columns, 48, generator=draft.generator)
        draft.give("pixel_values", torch.nn.functional.pad(pixels, (0, 0, 0, most - rows * columns)))
        draft.give("pixel_attention_mask", (torch.arange(most) < rows * columns)[None].long())
        draft.give("spatial_shapes", torch.tensor([[rows, columns]]))
        draft.special(START)
        draft.visual(rows * columns // 4)
        draft.special(END)


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


class Idefics2(Family):
    """A resampler makes as many tokens of every image; a cache that the model around the decoder makes has windows."""

    needs = "Idefics2ForConditionalGeneration"
    latents = 9

    def build(self) -> Any:
        from transformers import Idefics2Config, Idefics2ForConditionalGeneration, MistralConfig

        perceiver = {"hidden_size": HIDDEN, "resampler_n_latents": self.latents, "resampler_depth": 1, "resampler_n_heads": 2}
        perceiver |= {"resampler_head_dim": 16, "num_key_value_heads": 2}
        text = MistralConfig(**TEXT_SIZES, sliding_window=20)
        vision = {**TOWER, "image_size": 12}
        return Idefics2ForConditionalGeneration(
            Idefics2Config(
                vision_config=vision, perceiver_config=perceiver, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False
            )
        )

    def image(self, draft: Draft) -> None:
        draft.pixels(1, 3, 12, 12)
        draft.special(START)
        draft.visual(self.latents)
        draft.special(START)

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        """[rows, images, …], padded to the most that a row has."""
        images = [torch.cat(draft.fields["pixel_values"]) if draft.fields else torch.zeros(0, 3, 12, 12) for draft in drafts]
        most = max(map(len, images))
        if not most:
            return {}
        values = torch.stack([torch.cat([one, torch.zeros(most - len(one), 3, 12, 12)]) for one in images])
        return {"pixel_values": values, "pixel_attention_mask": torch.ones(len(images), most, 12, 12).long()}


class Aria(OneSize):
    """Queries look at an image's patches; experts."""

    needs = "AriaForConditionalGeneration"

    def build(self) -> Any:
        from transformers import AriaConfig, AriaForConditionalGeneration, AriaTextConfig

        text = AriaTextConfig(**TEXT_SIZES, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        vision = {**TOWER, "image_size": 12, "model_type": "idefics3_vision"}
        return AriaForConditionalGeneration(
            AriaConfig(
                vision_config=vision, text_config=text, image_token_index=IMAGE, tie_word_embeddings=False,
                projector_patch_to_query_dict={9: self.tokens},
            )
        )  # fmt: skip

    def image(self, draft: Draft) -> None:
        super().image(draft)
        draft.give("pixel_mask", torch.ones(1, 12, 12, dtype=torch.bool))


class VideoLlava(OneSize):
    """Frames of a video in one run, each with the tower's class token."""

    needs = "VideoLlavaForConditionalGeneration"
    videos = True
    tokens = 10

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig, VideoLlavaForConditionalGeneration

        vision = CLIPVisionConfig(**TOWER, image_size=12)
        ids = {"image_token_index": IMAGE, "video_token_index": VIDEO, "vision_feature_select_strategy": "full"}
        config = VideoLlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT_SIZES), tie_word_embeddings=False, **ids)
        return VideoLlavaForConditionalGeneration(config)

    def image(self, draft: Draft) -> None:
        draft.pixels(1, 3, 12, 12, name="pixel_values_images")
        draft.visual(self.tokens)

    def video(self, draft: Draft) -> None:
        draft.pixels(1, 2, 3, 12, 12, name="pixel_values_videos")
        draft.visual(2 * self.tokens, VIDEO)


class VipLlava(OneSize):
    """Several layers of the tower side by side."""

    needs = "VipLlavaForConditionalGeneration"

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

        vision = CLIPVisionConfig(**TOWER, image_size=12)
        config = VipLlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT_SIZES), image_token_index=IMAGE, vision_feature_layers=[-2, -1],
            tie_word_embeddings=False,
        )  # fmt: skip
        return VipLlavaForConditionalGeneration(config)


class DeepseekVL(OneSize):
    needs = "DeepseekVLForConditionalGeneration"

    def build(self) -> Any:
        from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration, LlamaConfig, SiglipVisionConfig

        vision = SiglipVisionConfig(**TOWER, image_size=12, vision_use_head=False)
        config = DeepseekVLConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT_SIZES), image_token_id=IMAGE, tie_word_embeddings=False
        )
        return DeepseekVLForConditionalGeneration(config)


class Janus(OneSize):
    """Reads images, and could draw some with a vocabulary of its own."""

    needs = "JanusForConditionalGeneration"

    def build(self) -> Any:
        from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

        vision = {**TOWER, "image_size": 12, "projection_dim": HIDDEN, "num_image_tokens": 9, "mlp_ratio": 1.5}
        codes = {"embed_dim": 8, "num_embeddings": 16, "projection_dim": HIDDEN, "base_channels": 32, "channel_multiplier": [1, 1]}
        codes |= {"num_res_blocks": 1, "latent_channels": 8, "num_patches": 3, "out_channels": 3, "image_token_embed_dim": HIDDEN}
        config = JanusConfig(
            vision_config=vision, text_config=LlamaConfig(**TEXT_SIZES), vq_config=codes, image_token_id=IMAGE, tie_word_embeddings=False
        )
        return JanusForConditionalGeneration(config)


class GotOcr2(OneSize):
    needs = "GotOcr2ForConditionalGeneration"
    side, tokens = 192, 9

    def build(self) -> Any:
        from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration, Qwen2Config

        vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 192}
        vision |= {"patch_size": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
        config = GotOcr2Config(
            vision_config=vision, text_config=Qwen2Config(**NO_HEAD_DIM), image_token_index=IMAGE, image_seq_length=9, pad_token_id=PAD,
            tie_word_embeddings=False,
        )  # fmt: skip
        return GotOcr2ForConditionalGeneration(config)


class Granite4Vision(LlavaOnevision):
    """Features of an image go in before several layers, the first of them in place of its tokens."""

    needs = "Granite4VisionForConditionalGeneration"
    videos = False
    side, sizes = 4, ((16, 32), (32, 16))

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, Granite4VisionConfig, Granite4VisionForConditionalGeneration

        qformer = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "encoder_hidden_size": 64}
        qformer["cross_attention_frequency"] = 1
        return Granite4VisionForConditionalGeneration(
            Granite4VisionConfig(
                vision_config=CLIPVisionConfig(**{**TOWER, "hidden_size": 64}, image_size=32),
                text_config={**NO_HEAD_DIM, "model_type": "granite4_vision_text", "attention_multiplier": 0.25},
                qformer_config={**qformer, "model_type": "blip_2_qformer"},
                image_token_index=IMAGE,
                image_grid_pinpoints=[[32, 64], [64, 32]],
                downsample_rate="1/2",
                deepstack_layer_map=[[-1, 0], [-2, 2]],
                spatial_target_layers=[1, 3],
                use_spatial_sampling=False,
            )
        )

    def image(self, draft: Draft) -> None:
        size = tuple(2 * one for one in self.sizes[draft.shown % 2])
        rows, columns = size[0] // 8, size[1] // 8
        draft.give("image_sizes", torch.tensor([size]))
        draft.pixels(3, 3, 32, 32)
        draft.visual(16 + rows * columns + rows)

    def fields(self, drafts: list[Draft]) -> dict[str, Any]:
        images = [one for draft in drafts for one in draft.fields.get("pixel_values", [])]
        call = super().fields(drafts)
        if images:
            call["pixel_values"] = torch.stack(images)
        return call


FAMILIES: dict[str, Family] = {
    one.__name__: one()
    for one in (
        Lfm2Vl, Ernie4_5_VLMoe, Qwen3_5Moe, Glm4vMoe, GlmOcr, PaddleOCRVL, Exaone4_5, Qwen2_5Omni, Qwen3Omni, VideoLlama3, Kimi_K25,
        LightOnOcr, Pixtral, Idefics2, Aria, VideoLlava, VipLlava, DeepseekVL, Janus, GotOcr2, Granite4Vision,
    )
}  # fmt: skip
