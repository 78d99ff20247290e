"""Tiny checkpoints of many classes of transformers with everything that asking needs: tokenizer, image processor, chat template, weights.

The tokenizer is made here: one token for each byte, and the marks that the class knows, so that their ids and those in the model's config
agree. A folder holds the files that a repository of such a model has; nothing in it is our code's.

    path = processors.saved("Qwen2_5_VL", tmp_path)
    fitprune.load(str(path)).ask("What is it?", image)

A processor by transformers' own hands (for the expected values) is `reference(path)`, which puts it together as a test may: where
torchvision is missing an empty object stands for the video processor, as nobody asks about videos then.

    pytest tests/families/test_processor.py
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vlms import sharpen

LAYERS, HIDDEN = 4, 64
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
HEADED = {**TEXT, "head_dim": 16}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}

CHATML = (  # written for these tests; parts as lists, or plain text
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (  # begins with the BOS token
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
INST = (  # answers are plain text, as in Mistral's
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def tokenizer(*marks: str, bos: str | None = None, eos: str = "<|im_end|>", **roles: str) -> Any:
    """One token for each byte, then the marks; roles are names that the class asks its tokenizer for, such as image_token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = list(dict.fromkeys(["<pad>", *([bos] if bos else []), eos, *marks, *roles.values()]))
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token="<pad>", extra_special_tokens=roles)


@dataclass
class Checkpoint:
    """What is saved.

    processor: the name of its class; settings: its own, beside its parts. marks: what the template writes for an image and a video.
    video: settings of the video processor, if the class has one.
    """

    model: Any
    tokenizer: Any
    image_processor: Any
    processor: str
    template: str
    marks: tuple[str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] | None = None

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": self.processor, **self.settings}))
        if self.video is not None:
            (folder / "video_preprocessor_config.json").write_text(json.dumps({"processor_class": self.processor, **self.video}))
        image, video = self.marks
        (folder / "chat_template.jinja").write_text(self.template.replace("IMAGE", image).replace("VIDEO", video))
        return folder


def finished(model: Any, tokens: Any) -> Any:
    """Sharp weights, and a generation config that knows what ends an answer and carries what a released one may."""
    torch.manual_seed(0)
    model = sharpen(model.float(), 0.6)
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.generation_config.bos_token_id = tokens.bos_token_id
    return model


def pillow(folder: str, name: str) -> Any:
    """An image processor's class in the implementation that needs no torchvision."""
    from fitprune.families.clip import pillow_processor

    return pillow_processor(folder, name)


QWEN = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_MARKS = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}


def _qwen(name: str, processor: str, vision: dict[str, Any], text: dict[str, Any], video: str) -> Checkpoint:
    tokens = tokenizer(*QWEN)
    at = tokens.convert_tokens_to_ids
    ids = {"image_token_id": at("<|image_pad|>"), "video_token_id": at("<|video_pad|>")}
    ids |= {"vision_start_token_id": at("<|vision_start|>"), "vision_end_token_id": at("<|vision_end|>"), "tie_word_embeddings": False}
    text = {**text, "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **ids)
    bounds = {"size": {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 64}}
    patches = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    return Checkpoint(
        finished(getattr(transformers, f"{name}ForConditionalGeneration")(config), tokens), tokens,
        pillow("qwen2_vl", "Qwen2VLImageProcessor")(**bounds, **patches), processor, CHATML, QWEN_MARKS,
        video={"video_processor_type": video, "size": {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 64 * 8}, **patches},
    )  # fmt: skip


def qwen2_5_vl() -> Checkpoint:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    text = {**TEXT, "rope_parameters": MROPE}
    del text["tie_word_embeddings"]
    return _qwen("Qwen2_5_VL", "Qwen2_5_VLProcessor", vision, text, "Qwen2VLVideoProcessor")


def qwen3_vl() -> Checkpoint:
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4, "out_hidden_size": HIDDEN}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    text = {**HEADED, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    del text["tie_word_embeddings"]
    return _qwen("Qwen3VL", "Qwen3VLProcessor", vision, text, "Qwen3VLVideoProcessor")


def internvl() -> Checkpoint:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

    roles = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokens = tokenizer("<|im_start|>", "<|im_end|>", **roles)
    vision = {**TOWER, "image_size": [24, 24], "patch_size": [4, 4]}
    text = Qwen2Config(**TEXT, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id)
    image = tokens.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=image, image_seq_length=9, tie_word_embeddings=False)
    square = {"height": 24, "width": 24}
    return Checkpoint(
        finished(InternVLForConditionalGeneration(config), tokens), tokens,
        pillow("got_ocr2", "GotOcr2ImageProcessor")(size=square, crop_to_patches=True, min_patches=1, max_patches=6),
        "InternVLProcessor", CHATML, ("<IMG_CONTEXT>\n", "<video>\n"), {"image_seq_length": 9},
        video={"video_processor_type": "InternVLVideoProcessor", "size": square},
    )  # fmt: skip


