"""Models of random weights: time does not depend on what the weights are.

`twin` makes a second model of the same weights, so that one can be pruned, compiled or switched to another attention for the whole of
a run while the other stays as it is, and both take turns without attaching and detaching in between.

Weights are made in the precision asked for (a 7B model in float32 first would need twice the memory). On a CPU a model that does not
fit is refused before it is made.

    pytest tests/bench/test_bench.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..cost import CostModel
from ..decoder.upstream import cache_in
from ..errors import FitPruneError, first_line
from ..families.placement import dtype_named, where
from .clock import proc_bytes
from .shapes import Shape, Tower

VOCAB = 8  # where a shape does not say: embeddings are given, and one token goes through the output layer


@dataclass
class Workload:
    """What is timed: a decoder of random weights and a prompt of random embeddings.

    embeds: [B, S, E]. visual_mask: [B, S] bool on the CPU, True at visual tokens.
    """

    shape: Shape
    model: Any
    embeds: Tensor
    visual_mask: Tensor
    device: torch.device

    @classmethod
    def of(cls, shape: Shape, *, batch: int, dtype: str, device: str | None, attn: str) -> Workload:
        """Makes decoder and prompt; FitPruneError for a device, precision or attention that cannot be used, or too little memory."""
        place, precision = usable_device(device), dtype_named(dtype)
        assert precision is not None  # "auto" is not a choice here
        torch.manual_seed(0)
        check_memory(shape.cost, batch, shape.length, precision, place)
        model = random_decoder(shape.cost, precision, place, attn)
        return cls(shape, model, *prompt(shape, batch, precision, place), place)

    @property
    def batch(self) -> int:
        return self.embeds.shape[0]

    def prefill(self, model: Any) -> Any:
        """Runs the prompt through a model, up to the last token's logits as `generate` does, and returns its cache."""
        return cache_in(model(inputs_embeds=self.embeds, use_cache=True, logits_to_keep=1))

    def resized(self, visual: int) -> Workload:
        """The same model with a prompt of another number of visual tokens."""
        shape = self.shape.altered(visual=visual)
        embeds, mask = prompt(shape, self.batch, self.embeds.dtype, self.device)
        return Workload(shape, self.model, embeds, mask, self.device)


def prompt(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random embeddings [B, S, E] and the mask of their visual tokens [B, S]."""
    embeds = torch.randn(batch, shape.length, shape.cost.hidden, device=device, dtype=dtype)
    mask = torch.zeros(batch, shape.length, dtype=torch.bool)
    mask[:, shape.before : shape.before + shape.visual] = True
    return embeds, mask


def usable_device(name: str | None) -> torch.device:
    """The device of that name, by default the first GPU, else the CPU; FitPruneError if it cannot be used here."""
    name = where(name, None, None)[0]
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FitPruneError(f"cannot use device {name!r}: {first_line(error)}") from None
    return device


def random_decoder(cost: CostModel, dtype: torch.dtype, device: torch.device, attn: str) -> Any:
    """A Llama language model of these sizes, in evaluation mode; FitPruneError for an attention implementation that is not there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=cost.hidden, intermediate_size=cost.intermediate, num_hidden_layers=cost.layers,
        vocab_size=cost.vocab or VOCAB, tie_word_embeddings=True,
        num_attention_heads=cost.heads, num_key_value_heads=cost.kv_heads, head_dim=cost.head_dim, attn_implementation=attn,
    )  # fmt: skip
    try:
        return _made(lambda: LlamaForCausalLM(config), dtype, device)
    except (ImportError, ValueError) as error:
        raise FitPruneError(f"cannot use --attn {attn}: {first_line(error)}") from None


def random_tower(tower: Tower, hidden: int, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, int]:
    """A family's model without decoder layers: vision tower and projector to `hidden`; and its image's side in pixels."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaModel

    from ..llava_hr.configuration import VIT_L_336, LlavaHrConfig
    from ..llava_hr.modeling import LlavaHrModel

    none = LlamaConfig(hidden_size=hidden, intermediate_size=1, num_attention_heads=1, num_hidden_layers=0, vocab_size=VOCAB)
    if tower.two:
        high = LlavaHrConfig(text_config=none)
        return _made(lambda: LlavaHrModel(high), dtype, device), high.vision_config.image_size
    widths = ("hidden_size", "intermediate_size", "num_attention_heads")
    clip = CLIPVisionConfig(**{k: v // tower.narrower if k in widths else v for k, v in VIT_L_336.items()})
    low = LlavaConfig(vision_config=clip, text_config=none)
    return _made(lambda: LlavaModel(low), dtype, device), clip.image_size


def twin(model: nn.Module) -> Any:
    """A copy of a model's modules on the same weights; attaching to one leaves the other alone."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _made(make: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return make().eval()
    finally:
        torch.set_default_dtype(before)


# Memory.


def check_memory(cost: CostModel, batch: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises a FitPruneError where weights and one cache need more than a CPU's free memory; a GPU's allocator raises by itself."""
    queries, keys = cost.heads * cost.head_dim, cost.kv_heads * cost.head_dim
    values = cost.layers * cost.hidden * (2 * (queries + keys) + 3 * cost.intermediate)
    needed = values * dtype.itemsize + batch * sum(cost.kv_bytes([0] * cost.layers, 0, length, dtype.itemsize))
    try:
        free = proc_bytes("/proc/meminfo", "MemAvailable") if device.type == "cpu" else needed
    except OSError:
        return
    if needed > free:
        raise FitPruneError(f"weights and cache take {needed / 2**30:.0f} GiB but {free / 2**30:.0f} GiB are free: {LESS}")


LESS = "try --dtype bfloat16, fewer --layers, a smaller --batch-size, or a smaller --shape"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch, on any device, or Python ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Turns running out of memory into one line that says with what, and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FitPruneError(f"out of memory with {what}: {LESS}") from None
