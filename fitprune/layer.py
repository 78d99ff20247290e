"""A decoder layer's forward while something is attached.

A layer that deletes nothing runs its own original forward with narrowed arguments. A layer that deletes runs norm →
attention → *cut* → output projection → add → norm → MLP → add, so that a deleted token pays for its layer's queries, keys,
values and attention and for nothing after. The last layer carries on only the columns whose logits were asked for
(`logits_to_keep`, which `generate` sets to 1): nobody reads what its MLP makes of the others.

The cut inside the attention module is a pre-hook on `o_proj`, its last step: the frame at hand lies in a thread-local of
the attachment while that one call runs.

Modifications against transformers' LlamaDecoderLayer.forward (5.0 to 5.23; Mistral, Qwen2, Qwen3 and the Qwen-VL text
layers share it), in layers that delete and in the last: residual and attention output lose the rows that do not go on.
Layers of any other class are cut at their exit instead: the survivors are the same, what comes after attention is not saved.

    pytest tests/test_attach.py
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .attention import LISTENER
from .errors import UnsupportedError
from .frame import Frame

# Classes whose forward is norm → attention → add → norm → MLP → add, checked by tests/test_attach.py for each.
CUT_INSIDE = frozenset(
    f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen2VL", "Qwen2_5_VL", "Qwen3VLText")
)


class LayerForward:
    """Stands in for `layer.forward`. Carries the attachment, so that it can be found from the model."""

    def __init__(
        self,
        attachment: Any,
        index: int,
        layer: nn.Module,
        original: Callable[..., Any],
        *,
        inside: bool,
        last: bool,
        undo: ExitStack,
    ) -> None:
        """
        Args:
            attachment: What it belongs to.
            index: Number of the layer.
            original: The forward that it replaces.
            inside: Whether the layer may be cut between its attention and its MLP, if it is of a class that can.
            last: Whether it is the decoder's last layer.
            undo: Gets what takes the hook back.
        """
        self.attachment, self.index, self.layer, self.original, self.last = attachment, index, layer, original, last
        self.inside = inside and type(layer).__name__ in CUT_INSIDE
        self._attending = threading.local()  # .frame: whose attention runs on this thread
        projection = getattr(getattr(layer, "self_attn", None), "o_proj", None)
        if self.inside and isinstance(projection, nn.Module):
            # before other hooks: those of transformers' tensor parallelism may wrap the input
            undo.callback(projection.register_forward_pre_hook(self._before_projection, prepend=True).remove)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        frame: Frame | None = kwargs.pop(LISTENER, None)
        if frame is None:
            return self.original(hidden_states, *args, **kwargs)
        frame.enter(self.index, hidden_states, kwargs)
        cache = kwargs.get("past_key_values")
        cuts = frame.listens(self.index)
        if cuts:
            kwargs[LISTENER] = frame
        if self.inside and (cuts or (self.last and frame.reads)):
            return self._inside(hidden_states, frame, cuts, kwargs)
        output = self.original(hidden_states, *args, **kwargs)
        frame.held_by(self.index, cache)
        if cuts:
            self._check_heard(frame)
        if not isinstance(output, tuple):
            return frame.cut(output)
        return frame.cut(output[0]), *output[1:]

    def _inside(self, hidden_states: Tensor, frame: Frame, cuts: bool, kwargs: dict[str, Any]) -> Tensor:
        layer = self.layer
        self._attending.frame = frame
        try:
            attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)  # type: ignore[operator]
            narrowed = self._attending.frame is None
        finally:
            self._attending.frame = None
        if cuts:
            self._check_heard(frame)
        frame.held_by(self.index, kwargs.get("past_key_values"))
        if not narrowed:  # an attention module without `o_proj`
            attended = self._read(frame, frame.narrow(attended))
        hidden_states = self._read(frame, frame.cut(hidden_states)) + attended
        return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))  # type: ignore[operator]

    def _before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        frame: Frame | None = getattr(self._attending, "frame", None)
        if frame is None:
            return None
        self._attending.frame = None
        return self._read(frame, frame.narrow(args[0])), *args[1:]

    def _read(self, frame: Frame, tensor: Tensor) -> Tensor:
        """The columns of the last layer that somebody reads, [B, m', …]; all of them in the other layers."""
        return tensor[:, -frame.reads :] if self.last and frame.reads else tensor

    def _check_heard(self, frame: Frame) -> None:
        if frame.heard_at != self.index:
            raise UnsupportedError(
                f"{type(self.layer).__name__} or its attention does not hand keyword arguments on, so nothing was pruned; "
                "see docs/new_family.md"
            )