def onevision() -> Checkpoint:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    tokens = tokenizer("<|im_start|>", "<|im_end|>", image_token="<image>", video_token="<video>")
    at, pinpoints = tokens.convert_tokens_to_ids, [[24 * row, 24 * column] for row in (1, 2, 3) for column in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id),
        image_token_index=at("<image>"), video_token_index=at("<video>"), image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full", vision_feature_layer=-1, vision_aspect_ratio="anyres_max_9", tie_word_embeddings=False,
    )  # fmt: skip
    square = {"height": 24, "width": 24}
    return Checkpoint(
        finished(LlavaOnevisionForConditionalGeneration(config), tokens), tokens,
        pillow("llava_onevision", "LlavaOnevisionImageProcessor")(size=square, image_grid_pinpoints=pinpoints),
        "LlavaOnevisionProcessor", CHATML, ("<image>\n", "<video>\n"),
        {"num_image_tokens": 36, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        video={"video_processor_type": "LlavaOnevisionVideoProcessor", "size": square},
    )  # fmt: skip


def _idefics(kind: str, folder: str, video: dict[str, Any] | None) -> Checkpoint:
    from transformers import LlamaConfig

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = tokenizer("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>", *grid)
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**TOWER, "image_size": 24},
        text_config=LlamaConfig(**HEADED, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id),
        image_token_id=tokens.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    return Checkpoint(
        finished(getattr(transformers, f"{kind}ForConditionalGeneration")(config), tokens), tokens,
        pillow(folder, f"{kind}ImageProcessor")(size={"longest_edge": 48}, max_image_size={"longest_edge": 24}),
        f"{kind}Processor", CHATML, ("<image>", "<video>"), {"image_seq_len": 9}, video=video,
    )  # fmt: skip


def smolvlm() -> Checkpoint:
    video = {"video_processor_type": "SmolVLMVideoProcessor", "size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}
    return _idefics("SmolVLM", "smolvlm", video | {"video_sampling": {"max_frames": 8, "fps": 1, "video_size": {"longest_edge": 24}}})


def idefics3() -> Checkpoint:
    return _idefics("Idefics3", "idefics3", None)


def gemma3() -> Checkpoint:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    roles = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer("<start_of_turn>", bos="<bos>", eos="<end_of_turn>", **roles)
    at, kinds = tokens.convert_tokens_to_ids, ["sliding_attention", "full_attention"] * (LAYERS // 2)
    sizes = {**HEADED, "vocab_size": len(tokens), "pad_token_id": tokens.pad_token_id}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**sizes, sliding_window=512, layer_types=kinds, query_pre_attn_scalar=16),
        vision_config=SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False),
        mm_tokens_per_image=9, image_token_index=at("<image_soft_token>"), boi_token_index=at("<start_of_image>"),
        eoi_token_index=at("<end_of_image>"), tie_word_embeddings=False,
    )  # fmt: skip
    return Checkpoint(
        finished(Gemma3ForConditionalGeneration(config), tokens), tokens,
        pillow("gemma3", "Gemma3ImageProcessor")(size={"height": 24, "width": 24}, image_seq_length=9),
        "Gemma3Processor", TURNS, ("<start_of_image>", ""), {"image_seq_length": 9},
    )  # fmt: skip


