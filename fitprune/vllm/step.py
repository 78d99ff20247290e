"""The forward of a step that brings images: scores, the cut behind attention, and hidden states of full length again at the end.

All requests of a step lie behind one another in one tensor. Where a layer deletes, each arriving request's prompt is ranked by what
that layer's attention saw of it; the rows of the others stay. vLLM's own forwards run throughout: hooks, which live for this one step,
hand the layers the positions of the tokens that are left, and take the rows of those that go. Compiled code and graphs are passed by in
such a step, as its lengths differ from layer to layer; steps that only decode use them as ever.

    pytest tests/vllm/test_vllm_answers.py
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed.heads import HeadGroup
from ..kernels.attended import Attended
from ..kernels.select import ALIVE, DELETED, compact, lowest
from ..scores import Score, ranks
from .batch import Batch, Plan, Row
from .decoder import CarriedTensors, Layer, hooks, narrow_arguments

Watch = Callable[[str, int, Tensor], None]  # request, layer, positions of its prompt that are left


class _Arriving:
    """A request whose images lose tokens in this step: `here` of its prompt's tokens are left, `row` is the first of them."""

    def __init__(self, row: Row, device: torch.device) -> None:
        assert row.pruned is not None
        self.name, self.pruned = row.name, row.pruned
        self.group = row.pruned.group.to(device)[None]  # [1, here]
        self.position = torch.arange(row.pruned.prompt, device=device)
        self.here = row.pruned.prompt
        self.generated = row.tokens - row.pruned.prompt  # what it had answered before it was preempted

    @property
    def visual(self) -> tuple[int, int]:
        """A range that holds all visual tokens that are left: text around them stays."""
        left, right = self.pruned.visual
        return left, self.here - (self.pruned.prompt - right)


class Step:
    """One forward. rows: [m] which of the step's tokens are carried, None for all."""

    def __init__(self, pruning: Pruning, batch: Batch, length: int, device: torch.device) -> None:
        self.pruning, self.length = pruning, length
        self.rows: Tensor | None = None
        self._device = device
        self._parts: list[_Arriving | int] = []  # in order: an arriving request, or how many tokens just pass
        for row in batch.rows:
            if row.arrives:
                arriving = _Arriving(row, device)
                self._parts += [arriving, arriving.generated]
            else:
                self._parts.append(row.tokens)
        self._stack = ExitStack()
        self._install(self._stack.enter_context(hooks()))
        decoder: Any = pruning.decoder
        self._inner = decoder.forward
        decoder.forward = self._decode  # vLLM's wrapper for compiled decoders calls no hooks
        self._stack.callback(decoder.__dict__.pop, "forward")

    def end(self) -> None:
        """Takes back all hooks."""
        self._stack.close()

    def whole(self, output: Any) -> Any:
        """Hidden states [m, E] at their places among all tokens of the step [n, E]; zero where a token is gone."""
        if self.rows is None:
            return output
        full = output.new_zeros(self.length, *output.shape[1:])
        return full.index_copy_(0, self.rows, output)

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's own forward; what it adds between its layers loses the rows of tokens that are gone."""
        for name, value in kwargs.items():
            if isinstance(tensors := getattr(value, "tensors", None), dict):
                kwargs[name] = CarriedTensors(tensors, lambda: self.rows)
        return self._inner(*args, **kwargs)

    def _install(self, keep: Callable[[Any], None]) -> None:
        for number, found in enumerate(self.pruning.layers):
            entered = narrow_arguments(self.length, lambda: self.rows)
            keep(found.layer.register_forward_pre_hook(entered, with_kwargs=True))
            if number in self.pruning.plan.stages.deleting:
                self._cut_in(number, found, keep)

    def _cut_in(self, number: int, found: Layer, keep: Callable[[Any], None]) -> None:
        seen: list[Tensor] = []
        kept: list[Tensor] = []
        before: list[int] = []

        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[:] = [*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)][:3]

        def cut(_: nn.Module, args: tuple[Any, ...]) -> Any:
            before.append(len(args[0]))
            kept.append(self._survivors(number, found.attention, *seen))
            return (args[0].index_select(0, kept[0]), *args[1:])

        def later(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return narrow_arguments(before[0], lambda: kept[0])(part, args, kwargs) if kept else None

        keep(found.attention.register_forward_pre_hook(listen, with_kwargs=True))
        keep(found.output.register_forward_pre_hook(cut))
        for part in found.later:
            keep(part.register_forward_pre_hook(later, with_kwargs=True))

    def _survivors(self, number: int, attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[m'] which of the carried rows go on; the step carries no others from here on."""
        query = query.view(len(query), attention.num_heads, -1)
        key, value = (one.view(len(one), attention.num_kv_heads, -1) for one in (key, value))
        chosen, row = [], 0
        for part in self._parts:
            if isinstance(part, int):
                chosen.append(torch.arange(row, row + part, device=self._device))
                row += part
                continue
            counts = part.pruned.counts[number]
            here = part.here
            if not any(counts):
                survivors = torch.arange(here, device=self._device)
            else:
                heads = (one[row : row + here].transpose(0, 1)[None] for one in (query, key, value))  # [1, H, here, D]
                survivors = self._rank(part, number, attention, counts, *heads)
            chosen.append(row + survivors)
            row += here
            if self.pruning.watch is not None:
                self.pruning.watch(part.name, number, part.position)
        index = torch.cat(chosen)
        self.rows = index if self.rows is None else self.rows.index_select(0, index)
        return index

    def _rank(
        self, part: _Arriving, number: int, attention: Any, counts: tuple[int, ...], query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """[here'] which of an arriving prompt's tokens survive a layer."""
        pruning = self.pruning
        seen = Attended(
            query, key, value, attention.impl.scale, None, part.group, part.pruned.images, part.visual, number,
            seed=pruning.seed, heads=pruning.heads,
        )  # fmt: skip
        marked = lowest(ranks(pruning.score, seen), part.group, [list(counts)])
        part.here -= sum(counts)
        survivors = compact(torch.where(marked, DELETED, ALIVE), part.here)
        part.group, part.position = part.group.gather(1, survivors), part.position.index_select(0, survivors[0])
        return survivors[0]


class Pruning:
    """Two hooks on the model that vLLM calls: before it, a step's slots are put in place; around it, tokens go.

    watch: called for every arriving request and deleting layer, for tests.
    """

    def __init__(self, plan: Plan, decoder: nn.Module, layers: list[Layer], score: Score, seed: int, heads: HeadGroup | None) -> None:
        self.plan, self.decoder, self.layers, self.score, self.seed, self.heads = plan, decoder, layers, score, seed, heads
        self.watch: Watch | None = None
        self._step: Step | None = None

    def attach(self, model: nn.Module) -> None:
        """For the life of the model; steps without anything to prune pass through."""
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        batch = self.plan.batch
        if batch is None:
            return
        from vllm.config import CUDAGraphMode
        from vllm.forward_context import get_forward_context

        context = get_forward_context()
        context.slot_mapping = {**context.slot_mapping, **self.plan.slots}
        if not batch.prunes:
            return
        context.skip_compiled = True
        context.cudagraph_runtime_mode = CUDAGraphMode.NONE
        context.is_padding = None  # has an entry per token
        given = kwargs["inputs_embeds"]
        self._step = Step(self, batch, len(given), given.device)

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        step, self._step = self._step, None
        if step is None:
            return None
        step.end()
        return None if output is None else step.whole(output)
