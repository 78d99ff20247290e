"""A decoder layer's forward while something is attached.

A layer that deletes nothing runs its own original forward with narrowed arguments. A layer that deletes runs norm →
attention → *cut* → output projection → add → norm → MLP → add, or whatever its own forward does after its attention, so that a deleted
token pays for its layer's queries, keys, values and attention and for nothing after. The last layer carries on only the columns whose
logits were asked for (`logits_to_keep`, which `generate` sets to 1): nobody reads what its MLP makes of the others.

The cut inside the attention module is a pre-hook on its last step, the output projection: the pass at hand lies in a thread-local while
that one call runs.

Modifications against the forwards of transformers' decoder layers (5.0 to 5.24), in layers that delete and in the last: residual,
attention output and inputs per token lose the rows that do not go on. No forward is copied: block.py runs the layer's own in
two halves, and tells which layers allow it. The others are cut at their exit: the survivors are the same, what comes after
attention is not saved, and one line says so.

    pytest tests/decoder/test_attach.py
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .block import Block, last_step, say_cut_at_exit
from .state import LayerPass, PrefillState
from .upstream import STATE_KEY, argument_names, cache_in


class LayerForward:
    """Stands in for `layer.forward`. Carries the attachment, so that it can be found from the model."""

    def __init__(
        self,
        attachment: Any,
        index: int,
        layer: nn.Module,
        attention: nn.Module | None,
        block: Block | None,
        original: Callable[..., Any],
        *,
        last: bool,
        undo: ExitStack,
    ) -> None:
        """
        Args:
            attachment: What it belongs to.
            index: Number of the layer.
            layer: The layer.
            attention: The part of it that is its attention; None if it has none.
            block: How it is cut inside, if it can be.
            original: The forward that it replaces.
            last: Whether it is the decoder's last layer.
            undo: Gets what takes the hook back.
        """
        self.attachment, self.index, self.layer, self.original, self.last = attachment, index, layer, original, last
        self.block = block
        self._arguments = argument_names(layer)[1:]  # after the hidden states
        self._attending = threading.local()  # .here: whose attention runs on this thread
        projection = last_step(attention) if block is not None and attention is not None else None
        if projection is not None:
            # before other hooks: those of transformers' tensor parallelism may wrap the input
            undo.callback(projection.register_forward_pre_hook(self._before_projection, prepend=True).remove)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        state: PrefillState | None = kwargs.pop(STATE_KEY, None)
        if state is None:
            return self.original(hidden_states, *args, **kwargs)
        if hidden_states.ndim != 3:
            raise UnsupportedError(
                f"{type(self.layer).__name__} takes hidden states of shape {list(hidden_states.shape)}, not [rows, tokens, size]: "
                "such layers are not supported"
            )
        kwargs.update(zip(self._arguments, args, strict=False))
        cache = cache_in(kwargs)
        here = state.enter(self.index, hidden_states, cache, kwargs)
        deletes = state.needs_scores(self.index)
        if deletes:
            kwargs[STATE_KEY] = here
        if self.block is not None and (deletes or self._read_last(here)):
            output = self._cut_inside(self.block, hidden_states, here, deletes, cache, kwargs)
            if not isinstance(output, tuple):
                return state.leave(self.index, output)
            return state.leave(self.index, output[0]), *output[1:]
        if deletes:
            say_cut_at_exit(type(self.layer).__name__)
        output = self.original(hidden_states, **kwargs)
        here.record_cache(cache)
        if deletes:
            self._check_seen(here)
        if not isinstance(output, tuple):
            return state.leave(self.index, here.cut(output))
        return state.leave(self.index, here.cut(output[0])), *output[1:]

    @torch.compiler.disable
    def _cut_inside(self, block: Block, hidden_states: Tensor, here: LayerPass, deletes: bool, cache: Any, kwargs: dict[str, Any]) -> Any:
        """The layer's own forward, cut between attention and projection."""
        self._attending.here = here
        try:
            output = block.first_half(self.layer, hidden_states, kwargs)
            narrowed = self._attending.here is None
        finally:
            self._attending.here = None
        if deletes:
            self._check_seen(here)
        here.record_cache(cache)
        attended, *rest = output if isinstance(output, tuple) else (output,)
        if not narrowed:  # an attention whose last step is not a part of it, or takes its rows otherwise
            attended = self._read(here, here.narrow(attended))
        for name in block.per_token:
            if kwargs.get(name) is not None:
                kwargs[name] = self._read(here, here.narrow(kwargs[name]))
        hidden_states = self._read(here, here.cut(hidden_states))
        if attended.shape != hidden_states.shape:
            raise UnsupportedError(
                f"the attention of {type(self.layer).__name__} returns {tuple(attended.shape)} for hidden states "
                f"{tuple(hidden_states.shape)}: see docs/new_family.md"
            )
        return block.second_half(self.layer, hidden_states, (attended, *rest), kwargs)

    def _before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        here: LayerPass | None = getattr(self._attending, "here", None)
        if here is None or not args or args[0].ndim != 3 or args[0].shape[1] != here.state.status.shape[1]:
            return None
        self._attending.here = None
        return self._read(here, here.narrow(args[0])), *args[1:]

    def _read_last(self, here: LayerPass) -> int:
        """How many of the last columns somebody reads after this layer, where that is the decoder's last; else 0, for all."""
        return here.state.call.logits_to_keep if self.last else 0

    def _read(self, here: LayerPass, tensor: Tensor) -> Tensor:
        """The columns [B, m', …] that somebody reads after this layer."""
        count = self._read_last(here)
        return tensor[:, -count:] if count else tensor

    def _check_seen(self, here: LayerPass) -> None:
        if not here.attention_seen:
            raise UnsupportedError(
                f"{type(self.layer).__name__} or its attention does not hand keyword arguments on, so nothing was pruned; "
                "see docs/new_family.md"
            )
