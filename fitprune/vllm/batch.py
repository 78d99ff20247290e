"""One step of vLLM's model runner as pruning sees it: who brings images now, and how much of each request is gone in each stage.

Everything follows from the runner's requests and the recipe, so nothing is remembered from one step to the next but what was computed
before. That makes preemption simple: a request that is computed again is a longer prompt, and only its own first
`num_prompt_tokens` tokens are ranked and asked.

    pytest tests/vllm/test_batch.py
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnsupportedError
from .requests import PrunedRequest, Stages, read_request


@dataclass
class Row:
    """A request in a step: its name, its tokens in this step, what it loses (None: nothing), and whether it brings its images now."""

    name: str
    tokens: int
    pruned: PrunedRequest | None
    arrives: bool


class Batch:
    """The requests of one step, in the runner's order."""

    def __init__(self, rows: list[Row], stages: int) -> None:
        self.rows = rows
        nothing = (0,) * stages
        self.lost = np.array([row.pruned.lost if row.pruned else nothing for row in rows], np.int32).reshape(len(rows), stages)
        self.arrives = np.array([row.arrives for row in rows], bool)

    @cached_property
    def prunes(self) -> bool:
        """Whether this step brings images that lose tokens."""
        return bool(self.arrives.any())

    def narrowed(self, common: Any, stage: int, block_size: int) -> Any:
        """vLLM's metadata of a step, as a stage's attention needs it; itself where nothing is gone.

        Args:
            common: `CommonAttentionMetadata` over all tokens of the step.
            block_size: Tokens in a block of its block table.
        """
        requests = len(self.rows)
        lost = np.zeros(common.num_reqs, np.int32)  # rows that fill up a CUDA graph lose nothing
        lost[:requests] = self.lost[:, stage]
        if not lost.any():
            return common
        device = common.seq_lens.device
        now = np.zeros_like(lost)  # lost among this step's tokens
        now[:requests] = np.where(self.arrives, self.lost[:, stage], 0)
        starts = common.query_start_loc_cpu.numpy()
        queries = np.diff(starts) - now
        begins = np.zeros_like(starts)
        np.cumsum(queries, out=begins[1:])
        total = int(begins[-1])
        begins_cpu = torch.from_numpy(begins)
        begins_here = begins_cpu.to(device, non_blocking=True)
        lengths = common.seq_lens - torch.from_numpy(lost).to(device, non_blocking=True)  # [R] tokens in the cache, with this step's
        upper = None if common.seq_lens_cpu_upper_bound is None else common.seq_lens_cpu_upper_bound - torch.from_numpy(lost)
        longest = common.max_seq_len if upper is None else int(upper[:requests].max())
        return common.replace(
            query_start_loc=begins_here,
            query_start_loc_cpu=begins_cpu,
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=upper,
            num_actual_tokens=total,
            max_query_len=int(queries.max()),
            max_seq_len=max(longest, 1),
            slot_mapping=self._slots(common, lengths, queries, begins_here, total, block_size),
            positions=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )

    def _slots(self, common: Any, lengths: Tensor, queries: np.ndarray, begins: Tensor, total: int, block_size: int) -> Tensor:
        """[tokens] where in the cache this step's tokens go: behind what their request has there."""
        device = lengths.device
        counts = torch.from_numpy(queries).to(device, non_blocking=True)
        owner = torch.repeat_interleave(torch.arange(len(queries), device=device), counts, output_size=total)
        place = torch.arange(total, device=device) - begins[owner] + (lengths - counts)[owner]
        block = common.block_table_tensor[owner, place // block_size].long()
        slots = block * block_size + place % block_size
        padded = 0 if self.prunes else common.slot_mapping.shape[0] - total
        return torch.nn.functional.pad(slots, (0, padded), value=-1) if padded else slots


class Plan:
    """What does not change from step to step, and the step at hand."""

    def __init__(self, stages: Stages, runner: Any, kv_groups: bool) -> None:
        self.stages, self.runner, self.kv_groups = stages, runner, kv_groups
        self.slots: dict[str, Tensor] = {}  # layer: where its tokens go in this step, if that is not where vLLM says
        self._known: dict[tuple[str, int, int], PrunedRequest | None] = {}
        self._in_pieces: set[str] = set()
        self._scheduled: Mapping[str, int] | None = None
        self._batch: Batch | None = None

    def begin(self, scheduled: Mapping[str, int]) -> None:
        """A step begins: the tokens of each request in it."""
        self._scheduled, self._batch = scheduled, None
        self.slots.clear()

    def end(self) -> None:
        """The step is over: what runs until the next one (warming up, capturing graphs) is not pruned."""
        self._scheduled = self._batch = None
        self.slots.clear()

    @property
    def batch(self) -> Batch | None:
        """The step at hand; None outside of one, and where nobody loses anything."""
        if self._scheduled is None:
            return None
        if self._batch is None:
            self._batch = Batch([self._row(name, self._scheduled[name]) for name in self.runner.input_batch.req_ids], self.stages.count)
        return self._batch if self._batch.lost.any() or self._batch.prunes else None

    def _row(self, name: str, tokens: int) -> Row:
        request = self.runner.requests[name]
        if not request.mm_features:
            return Row(name, tokens, None, False)
        pruned, computed = self._pruned(name, request), request.num_computed_tokens
        if pruned is None:
            return Row(name, tokens, None, False)
        if computed == 0:
            self._in_pieces.discard(name)
        if computed < pruned.prompt and (computed or tokens < pruned.prompt):
            if self.kv_groups:
                raise UnsupportedError(f"request {name} comes in pieces, which pruning cannot do: {computed} + {tokens} of {pruned.prompt}")
            self._in_pieces.add(name)
        if name in self._in_pieces:
            return Row(name, tokens, None, False)
        return Row(name, tokens, pruned, computed == 0)

    def _pruned(self, name: str, request: Any) -> PrunedRequest | None:
        key = name, request.num_prompt_tokens, len(request.mm_features)
        if key not in self._known:
            living = self.runner.requests
            if len(self._known) > 2 * len(living) + 64:
                self._known = {known: value for known, value in self._known.items() if known[0] in living}
                self._in_pieces &= set(living)
            self._known[key] = read_request(self.stages, request.mm_features, request.num_prompt_tokens, request.sampling_params)
        return self._known[key]
