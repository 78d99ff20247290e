"""An original checkpoint, put together: its transformers config, its weights, its tokenizer.

Original folders say `model_type: llava` like transformers' own but mean a flat config with the language model's sizes
and `mm_…` fields; AutoConfig reads them without an error, and wrongly. So config.json is read here, and detected by
`mm_vision_tower`. CLIP is stored in LLaVA-1.6 and LLaVA-HR checkpoints; LLaVA-1.5 names a repository to take it from.

    python -c "from fitprune.checkpoints.original import *; print(is_original({'mm_vision_tower': 'openai/clip'}))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import FitPruneError, explained, first_line
from .fill import Part, devices_by_module, empty, fill, match
from .lora import ADAPTERS, CONFIG, TRAINED_WHOLE, Adapter, find_adapter, plain_name
from .names import TOWER, rename
from .source import Source, read_json
from .tokenize import IMAGE
from .tokenizer import PADDING, original_tokenizer, rows_for
from .tower import NOT_SIZES, clip_config, find_tower, tower_part
from .weights import Weights

LANGUAGES = {"mistral": "MistralConfig", "qwen": "Qwen2Config", "llama": "LlamaConfig"}
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
EMBEDDINGS = "model.embed_tokens.weight"
PROJECTOR = ("mm_projector.safetensors", "mm_projector.bin")


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the original layout."""
    return config.get("mm_vision_tower") is not None and "text_config" not in config


def text_config(config: Mapping[str, Any], rows: int) -> Any:
    """The language model's config from the flat original one, its vocabulary grown to `rows`.

    Raises:
        FitPruneError: for a kind of language model that is not known, and for fields that make no model.
    """
    import transformers

    said = [str(config.get("model_type") or ""), *map(str, config.get("architectures") or ())]
    kinds = [kind for name in said if (kind := name.lower().replace("llava", "").strip("_"))]
    name = next((LANGUAGES[part] for part in LANGUAGES if kinds and part in kinds[0]), None if kinds else LANGUAGES["llama"])
    if name is None:
        raise FitPruneError(
            f"config.json names {said[0]} ({', '.join(said[1:])}): of the original layout Llama, Mistral and Qwen2 language "
            "models are supported"
        )
    cls = getattr(transformers, name)
    defaults = cls().to_dict()
    known = {*defaults, "rope_theta", "rope_scaling"} - NOT_SIZES
    fields = {key: value for key, value in config.items() if key in known}
    for key, value in fields.items():
        if type(defaults.get(key)) in (int, float) and type(value) not in (int, float, type(None)):
            raise FitPruneError(f"config.json has {key} {value!r} where a number is expected")
    if not fields.get("head_dim") and fields["hidden_size"] % fields["num_attention_heads"]:
        raise FitPruneError("config.json has a hidden_size that num_attention_heads does not divide")
    return cls.from_dict({**fields, "vocab_size": rows})


def check_transformers(config: Mapping[str, Any], source: Source, whole: bool = True) -> None:
    """Refuses a config.json of neither layout, of which transformers would make a default model of 7B.

    Args:
        whole: Whether its model_type is one whose config.json always has a text_config.
    Raises:
        FitPruneError: if it has no text_config, or the weights beside it are damaged, missing or of the original's names.
    """
    if whole and "text_config" not in config:
        raise FitPruneError(
            f"{source}: config.json has neither mm_vision_tower, as in the original layout, nor text_config, as in "
            "transformers': download it again"
        )
    if source.folder is not None and any(name.startswith("model.mm_projector.") for name in Weights.need(source).shapes):
        raise FitPruneError(f"{source}: the weights are of the original layout, config.json is not: download it again")


def check_whole_precision(source: Source) -> None:
    """Refuses a checkpoint whose config.json says that its weights are quantised.

    Raises:
        FitPruneError: naming it, and what to do where the field is all that is left of it.
    """
    path = source.get("config.json")
    if path is not None and read_json(path).get("quantization_config"):
        raise FitPruneError(
            f"{source}: config.json has a quantization_config: quantised checkpoints are not supported, give the weights in whole "
            "precision (if they are, take that field out)"
        )


@dataclass(frozen=True)
class Original:
    """A checkpoint in its authors' layout, as far as it is needed to write its transformers config.

    config: config.json as it is. text: transformers config of its language model, the vocabulary already grown by `<image>`.
    clip: CLIPVisionConfig of its tower. image_token: id of `<image>`. shapes: of every tensor in the files, by original name.
    """

    config: Mapping[str, Any]
    text: Any
    clip: Any
    image_token: int
    shapes: Mapping[str, tuple[int, ...]]


class OriginalLayout(Protocol):
    """What is peculiar to the original checkpoints of one family."""

    RULES: Sequence[tuple[str, str]]
    """Original name of a weight → transformers' (5.23, in memory): (regular expression, replacement), the first that
    matches at the beginning of the name. Only what is peculiar to the family: language model, projector and a plain
    CLIP tower are renamed for every family. A replacement of "" drops the weight."""

    def model_class(self) -> Any:
        """The transformers class, such as LlavaForConditionalGeneration."""

    def configure(self, original: Original) -> Any:
        """The transformers config of an original checkpoint.

        Raises:
            FitPruneError: for a variant that is not supported; names the field.
        """


