"""What a deletion needs of vLLM's decoder, found in the model that was loaded: layers, their attention, the projection behind it.

A layer is cut between its attention and its output projection: rows of the projection's input go, and rows of whatever else the layer
still uses, which is what its later parts are handed. That this gives what the whole layer gives is tried once, on random rows, when a
model is loaded; a layer for which it does not is refused by name.

    pytest tests/vllm/test_vllm_answers.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError

ROWS, KEPT = 6, (0, 2, 3, 5)


@dataclass(frozen=True)
class Layer:
    """A decoder layer. block: the part that holds its attention; attention: vLLM's `Attention`; output: the projection behind it."""

    layer: nn.Module
    block: nn.Module
    attention: Any
    output: nn.Module

    @property
    def later(self) -> list[nn.Module]:
        """The parts of the layer beside its attention."""
        return [part for part in self.layer.children() if part is not self.block]


def find_layers(model: nn.Module) -> tuple[nn.Module, list[Layer]]:
    """The decoder of a model, which calls its layers one after the other, and these.

    Raises:
        UnsupportedError: where they are not what pruning can cut, by name.
    """
    from vllm.model_executor.layers.attention import Attention

    name = type(model).__name__
    own: Any = getattr(model, "get_language_model", None)
    language: nn.Module = model if own is None else own()
    lists = [part for part in language.modules() if isinstance(part, nn.ModuleList) and len(part)]
    stacks = [stack for stack in lists if all(any(isinstance(one, Attention) for one in layer.modules()) for layer in stack)]
    if len(stacks) != 1:
        raise UnsupportedError(f"{name} has {len(stacks)} stacks of decoder layers with attention, not one: it cannot be pruned in vLLM")
    decoder = next(part for part in language.modules() if any(child is stacks[0] for child in part.children()))
    return decoder, [_read_layer(layer, number, name) for number, layer in enumerate(stacks[0])]


def _read_layer(layer: nn.Module, number: int, model: str) -> Layer:
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import RowParallelLinear

    def refuse(why: str) -> UnsupportedError:
        return UnsupportedError(f"layer {number} of {model} ({type(layer).__name__}) {why}: it cannot be pruned in vLLM")

    found = [(block, part) for block in layer.children() for part in block.modules() if isinstance(part, Attention)]
    if len(found) != 1:
        raise refuse(f"has {len(found)} attentions")
    block, attention = found[0]
    outputs = [part for part in block.modules() if isinstance(part, RowParallelLinear)]
    if len(outputs) != 1:
        raise refuse(f"has {len(outputs)} projections behind its attention")
    for field, what in (
        ("sliding_window", "sees a window only"),
        ("kv_sharing_target_layer_name", "reads another layer's keys"),
        ("has_sink", "has attention sinks, which scores do not know"),
    ):
        if getattr(attention, field, None):
            raise refuse(what)
    implementation = attention.impl
    if getattr(implementation, "logits_soft_cap", None) or getattr(implementation, "alibi_slopes", None) is not None:
        raise refuse("has a soft cap or slopes in its attention, which scores do not know")
    return Layer(layer, block, attention, outputs[0])


@contextmanager
def hooks() -> Iterator[Callable[[Any], None]]:
    """Collects handles of hooks, and takes them all back at the end."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def narrow_arguments(length: int, rows: Callable[[], Tensor | None]) -> Callable[..., Any]:
    """A hook that takes `rows` of every argument that has `length` of them; nothing while `rows()` is None."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = rows()
        if index is None:
            return None
        return tuple(_taken(arg, length, index) for arg in args), {name: _taken(arg, length, index) for name, arg in kwargs.items()}

    return hook


def _taken(value: Any, length: int, index: Tensor) -> Any:
    """Rows of a tensor with an entry per token; positions in several directions have it last."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.shape[0] == length:
        return value.index_select(0, index)
    if value.ndim == 2 and value.shape[1] == length and not value.is_floating_point():
        return value.index_select(1, index)
    return value


class CarriedTensors:
    """vLLM's `IntermediateTensors`, narrowed whenever one is read: what a model adds to its tokens between layers (deepstack)."""

    def __init__(self, tensors: Mapping[str, Tensor], rows: Callable[[], Tensor | None]) -> None:
        self._tensors, self._rows = tensors, rows

    def __getitem__(self, name: str) -> Tensor:
        index = self._rows()
        return self._tensors[name] if index is None else self._tensors[name].index_select(0, index)

    def __len__(self) -> int:
        return len(self._tensors)


class _Given(nn.Module):
    """Stands in for a layer's attention in a trial."""

    def __init__(self, attended: Tensor) -> None:
        super().__init__()
        self.attended = attended

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attended.clone()


@torch.no_grad()
def check_cut(found: Layer, number: int, width: int) -> None:
    """Tries the cut on random rows.

    Raises:
        UnsupportedError: if a layer that loses rows behind its attention gives something else than the whole layer.
    """
    weight = next(found.output.parameters())
    dtype = next((one.dtype for one in found.layer.parameters() if one.is_floating_point()), torch.float32)
    draw = torch.Generator().manual_seed(number)

    def rows() -> Tensor:
        return torch.randn(ROWS, width, generator=draw).to(weight.device, dtype)

    hidden, residual, attended = rows(), rows(), rows()
    positions, kept = torch.arange(ROWS, device=weight.device), torch.tensor(KEPT, device=weight.device)
    name = next(name for name, part in found.layer.named_children() if part is found.block)
    own = found.layer._modules[name]
    reason = None
    try:
        found.layer._modules[name] = _Given(attended)
        whole = found.layer(positions, hidden.clone(), residual.clone())
        found.layer._modules[name] = _Given(attended[kept])
        after = False

        def behind(*_: Any) -> None:
            nonlocal after
            after = True

        with hooks() as keep:
            keep(found.layer._modules[name].register_forward_hook(behind))  # type: ignore[union-attr]
            for part in found.later:
                keep(part.register_forward_pre_hook(narrow_arguments(ROWS, lambda: kept if after else None), with_kwargs=True))
            halves = found.layer(positions, hidden.clone(), residual.clone())
        if not isinstance(whole, tuple) or len(whole) != 2 or not all(map(_same, halves, [one[kept] for one in whole])):
            reason = "gives something else"
    except Exception as error:  # whatever a layer raises that is not of this shape
        reason = f"fails ({type(error).__name__}: {error})"
    finally:
        found.layer._modules[name] = own
    if reason:
        raise UnsupportedError(
            f"layer {number} ({type(found.layer).__name__}) {reason} when it loses tokens behind its attention: it cannot be pruned in vLLM"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= torch.finfo(one.dtype).eps ** 0.75 * other.abs().max())
