"""One forward of the decoder, while tokens disappear from it.

The model's loop hands every layer the mask and the position embeddings of the full length, made for layer 0. A `Frame`
knows which columns are still alive and gives each layer the rows and columns that belong to them; it cuts the hidden
states when a layer has chosen; and it writes onto the cache which tokens each layer holds. It exists for one call of
the decoder and travels as an argument, so forwards never share state.

What a layer deletes is decided by subclasses: by a recipe (`prune.py`), by a threshold (`replay.py`), not at all but
with every layer listened to (`observe.py`), or nothing more is deleted but the cache was pruned before (this class).

    pytest tests/test_frame.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cache as kv
from .heads import Heads
from .kernels import TEXT
from .locate import Spans, groups
from .scores import Attended
from .select import ALIVE, DELETED, PADDING, take
from .upstream import MASK, POSITIONS, ROTARY


class Frame:
    """State of one forward over n new tokens (B rows) that follow `past` cached ones.

    columns: [B, m] which of the n tokens are carried now, None while all are.
    status: [B, m] `ALIVE`, `PADDING` or `DELETED` (a filler) for each of them.
    token_group: [B, m] `TEXT`, 0 (padding, filler) or the number of the image.
    padded: whether the new tokens came with padding.
    fillers: whether any row carries something that is not alive (known to the host).
    reads: how many of the last columns the model looks at in the end, 0 for all.
    cache: the one that the layers were seen to fill, None if none was.
    """

    def __init__(
        self, spans: Spans, length: int, past: int, real: Tensor | None, device: torch.device, flash: bool
    ) -> None:
        """
        Args:
            spans: Images of every row, positions within the new tokens.
            length: n, the number of new tokens.
            past: Tokens before them, as counted by layer 0's cache.
            real: [B, n] bool on the CPU, False at padding; None if there is none.
            flash: Whether the attention takes 2-D masks (flash) or 4-D ones (sdpa, eager).
        """
        self.spans, self.length, self.past, self.flash = spans, length, past, flash
        group = groups(spans, length)
        group[group == 0] = TEXT
        status = torch.full_like(group, ALIVE)
        if real is not None:
            group[~real], status[~real] = 0, PADDING
        self.host_group = group
        self.token_group, self.status = group.to(device), status.to(device)
        self.images = max(map(len, spans), default=0)
        starts, ends = [s for row in spans for s, _ in row], [e for row in spans for _, e in row]
        self.visual = (min(starts, default=0), max(ends, default=0))
        self.columns: Tensor | None = None
        self.padded = self.fillers = real is not None
        self.keep: Tensor | None = None
        self.reads = 0
        self.cache: Any = None
        self.layer = self.heard_at = -1
        self._held: tuple[Tensor, Tensor | None] | None = None
        self._entered: tuple[Tensor, Tensor | None] | None = None
        self._remembered: dict[str, tuple[Any, Any]] = {}

    # ---- what subclasses decide -------------------------------------------------------------------------------

    def listens(self, layer: int) -> bool:
        """Whether this layer's attention has to be shown to `choose`."""
        return False

    def choose(self, seen: Attended) -> Tensor | None:
        """Looks at a layer's attention; returns which columns to carry on ([B, m'] ascending), None for all."""
        return None

    # ---- the way through a layer ------------------------------------------------------------------------------

    def enter(self, layer: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> None:
        """Before a layer: its keyword arguments are narrowed, in place, to the tokens that are still there."""
        self.layer, self.keep, self._entered, self._held = layer, None, None, None
        self._to(hidden.device)
        kv.admit(cache, layer)
        mask = kwargs.get(MASK)
        if mask is None and self.length == 1 and self.columns is None and kv.all_valid(cache, layer):
            return  # a token decoded without padding sees all that the layer holds, whatever that is
        self._held = kv.entries(cache, layer)
        if self.columns is None and self._held is None:
            return
        kwargs[MASK] = (
            self._mask(mask) if self._held is not None else self._once("mask", mask, lambda: self._mask(mask))
        )
        if self.columns is None:
            return
        embeddings = kwargs.get(ROTARY)
        if embeddings is not None:
            kwargs[ROTARY] = self._once("rotary", embeddings, lambda: tuple(map(self._alive, embeddings)))
            kwargs[POSITIONS] = None  # used up; flash attention would take their gaps for packed sequences
        elif kwargs.get(POSITIONS) is not None:
            kwargs[POSITIONS] = self._alive(kwargs[POSITIONS], dim=-1)

    def heard(
        self,
        query: Tensor,
        key: Tensor,
        scaling: float,
        mask: Tensor | None,
        logsumexp: Tensor | None = None,
        heads: Heads | None = None,
    ) -> None:
        """Called by the attention function of a layer that `listens`."""
        self.heard_at = self.layer
        self._entered = None if self.columns is None else self._keys()  # this layer's cache keeps what it deletes
        seen = Attended(
            query, key, scaling, mask, self.token_group, self.images, self._visual_range(), self.layer,
            logsumexp=logsumexp, heads=heads,
        )  # fmt: skip
        with torch.no_grad():
            self.keep = self.choose(seen)

    def narrow(self, hidden: Tensor) -> Tensor:
        """The rows of the tokens that go on after this layer, [B, m, …] → [B, m', …]; may be asked again until `cut`."""
        return hidden if self.keep is None else take(hidden, self.keep, 1)

    def cut(self, hidden: Tensor) -> Tensor:
        """After the layer has chosen: hidden states [B, m, E] of the tokens that go on."""
        hidden = self.narrow(hidden)
        if self.keep is None:
            return hidden
        keep, self.keep = self.keep, None
        self._remembered.clear()
        if self.columns is None:
            self.columns = keep
        else:
            self.columns = take(self.columns, keep, 1)
        self.status, self.token_group = take(self.status, keep, 1), take(self.token_group, keep, 1)
        return hidden

    def held_by(self, layer: int, cache: Any) -> None:
        """After a layer's attention, before its cut: notes on the cache which tokens this layer holds.

        A layer that got all new tokens needs no note: entries without one follow from the last note one by one.
        """
        self.cache = cache
        if cache is not None and self.columns is not None:
            columns, valid = self._entered if self._entered is not None else self._keys()
            kv.mark(cache, layer, columns, valid, self.past + self.length)

    # ---- details ----------------------------------------------------------------------------------------------

    def _to(self, device: torch.device) -> None:
        """A model on several devices: the next layer may live elsewhere."""
        if self.status.device != device:
            self.status, self.token_group = self.status.to(device), self.token_group.to(device)
            self.columns = None if self.columns is None else self.columns.to(device)
            self._remembered.clear()

    def _once(self, name: str, source: Any, make: Any) -> Any:
        """`make()` until the next cut, as long as it comes from the same source object."""
        known = self._remembered.get(name)
        if known is None or known[0] is not source:
            self._remembered[name] = known = (source, make())
        return known[1]

    def _own(self) -> Tensor:
        """[B, m] columns of the carried tokens, counted from the start of layer 0's cache."""
        if self.columns is not None:
            return self.columns + self.past
        return torch.arange(self.past, self.past + self.length, device=self.status.device).expand_as(self.status)

    def _keys(self) -> tuple[Tensor, Tensor | None]:
        """Columns [B, K] and validity (None: all valid) of the keys of this layer: what the cache held, then our own."""
        own = self._own()
        valid = self.status == ALIVE if self.fillers and self.columns is not None else None
        if self._held is None:
            if not self.past:
                return own, valid
            held, real = torch.arange(self.past, device=own.device).expand(own.shape[0], -1), None
        else:
            held, real = self._held
            held, real = held.to(own.device), None if real is None else real.to(own.device)
        if valid is not None or real is not None:
            ones = torch.ones_like(held, dtype=torch.bool), torch.ones_like(own, dtype=torch.bool)
            valid = torch.cat([ones[0] if real is None else real, ones[1] if valid is None else valid], dim=1)
        return torch.cat([held, own], dim=1), valid

    def _alive(self, tensor: Tensor, dim: int = -2) -> Tensor:
        """The carried rows of something with one entry per token: [B or 1, n, D], or [3, B or 1, n, D] (M-RoPE)."""
        assert self.columns is not None
        if tensor.ndim + dim == 2:  # leading sections, as in Qwen-VL
            return torch.stack([take(section, self.columns, section.ndim + dim) for section in tensor])
        return take(tensor, self.columns, tensor.ndim + dim)

    def _visual_range(self) -> tuple[int, int]:
        """A range of the carried tokens that holds all visual ones."""
        carried = self.status.shape[1]
        if self.padded:  # dropped padding moves everything
            return 0, carried
        return self.visual[0], carried - (self.length - self.visual[1])  # text on either side is never deleted

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        """This layer's attention mask, of the kind that the attention implementation takes."""
        if mask is None and not self.fillers and self._held is None and not self.past:
            return None  # causal, and deleting tokens keeps it so
        columns, valid = self._keys()
        if self.flash:
            if mask is not None:
                real = mask.bool().gather(1, columns)
                return real if valid is None else real & valid
            return valid
        own = self._own()
        if mask is None:
            if valid is None and own.shape[1] in (1, columns.shape[1]):
                return None
            allowed = columns[:, None, None, :] <= own[:, None, :, None]
            return allowed if valid is None else allowed & valid[:, None, None, :]
        mask = mask if self.columns is None else take(mask, self.columns, 2)
        mask = take(mask, columns, 3)  # [B, 1, m, K]
        if valid is None:
            return mask
        if mask.dtype == torch.bool:
            return mask & valid[:, None, None, :]
        return mask.masked_fill(~valid[:, None, None, :], torch.finfo(mask.dtype).min)


__all__ = ["ALIVE", "DELETED", "PADDING", "TEXT", "Frame"]