@dataclass
class OriginalCheckpoint:
    """All of an original checkpoint but its weights' values.

    kind: transformers class of the model; config: its config; vocabulary: rows of the embeddings in the files;
    eos: token or tokens that end an answer.
    """

    name: str
    kind: Any
    config: Any
    tokenizer: Any
    parts: list[Part]
    vocabulary: int
    eos: int | list[int]
    dtype: torch.dtype

    def model(self, dtype: torch.dtype | None, attn: str | None, device: Any, device_map: Any = None) -> nn.Module:
        """The model with its weights.

        Args:
            dtype: Precision; None for the checkpoint's.
            device: Where it goes, unless a device_map (as transformers') says it.
        Raises:
            FitPruneError: for weights that do not fit, and a device that cannot be used.
        """
        from transformers import GenerationConfig

        dtype = dtype or self.dtype
        model: Any = empty(self.kind, self.config, attn)
        plan = match(model, self.parts, self.name, self.vocabulary)
        devices = {"": device} if device_map is None else devices_by_module(model, device_map, dtype)
        try:
            fill(model, self.parts, plan, dtype, devices)
            if device_map is None:
                model.to(device)  # buffers
            else:
                from accelerate import dispatch_model

                dispatch_model(model, devices)
        except (RuntimeError, AssertionError) as error:
            raise FitPruneError(f"cannot use device {device_map or device!r}: {first_line(error)}") from None
        for part in self.parts:
            if isinstance(part.change, Adapter):
                part.change.check_used()
        model.config.dtype = dtype
        added = set(range(self.vocabulary, model.get_input_embeddings().weight.shape[0]))
        added |= {self.config.image_token_id, *([self.tokenizer.pad_token_id] if self.tokenizer.pad_token == PADDING else [])}
        model.generation_config = GenerationConfig(
            bos_token_id=self.tokenizer.bos_token_id, eos_token_id=self.eos, pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=sorted(added),
        )  # fmt: skip
        return model.eval()


def read_original(
    source: Source, config: Mapping[str, Any], family: OriginalLayout, base: str | None = None, vision_tower: str | None = None
) -> OriginalCheckpoint:
    """Reads everything but the weights' values of a checkpoint in original layout.

    Args:
        config: Its config.json.
        base: The plain language model of a LoRA or projector-only checkpoint.
        vision_tower: Folder or hub name of CLIP, instead of the one that the config names.
    Raises:
        FitPruneError: saying which file or field is wrong or missing.
    """
    if lost := [field for field in NEEDED if not isinstance(config.get(field), int)]:
        raise FitPruneError(f"{source}: config.json lacks {', '.join(lost)}: download it again")
    named = str(config["mm_vision_tower"])
    text_source = Source(base) if base else source
    parts = _parts(source, text_source, family)
    check_whole_precision(text_source)  # not an adapter's own config.json, which says how it was trained
    for part in parts:
        part.weights.check_plain()
    shapes = {plain_name(name): shape for part in reversed(parts) for name, shape in part.weights.shapes.items()}
    tower = find_tower(source, named, vision_tower)
    if not any(name.startswith(TOWER) for name in shapes):
        parts.append(tower_part(tower or Source(named)))
    tokenizer = original_tokenizer(text_source)
    vocabulary = int(config["vocab_size"])
    with explained(f"{source}: config.json makes no model"):
        text = text_config(config, rows_for(tokenizer, vocabulary))
        clip = clip_config(tower, named)
        made = family.configure(Original(config, text, clip, tokenizer.convert_tokens_to_ids(IMAGE), shapes))
        kind = family.model_class()
        made.architectures = [kind.__name__]
        if config.get("tokenizer_model_max_length"):
            made.tokenizer_model_max_length = int(config["tokenizer_model_max_length"])
    generation = source.get("generation_config.json")
    eos = (read_json(generation).get("eos_token_id") if generation else None) or config.get("eos_token_id")
    dtype = next(part.weights.dtype(EMBEDDINGS) for part in parts if EMBEDDINGS in part.weights.shapes)
    return OriginalCheckpoint(source.name, kind, made, tokenizer, parts, vocabulary, tokenizer.eos_token_id if eos is None else eos, dtype)


def _parts(source: Source, base: Source, family: OriginalLayout) -> list[Part]:
    """The weight files of language model and projector; what a checkpoint has itself goes before its base's."""

    def known(name: str) -> str | None:
        return rename(name, family.RULES)

    own, adapter = Weights.find(source), find_adapter(source)
    if base is source:
        if adapter is not None:
            named = source.json(CONFIG).get("base_model_name_or_path") or "the model that it was trained on"
            raise FitPruneError(f"{source} is a LoRA adapter: give its base with --model-base ({CONFIG} names {named})")
        if own is None and any(source.get(file) for file in PROJECTOR):
            raise FitPruneError(f"{source} holds a projector only: give its language model with --model-base")
        return [Part(_language_model(source, own or Weights.need(source)), known)]
    if own is not None:
        raise FitPruneError(f"{source} has a language model of its own: leave out --model-base {base}")
    names = TRAINED_WHOLE if adapter is not None else PROJECTOR
    extra = Weights.find(source, names)
    if extra is None:
        raise FitPruneError(f"{source} is incomplete: {' or '.join(names)} is missing ({', '.join(ADAPTERS)} alone will not do)")
    return [Part(extra, lambda name: known(plain_name(name))), Part(_language_model(base, Weights.need(base)), known, adapter)]


def _language_model(source: Source, weights: Weights) -> Weights:
    if EMBEDDINGS not in weights.shapes:
        raise FitPruneError(f"{source} lacks {EMBEDDINGS}: its weights are no LLaVA's of the original layout")
    return weights
