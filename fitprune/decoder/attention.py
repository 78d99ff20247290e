"""A transformers attention function that lets somebody listen.

`transformers` looks attention functions up by name in a registry, with the attention module's own `config` (upstream.py
finds both). While pruning is attached, each attention module of the decoder has a shallow copy of that config which names the function
below; it calls whatever implementation the model really uses (sdpa, eager, flash_attention_2, …) and, where a layer
is to be scored, hands query, key and mask to the listener. The model's shared config, its masks and every other module
stay as they are. The listener travels as a keyword argument, so concurrent forwards cannot mix.

Modifications against transformers' attention (5.0 to 5.24): none to its result; query and key are also shown to `listener`.

    pytest tests/decoder/test_attach.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..distributed.heads import HeadGroup, check_complete
from ..errors import UnsupportedError
from ..kernels import attend
from .upstream import STATE_KEY, attention_function


class _WithConfig:
    """An attention module as its implementation expects it: the original config in place of the copy."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def check_implementation(name: str | None) -> None:
    """Raises UnsupportedError for implementations whose masks are not understood here."""
    if name is not None and ("flex" in name or name.startswith("paged")):
        raise UnsupportedError(
            f"cannot prune with attention implementation {name!r}: its block masks have no columns to take. "
            "Load the model with attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
        )


def _check_formula(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Scores are made from softmax(scaling · q·k + mask): attention with more in it would be ranked by other weights."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UnsupportedError(
                f"cannot score {type(module).__name__}: its attention uses {name}, which the scores do not know; see docs/new_family.md"
            )


def listening(config: Any, heads: HeadGroup | None = None) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """An attention function that runs the implementation `config` names at the time of the call; heads as `heads_of`."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        listener = kwargs.pop(STATE_KEY, None)
        if listener is not None:
            _check_formula(module, kwargs)
            check_complete(heads, query.shape[1], config)
        name = config._attn_implementation or "eager"
        inner = attention_function(module, name)
        if listener is None:
            return inner(_WithConfig(module, config), query, key, value, attention_mask, **kwargs)
        scaling, logsumexp, found = kwargs.get("scaling") or query.shape[-1] ** -0.5, None, None
        if name == "sdpa" and not kwargs.get("dropout"):
            causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
            found = attend(query, key, value, scaling, attention_mask, causal)
        if found is not None:
            result, logsumexp = found
            output = result.transpose(1, 2).contiguous(), None
        else:
            output = inner(_WithConfig(module, config), query, key, value, attention_mask, **kwargs)
        listener.on_attention(query, key, value, scaling, attention_mask, logsumexp, heads)
        return output

    return attention
