"""LoRA checkpoints of LLaVA: an adapter of the language model, merged into its base while that is read.

`liuhaotian/llava-v1.5-7b-lora` holds adapter_config.json and adapter_model.bin (PEFT) and, in non_lora_trainables.bin,
what was trained whole: the projector. The base is the plain language model (`lmsys/vicuna-7b-v1.5`). A layer's weight W
becomes W + scale · B A, with scale = alpha / r, computed in float32. Left out: DoRA, ranks that differ by layer, biases, and whatever
else PEFT's config may ask for: an adapter with a field that is not known here is refused, never merged by half.

    fitprune convert llava-v1.5-7b-lora /tmp/merged --model-base lmsys/vicuna-7b-v1.5
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import FitPruneError
from .source import Source
from .weights import Weights

CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED_WHOLE = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
NO_MATTER = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha",
    "lora_dropout", "use_rslora", "bias", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "runtime_config", "eva_config", "init_lora_weights",
}  # fmt: skip  # fields that say how an adapter was trained or where it goes, as its tensors' names do, or that are read below
INITIAL = (None, True, False, "gaussian", "orthogonal", "eva")  # init_lora_weights after which the base is what it was


class OtherAdapterError(FitPruneError):
    """An adapter that is more than pairs of matrices: PEFT can merge it, this module cannot."""


class Adapter:
    """Low-rank updates by the name of the weight that they change: A [r, in] and B [out, r]."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, name: str) -> None:
        """
        Raises:
            OtherAdapterError: for kinds of adapters that are not supported.
            FitPruneError: for tensors that are no pairs of A and B.
        """
        odd = [field for field, value in config.items() if value and field not in NO_MATTER]
        odd += [field for field, known in (("peft_type", ("LORA",)), ("bias", ("none", None))) if config.get(field, known[0]) not in known]
        if odd or config.get("init_lora_weights") not in INITIAL:
            field = odd[0] if odd else "init_lora_weights"
            raise OtherAdapterError(f"{name}: {CONFIG} has {field} {config[field]!r}, which is not supported: merge it with PEFT first")
        rank, alpha = config.get("r"), config.get("lora_alpha")
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise FitPruneError(f"{name}: {CONFIG} has no rank r and lora_alpha: download it again")
        self.name = name
        self.scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        self.pairs: dict[str, dict[str, Tensor]] = {}
        for key, tensor in weights.tensors():
            match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", key)
            if match is None:
                raise OtherAdapterError(f"{weights.files[key]}: {key} is not part of a LoRA adapter")
            self.pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
        if not self.pairs:
            raise FitPruneError(f"{name}: its {' or '.join(ADAPTERS)} holds no tensors, so it would change nothing: save the adapter again")
        if lonely := [key for key, pair in self.pairs.items() if len(pair) != 2]:
            raise FitPruneError(f"{name}: the adapter of {lonely[0]} has only one of its two matrices")
        self.unused = set(self.pairs)

    def __call__(self, key: str, weight: Tensor) -> Tensor:
        """The weight [out, in] of that (original) name with its update, if it has one.

        Raises:
            FitPruneError: if the shapes do not fit.
        """
        pair = self.pairs.get(key)
        if pair is None:
            return weight
        self.unused.discard(key)
        down, up = pair["A"], pair["B"]
        if weight.shape != (up.shape[0], down.shape[1]):
            raise FitPruneError(
                f"{self.name}: the adapter of {key} is for a weight {[up.shape[0], down.shape[1]]}, the base's is "
                f"{list(weight.shape)}: give the base that it was trained on"
            )
        change = self.scale * (up.float() @ down.float())
        return (weight.float() + change.to(weight.device)).to(weight.dtype)

    def check_used(self) -> None:
        """Raises FitPruneError if a part of the adapter met no weight of the base."""
        if self.unused:
            raise FitPruneError(
                f"{self.name}: {len(self.unused)} parts of the adapter fit no weight of the base, such as "
                f"{min(self.unused)}: give the base that it was trained on"
            )


def find_adapter(source: Source) -> Adapter | None:
    """The adapter that a checkpoint folder holds, None if it holds none.

    Raises:
        FitPruneError: as `Adapter`, and when only its config is there.
    """
    if source.get(CONFIG) is None:
        return None
    if (weights := Weights.find(source, ADAPTERS)) is None:
        raise FitPruneError(f"{source} is incomplete: {CONFIG} is there but no {' or '.join(ADAPTERS)}; download it")
    return Adapter(source.json(CONFIG), weights, source.name)


def plain_name(key: str) -> str:
    """Name of a weight in non_lora_trainables, without the prefixes that PEFT's wrapping left."""
    key = key.removeprefix("base_model.")
    return key.removeprefix("model.") if key.startswith("model.model.") else key