def llava_siglip() -> Checkpoint:
    """A LLaVA by its model_type, with a tower that the LLaVA families do not know."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    tokens = tokenizer("<|im_start|>", "<|im_end|>", image_token="<image>")
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id),
        image_token_index=tokens.convert_tokens_to_ids("<image>"), image_seq_length=36, vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )  # fmt: skip
    return Checkpoint(
        finished(LlavaForConditionalGeneration(config), tokens), tokens,
        pillow("siglip", "SiglipImageProcessor")(size={"height": 24, "width": 24}),
        "LlavaProcessor", CHATML, ("<image>\n", ""), {"patch_size": 4, "vision_feature_select_strategy": "full"},
    )  # fmt: skip


def aya_vision() -> Checkpoint:
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, SiglipVisionConfig

    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    tokens = tokenizer("<start_of_turn>", "<image>", "<|IMG_PATCH|>", *marks, bos="<bos>", eos="<end_of_turn>")
    kinds, sizes = ["sliding_attention", "full_attention"] * (LAYERS // 2), {**TEXT, "vocab_size": len(tokens)}
    text = Cohere2Config(**sizes, pad_token_id=tokens.pad_token_id, layer_types=kinds, sliding_window=512, logit_scale=1.0)
    image = tokens.convert_tokens_to_ids("<|IMG_PATCH|>")
    vision = SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False)
    config = AyaVisionConfig(vision_config=vision, text_config=text, image_token_index=image, tie_word_embeddings=False)
    square = {"height": 24, "width": 24}
    return Checkpoint(
        finished(AyaVisionForConditionalGeneration(config), tokens), tokens,
        pillow("got_ocr2", "GotOcr2ImageProcessor")(size=square, crop_to_patches=True, min_patches=1, max_patches=6),
        "AyaVisionProcessor", TURNS, ("<image>", ""), {"patch_size": 8, "img_size": 24, "downsample_factor": 1},
    )  # fmt: skip


def pixtral() -> Checkpoint:
    """Pixtral 12B's layout: a LLaVA by its model_type. Its processor is there only with torchvision."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig

    tokens = tokenizer("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", bos="<s>", eos="</s>")
    vision = PixtralVisionConfig(**{**TOWER, "image_size": 64}, head_dim=16)
    config = LlavaConfig(
        vision_config=vision,
        text_config=MistralConfig(**HEADED, vocab_size=len(tokens), pad_token_id=tokens.pad_token_id, sliding_window=None),
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1, vision_feature_select_strategy="full",
        image_seq_length=1, tie_word_embeddings=False,
    )  # fmt: skip
    return Checkpoint(
        finished(LlavaForConditionalGeneration(config), tokens), tokens,
        pillow("pixtral", "PixtralImageProcessor")(size={"longest_edge": 32}, patch_size=4),
        "PixtralProcessor", INST, ("[IMG]", ""), {"patch_size": 4},
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], Checkpoint]] = {
    "Qwen2_5_VL": qwen2_5_vl,
    "Qwen3VL": qwen3_vl,
    "InternVL": internvl,
    "LlavaOnevision": onevision,
    "SmolVLM": smolvlm,
    "Idefics3": idefics3,
    "Gemma3": gemma3,
    "LlavaSiglip": llava_siglip,
    "AyaVision": aya_vision,
    "Pixtral": pixtral,
}


def saved(name: str, folder: Path) -> Path:
    """A checkpoint of that class in a folder."""
    return BUILDERS[name]().save(folder)


# ---- by transformers' own hands -------------------------------------------------------------------------------------


class Absent:
    """Stands for the video processor where torchvision is not installed."""

    num_frames = fps = valid_kwargs = None
    model_input_names: tuple[str, ...] = ()


def reference(path: Path) -> Any:
    """The checkpoint's processor, put together of its parts without our code."""
    said = json.loads((path / "processor_config.json").read_text())
    kind = getattr(transformers, said.pop("processor_class"))
    image = json.loads((path / "preprocessor_config.json").read_text())["image_processor_type"].removesuffix("Pil").removesuffix("Fast")
    image = getattr(transformers, f"{image}Pil", None) or getattr(transformers, image)
    parts = {
        "image_processor": image.from_pretrained(path),
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(path),
        "chat_template": (path / "chat_template.jinja").read_text(),
    }
    if "video_processor" in kind.get_attributes():
        whole = transformers.utils.is_torchvision_available()
        parts["video_processor"] = transformers.AutoVideoProcessor.from_pretrained(path) if whole else Absent()
    with mock.patch.object(transformers.ProcessorMixin, "check_argument_for_proper_class"):
        return kind(**parts, **said)


def expected_inputs(path: Path, model: Any, *content: dict[str, Any]) -> dict[str, Any]:
    """What transformers' processor makes of one user's message."""
    messages = [{"role": "user", "content": list(content)}]
    options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    return known(model, reference(path).apply_chat_template(messages, **options))


def known(model: Any, made: Any) -> dict[str, Any]:
    """What a model's forward takes of what a processor made."""
    names = {**inspect.signature(type(model).forward).parameters, **inspect.signature(type(model.base_model).forward).parameters}
    return {name: value for name, value in made.items() if name in names}


def for_module(name: str, factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint for the tests of a module; they are skipped, by name, where this version lacks something."""
    if why := missing(name):
        pytest.skip(why)
    return saved(name, factory.mktemp(name) / "checkpoint")


def missing(name: str) -> str:
    """Why a checkpoint's processor cannot be made here; "" if it can."""
    if name == "SmolVLM":
        try:
            import transformers.models.smolvlm.processing_smolvlm as smolvlm
        except ImportError as error:
            return f"transformers {transformers.__version__}: {error}"
        smolvlm.num2words = smolvlm.num2words or str  # for the number of frames of a video, in words
    try:
        checkpoint = BUILDERS[name]()
        kind = getattr(transformers, checkpoint.processor)
    except (ImportError, AttributeError) as error:
        return f"transformers {transformers.__version__}: {error}"
    if any(getattr(one, "is_dummy", False) for one in (kind, getattr(transformers, type(checkpoint.image_processor).__name__, None))):
        return f"{checkpoint.processor} of transformers {transformers.__version__} needs torchvision"
    return ""
