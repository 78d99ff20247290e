"""Which decoder layers can be cut between their attention and their MLP: read from what they compute.

Most decoder layers are norm → attention → add → norm → MLP → add. In these a deleted token need not pay for the output projection,
the second norm and the MLP (layer.py). Whether a layer is one is found by running the forward of its class on symbols, which
can be added and nothing else: whatever a release or a model does besides (a factor on the residual, a third norm, a dropout, a mixture of
experts that wants more arguments) makes it a layer of another shape, and it is cut at its exit.

Left out: shapes with more norms, as Gemma's, which could be cut inside as well.

    pytest tests/decoder/test_block.py
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from .upstream import STATE_KEY, forward_name, parameters


@dataclass(frozen=True)
class Block:
    """A layer whose forward is norm → attention → add → norm → MLP → add, by the names of its parts.

    in_tuple: Whether it returns its hidden states in a tuple of one.
    """

    first_norm: str
    attention: str
    second_norm: str
    mlp: str
    in_tuple: bool


class _Symbol:
    """What stands for a tensor while a layer's forward is read: a note of how it was made. It can be added, nothing else."""

    __match_args__ = ("made",)

    def __init__(self, *made: Any) -> None:
        self.made = made

    def __add__(self, other: Any) -> _Symbol:
        return _Symbol("+", self, other)


class _Part:
    """What stands for a part of the layer, and says that it is of that part's class.

    Called with keywords it is taken for an attention, which returns a pair.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._kind = name, type(module)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance asks, by which layers tell an MLP from a mixture of experts
        return self._kind

    def __call__(self, *args: Any, hidden_states: Any = None, **kwargs: Any) -> Any:
        (hidden,) = args or (hidden_states,)
        return (_Symbol(self._name, hidden, kwargs), None) if kwargs else _Symbol(self._name, hidden)


class _StandIn:
    """What stands for the layer: its own attributes, but that its parts make notes."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._layer, name)
        return _Part(name, value) if isinstance(value, nn.Module) else value


def read_block(layer: nn.Module) -> Block | None:
    """The parts of a layer of the shape norm → attention → add → norm → MLP → add; None for a layer of any other shape.

    The forward of the layer's class runs on symbols, so the answer is about what this version does with this instance: a factor
    on the residual, a third norm, a dropout make it another shape. Attention has to get all that the layer gets, but for switches,
    under the same names.
    """
    own = layer.__dict__.get(forward_name(layer))
    if own is not None and getattr(own, "__func__", None) is not type(layer).forward:  # somebody's own
        return None
    passed: dict[str, Any] = {STATE_KEY: object()}
    for name, one in list(parameters(layer).items())[2:]:  # after self and the hidden states
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and "bool" not in str(one.annotation):
            passed[name] = object()
    hidden = _Symbol("hidden")
    try:
        result = inspect.unwrap(type(layer).forward)(_StandIn(layer), hidden, **passed)
    except Exception:  # it does more with its tensors than add them: another shape
        return None
    in_tuple = isinstance(result, tuple) and len(result) == 1
    for middle, second in _sides(result[0] if in_tuple else result):
        for start, first in _sides(middle):
            match first, second:
                case (_Symbol((attention, _Symbol((first_norm, normed)), handed)), _Symbol((mlp, _Symbol((second_norm, between))))):
                    as_given = all(handed.get(name) is value for name, value in passed.items())
                    if start is normed is hidden and between is middle and as_given:
                        return Block(first_norm, attention, second_norm, mlp, in_tuple)
    return None


def _sides(total: Any) -> list[tuple[Any, Any]]:
    """Both ways round of an addition; none of anything else."""
    match total:
        case _Symbol(("+", left, right)):
            return [(left, right), (right, left)]
    return []
