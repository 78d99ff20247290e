"""Which decoder layers can be cut inside, between their attention and what follows it, and how that is done with any of them.

Layers differ in what they do around their attention: two norms or four, a factor on the residual, a dropout, an MLP or a mixture of
experts, after the attention or beside it, inputs per layer. None of that is known here. A layer's own forward runs in two halves:

    first     on all tokens, until its attention has returned, and no further
    second    on the survivors alone, from its beginning, with what its attention made of them in the attention's place

What comes before the attention (a norm) is left out of the second half where nothing but the attention reads it, and is
made again where something does (an MLP beside the attention reads the same norm).

That is right if everything but the attention does with each token the same, whatever others there are. `read_block` tries it out
before anything runs: a few random rows, with something random in the attention's place, go through the layer whole and in halves,
and the survivors must come out the same; and equal rows must come out equal, which they do not where experts have a
capacity. One layer is tried for all that are like it. Parts are tried without their hooks, so nobody who listens to one hears of it.

Layers that fail are cut at their exit. Left out: whether an attention whose last step is not a part of it could be cut earlier.

    pytest tests/decoder/test_block.py
"""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .upstream import attention_of, forward_name, parameters, place_of

ROWS, KEPT = 16, [1, 2, 5, 9, 10, 12]  # tokens of a trial, and those that survive: not the first, not the last, not evenly spaced
TRIALS = 3  # a router between two equal experts may choose another one when the number of rows changes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """A layer that can be cut inside.

    attention: The name of the part that is its attention.
    skipped: Parts that are called before it, and whose results nothing else reads.
    per_token: Arguments with an entry per token that are read beside the attention.
    """

    attention: str
    skipped: tuple[str, ...] = ()
    per_token: tuple[str, ...] = ()

    def first_half(self, layer: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """What the layer's attention returns for hidden states [B, m, E]."""
        attention = getattr(layer, self.attention)

        def until_here(*args: Any, **handed: Any) -> Any:
            raise _Attended(attention(*args, **handed))

        try:
            run_with(layer, {self.attention: until_here}, hidden, kwargs)
        except _Attended as here:
            return here.output
        raise UnsupportedError(f"{type(layer).__name__} passed its attention by, so nothing was pruned; see docs/new_family.md")

    def second_half(self, layer: nn.Module, hidden: Tensor, attended: Any, kwargs: Mapping[str, Any]) -> Any:
        """What the layer returns for hidden states [B, m', E], if this is what its attention returned."""
        nothing: dict[str, Callable[..., Any]] = dict.fromkeys(self.skipped, lambda *_, **__: None)
        return run_with(layer, {**nothing, self.attention: lambda *_, **__: attended}, hidden, kwargs)


class _Attended(BaseException):
    """Ends a layer's forward when its attention has returned. No error: no layer's own `except` may stop it."""

    def __init__(self, output: Any) -> None:
        self.output = output


def run_with(layer: nn.Module, parts: Mapping[str, Callable[..., Any]], hidden: Tensor, kwargs: Mapping[str, Any]) -> Any:
    """The forward of a layer's class with others in the place of some of its parts. The layer itself stays as it is."""
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, _modules={**layer._modules, **parts})
    return type(layer).forward(twin, hidden, **kwargs)


def last_step(attention: nn.Module) -> nn.Module | None:
    """The part whose result an attention's forward returns as it is: its output projection. None if none is seen in its source."""
    name = _last_called(type(attention).forward) if _is_its_own(attention) else None
    part = getattr(attention, name, None) if name else None
    return part if isinstance(part, nn.Module) else None


@cache
def _last_called(forward: Callable[..., Any]) -> str | None:
    """x in a forward that ends with `y = self.x(…)` and `return y, …`, or with `return self.x(…), …`."""
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward)))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    match getattr(function, "body", [])[-2:]:
        case [*_, ast.Return(ast.Tuple([ast.Call(ast.Attribute(ast.Name("self"), name)), *_]))]:
            return name
        case [
            ast.Assign([ast.Name(result)], ast.Call(ast.Attribute(ast.Name("self"), name))),
            ast.Return(ast.Tuple([ast.Name(returned), *_])),
        ] if result == returned:
            return name
    return None


@cache
def say_cut_at_exit(kind: str) -> None:
    """Logs one line, once for each class of layers."""
    log.warning("%s cannot be cut inside: tokens that it deletes pay for its MLP once more (which tokens they are is the same)", kind)


def read_block(layer: nn.Module, known: dict[Hashable, Block | None] | None = None) -> Block | None:
    """How a layer is cut inside; None if it has to be cut at its exit.

    Args:
        known: What was found of other layers of the same model; this one's is added.
    """
    attention = attention_of(layer)
    name = next((name for name, part in layer.named_children() if part is attention), None)
    if attention is None or name is None or not _is_its_own(layer):
        return None
    known = {} if known is None else known
    key = _likeness(layer, attention)
    if key not in known:
        try:
            known[key] = _Trial(layer, name).block()
        except Exception as error:  # the trial hands over what no layer can work with but by its attention
            log.debug("%s is cut at its exit: %s", type(layer).__name__, error)
            known[key] = None
    return known[key]


def _is_its_own(module: nn.Module) -> bool:
    """Whether a module's forward is that of its class, as accelerate's hooks and recorders of hidden states leave it."""
    own = module.__dict__.get(forward_name(module))
    return own is None or getattr(own, "__func__", None) is type(module).forward


