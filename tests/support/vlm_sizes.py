"""Families whose images are a number of tokens that the config or the processor sets: one size, tiles of one size, padded patches.
See vlms.py.

Each is here for something that its decoder, its inputs or its features do and no other's: see its docstring.

    pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

from typing import Any

import torch
from vlm_lines import LlavaOnevision
from vlms import END, HIDDEN, IMAGE, LAYERS, NO_HEAD_DIM, PAD, START, TEXT_SIZES, TOWER, VIDEO, Draft, Family


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
    since = (5, 17)  # before, it had a cache of its own kind, which is refused
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
    one.__name__: one() for one in (Lfm2Vl, Idefics2, Aria, VideoLlava, VipLlava, DeepseekVL, Janus, GotOcr2, Granite4Vision)
}