def _likeness(layer: nn.Module, attention: nn.Module) -> Hashable:
    """What layers that may share one trial have in common: classes and settings of their parts, but for the number of the layer."""
    number, inner = getattr(attention, "layer_idx", None), set(attention.modules())
    return tuple(
        (name, type(part), *(
            (setting, value) for setting, value in sorted(part.__dict__.items())
            if isinstance(value, int | float | str) and not (type(value) is int and value == number)
        ))
        for name, part in layer.named_modules() if part not in inner
    )  # fmt: skip


class _PerToken:
    """Stands for an argument in a trial. Attention may be handed it; elsewhere it may be a factor or a summand with an entry per token."""

    def __init__(self, rows: Callable[[int], Tensor]) -> None:
        self._rows = rows
        self.values: Tensor | None = None

    def __rmul__(self, other: Tensor) -> Tensor:
        return other * self._beside(other)

    def __radd__(self, other: Tensor) -> Tensor:
        return other + self._beside(other)

    def _beside(self, other: Tensor) -> Tensor:
        if self.values is None:
            self.values = self._rows(other.shape[-1])
        return self.values if other.shape[1] == ROWS else self.values[:, KEPT]


class _Trial:
    """A layer, without hooks and out of training, on random rows."""

    def __init__(self, layer: nn.Module, attention: str) -> None:
        gathered = any(not weight.numel() for weight in layer.parameters())  # ZeRO-3's hooks bring the weights
        self.layer, self.attention = _copy(layer, but=attention, hooks=gathered), attention
        config: Any = getattr(layer, attention).config
        self._width = int(config.hidden_size)
        self._device, self._dtype = place_of(layer)
        named = list(parameters(layer).items())[2:]  # after self and the hidden states
        self._arguments = [
            name for name, one in named
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and "bool" not in str(one.annotation)
        ]  # fmt: skip

    def block(self) -> Block | None:
        """The first way to cut the layer that makes no difference."""
        with torch.no_grad():
            for seed in range(TRIALS):
                if (found := self._with_rows(seed)) is not None:
                    return found if self._equal_rows_stay_equal() else None
        return None

    def _with_rows(self, seed: int) -> Block | None:
        draw = self._rows(seed)
        hidden, attended = draw(self._width), draw(self._width)
        told = {name: _PerToken(draw) for name in self._arguments}
        whole, calls = self._whole(hidden, attended, told)
        read = tuple(name for name, one in told.items() if one.values is not None)
        before = calls[: calls.index(self.attention)]
        matrices = any(weight.ndim > 1 for name in before for weight in self.layer.get_submodule(name).parameters())
        skipped = tuple(dict.fromkeys(name for name in before if calls.count(name) == before.count(name)))
        for block in (Block(self.attention, skipped, read), *([] if matrices else [Block(self.attention, (), read)])):
            try:
                halves = block.second_half(self.layer, hidden[:, KEPT], (attended[:, KEPT], None), told)
            except Exception as error:  # perhaps somebody reads what was skipped
                log.debug("%s without %s: %s", type(self.layer).__name__, block.skipped, error)
                continue
            if _same(_first(halves), whole[:, KEPT]):
                return block
        return None

    def _whole(self, hidden: Tensor, attended: Tensor, told: dict[str, _PerToken]) -> tuple[Tensor, list[str]]:
        """What the layer makes of hidden states, and the parts that it calls, in order."""
        calls: list[str] = []
        given = hidden.clone()

        def attend(*args: Any, **kwargs: Any) -> Any:
            calls.append(self.attention)
            if not _same(given, hidden):
                raise UnsupportedError("it changes its input in place, which would happen in both halves")
            return attended.clone(), None

        noting = [
            part.register_forward_pre_hook(lambda _, __, name=name: calls.append(name))
            for name, part in self.layer.named_children() if name != self.attention
        ]  # fmt: skip
        output = _first(run_with(self.layer, {self.attention: attend}, given, told))
        for one in noting:
            one.remove()
        if calls.count(self.attention) != 1 or output.shape != hidden.shape:
            raise UnsupportedError("its attention is not called once, or it returns something of another shape")
        return output, calls

    def _equal_rows_stay_equal(self) -> bool:
        """Whether the place of a token does not matter, nor how many there are like it."""
        draw = self._rows(0)

        def repeated(width: int) -> Tensor:
            return draw(width)[:1, :1].expand(2, ROWS, -1).clone()

        told = {name: _PerToken(repeated) for name in self._arguments}
        output, _ = self._whole(repeated(self._width), repeated(self._width), told)
        return _same(output, output[:1, :1].expand_as(output))

    def _rows(self, seed: int) -> Callable[[int], Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def draw(width: int) -> Tensor:
            """Small beside what a normed MLP adds to them, so that what happens there shows."""
            return torch.randn(2, ROWS, width, generator=generator).mul(0.1).to(self._device, self._dtype)

        return draw


def _copy(module: nn.Module, but: str = "", *, hooks: bool) -> nn.Module:
    """A module with the same weights, and so are its parts but for one; with or without the hooks, and out of training."""
    copy, listening = object.__new__(type(module)), {name: value for name, value in module.__dict__.items() if name.endswith("_hooks")}
    copy.__dict__.update(module.__dict__, training=False, _compiled_call_impl=None)
    copy.__dict__.update({name: type(value)(value if hooks else ()) for name, value in listening.items()})
    parts = {name: part if part is None or name == but else _copy(part, hooks=hooks) for name, part in module._modules.items()}
    copy.__dict__.update(_modules=parts)
    return copy


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by no more than what the order of a sum makes; without values (on meta) their shapes say so."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.is_meta:
        return True
    return bool((one - other).abs().max() <= torch.finfo(one.dtype).eps ** 0.75 * other.abs().max())
