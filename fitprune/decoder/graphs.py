"""A pruned prefill as one CUDA graph: hundreds of kernel launches become one.

A recipe fixes every count before the first layer, so for given sizes a whole pruned prefill (attention, scores, sorting,
cuts) is the same sequence of kernels on the same shapes, and can be recorded once and replayed. Recordings are keyed by
what sets shapes: rows, visual tokens of each image, and the prompt's length rounded up to a *bucket*. Within a bucket the
real length, the place of the image and padding are data: unused columns at the end belong to no group, so they neither
ask nor are deleted, causality hides them from all others, and they are cut off the outputs. Survivors are those of the
prefill without graphs.

    with fitprune.prune(model, recipe, graphs=8):      # at most 8 recordings, the least recently used go
        model.generate(**inputs)

Not recorded, and run as ever: decoding, later turns, calls that return hidden states, flash attention with padding (it counts
the padding on the host), caches other than DynamicCache. Refused: models that are not on one CUDA device, scores that ask the
host. Whatever runs a recording holds a lock, since inputs and outputs have one place in memory. Left out: what
`logits_to_keep` saves in the last layer, whose place is data here.

    pytest tests/decoder/test_graphs.py
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import FitPruneError, UnsupportedError
from ..kernels import masks
from ..kernels.select import ALIVE
from . import cache as kv
from .deletion import DeletionState
from .state import Prefill
from .upstream import MASK, POSITIONS, STATE_KEY, DynamicCache, DynamicLayer, cache_argument, cache_in, has_windows, output_with_cache
from .visual_tokens import tokens_of

BUCKET = 32  # prompt lengths are rounded up to a multiple of this
WARM_UP = 2  # runs before a recording: kernels are compiled and chosen then

# Keyword arguments of a decoder that a recording takes, beside the cache, or that say nothing when true; any other one with a value
# is unknown.
_KNOWN = {"inputs_embeds", "input_ids", MASK, POSITIONS, "cache_position", STATE_KEY}
_FLAGS = {"use_cache", "return_dict"}

log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What changes between replays, at fixed places in memory; b is the bucket's length.

    embeds [B, b, E]; positions [.., B or 1, b]; group and status [B, b] as in `PrefillState`; mask None without padding, else
    [B, 1, b, b], bool for sdpa and numbers to add for eager attention.
    """

    embeds: Tensor
    positions: Tensor
    group: Tensor
    status: Tensor
    mask: Tensor | None


class Outputs(NamedTuple):
    """hidden [B, m, E]; per layer the cache's keys and values, which columns they are and which are valid (None: as
    in `PrunedLayer`, or all), and per layer the columns and status after it (as a trace records them)."""

    hidden: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    columns: list[Tensor | None]
    valid: list[Tensor | None]
    steps: list[tuple[Tensor | None, Tensor | None]]


Run = Callable[[Inputs], Outputs]
Recorder = Callable[[Run, Inputs], Callable[[], Outputs]]


class CudaRecorder:
    """Records with `torch.cuda.graph`. All recordings share one memory pool: outputs are copied out before the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run, inputs: Inputs) -> Callable[[], Outputs]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = run(inputs)
        self._pool = graph.pool()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay


class StaticState(DeletionState):
    """A prefill of a bucket's length, whose groups and padding are read from tensors that change between replays."""

    def __init__(self, like: DeletionState, length: int) -> None:
        call = Prefill(like.spans, length, device=like.status.device, flash=like.call.flash)
        super().__init__(like.policy, call)
        self.visual = (0, length)
        self.padded = self.pad_slots = like.padded

    def fresh(self, group: Tensor, status: Tensor) -> StaticState:
        """One for a new run; only what the host knows is taken over."""
        state = copy.copy(self)
        state.token_group, state.status, state.steps, state._remembered = group, status, [], {}
        return state


@dataclass
class Recording:
    """A recorded prefill. `run` is kept because a graph reads the recipe's counts where `run` holds them on the device."""

    inputs: Inputs
    run: Run
    replay: Callable[[], Outputs]


class Graphs:
    """Replaces a decoder's forward: a prefill that can be recorded is replayed, anything else runs as it is."""

    def __init__(self, kept: int, recorder: Recorder | None = None) -> None:
        """
        Args:
            kept: Recordings to keep; each holds its activations in GPU memory.
            recorder: How to record; default CUDA graphs. Tests give one that works without a GPU.
        """
        self.kept, self._recorder = kept, recorder
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._lock = threading.Lock()

    def install(self, decoder: nn.Module, layers: list[nn.Module]) -> Callable[[], None]:
        """Puts itself in front of the decoder's forward; returns what takes it back.

        Raises:
            UnsupportedError: for a model that is not on one CUDA device.
        """
        devices = {parameter.device for parameter in decoder.parameters()}
        placed = any(hasattr(layer, "_hf_hook") for layer in layers)
        if self._recorder is None:
            if placed or len(devices) != 1 or next(iter(devices)).type != "cuda":
                raise UnsupportedError("graphs need a model on one CUDA device, without offloading: move it there, or leave graphs out")
            self._recorder = CudaRecorder()
        self.cache_argument = cache_argument(decoder) or ""
        self.decoder, self.original, own = decoder, decoder.forward, decoder.__dict__.get("forward")
        decoder.forward = self

        def remove() -> None:
            if own is None:
                del decoder.forward
            else:
                decoder.forward = own
            self.recordings.clear()

        return remove

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state, cache = kwargs.get(STATE_KEY), cache_in(kwargs)
        if args or not isinstance(state, DeletionState):
            return self.original(*args, **kwargs)
        if reason := self._unfit(state, cache, kwargs):
            log.debug("fitprune: this prefill is not recorded: %s", reason)
            return self.original(**kwargs)
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            embeds = self.decoder.get_input_embeddings()(kwargs["input_ids"])  # type: ignore[operator]
        positions = kwargs.get(POSITIONS)
        if positions is None:
            positions = torch.arange(state.length, device=embeds.device)[None]
        length = -(-state.length // BUCKET) * BUCKET
        mask = self._mask(kwargs[MASK], length, embeds.dtype) if state.padded else None
        given = Inputs(embeds, positions, state.token_group, state.status, mask)
        with self._lock:
            return self._replayed(state, _lengthened(given, length), cache)

    def _unfit(self, state: DeletionState, cache: Any, kwargs: dict[str, Any]) -> str | None:
        """Why a prefill cannot be recorded, or None."""
        mask = kwargs.get(MASK)
        config: Any = self.decoder.config
        if state.past or torch.is_grad_enabled():
            return "earlier tokens are cached, or gradients are on"
        if kwargs.get("use_cache", config.use_cache) is False or kwargs.get("return_dict") is False:
            return "no cache is wanted, or no named outputs"
        if state.deepstack or state.call.recurrent or has_windows(config):
            return "its layers add image features, keep states or see windows, which a recording does not know"
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            return "its mask is not 2-D"
        if state.padded and state.call.flash:
            return "flash attention counts padding on the host"
        if cache is not None and any(type(layer) is not DynamicLayer for layer in cache.layers):
            return "its cache is not a DynamicCache of plain layers"
        if config.output_hidden_states or config.output_attentions:
            return "hidden states or attentions are wanted"
        others = [
            name for name, value in kwargs.items()
            if name not in _KNOWN | _FLAGS and value is not cache and value is not None and value is not False
        ]  # fmt: skip
        return f"arguments {', '.join(others)}" if others else None

    def _mask(self, real: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """[B, 1, length, length] causal mask of what is real [B, n]: given, so that no model has to look whether it is padded."""
        config: Any = self.decoder.config
        position = torch.arange(length, device=real.device)[None]
        seen = masks.causal(position, position, pad(real.bool(), (0, length - real.shape[1])))
        return seen if config._attn_implementation != "eager" else masks.as_numbers(seen, dtype)

    def _replayed(self, state: DeletionState, given: Inputs, cache: Any) -> Any:
        """The prefill of inputs that have the bucket's length already, from its recording."""
        images = tuple(tuple(map(tokens_of, row)) for row in state.spans)
        shapes = given.embeds.shape[1], given.positions.shape, given.embeds.dtype
        key = (images, *shapes, state.padded, torch.is_inference_mode_enabled())
        recording = self.recordings.get(key)
        if recording is None:
            self.recordings[key] = recording = self._record(state, given)
            while len(self.recordings) > self.kept:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(key)
        for place, new in zip(recording.inputs, given, strict=True):
            if place is not None and new is not None:
                place.copy_(new)
        return self._handed_out(recording.replay(), state, given.embeds.shape[1] - state.length, cache)

    def _record(self, state: DeletionState, given: Inputs) -> Recording:
        prototype = StaticState(state, given.embeds.shape[1])
        config, original = self.decoder.config, self.original

        def run(inputs: Inputs) -> Outputs:
            now, cache = prototype.fresh(inputs.group, inputs.status), DynamicCache(config=config)
            output = original(
                inputs_embeds=inputs.embeds,
                use_cache=True,
                **{MASK: inputs.mask, POSITIONS: inputs.positions, self.cache_argument: cache, STATE_KEY: now},
            )
            held: list[Any] = cache.layers
            return Outputs(
                output.last_hidden_state,
                [layer.keys for layer in held],
                [layer.values for layer in held],
                [getattr(layer, "token_index", None) for layer in held],
                [getattr(layer, "valid", None) for layer in held],
                list(now.steps),
            )

        inputs = Inputs(*(None if part is None else part.clone() for part in given))  # type: ignore[arg-type]
        assert self._recorder is not None
        try:
            return Recording(inputs, run, self._recorder(run, inputs))
        except FitPruneError:
            raise
        except RuntimeError as error:
            raise UnsupportedError(
                f"this prefill cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}): leave graphs out, or use "
                "a score that does not synchronise with the host"
            ) from error

    def _handed_out(self, made: Outputs, state: DeletionState, spare: int, cache: Any) -> Any:
        """Copies of what a replay made, without the bucket's unused columns, in the caller's cache and trace."""

        def real(tensor: Tensor | None, dim: int = 1) -> Tensor | None:
            return None if tensor is None else tensor.narrow(dim, 0, tensor.shape[dim] - spare).clone()

        cache = DynamicCache(config=self.decoder.config) if cache is None else cache
        for index, (keys, values) in enumerate(zip(made.keys, made.values, strict=True)):
            cache.update(real(keys, 2), real(values, 2), index)
            columns = real(made.columns[index])
            if columns is not None:
                kv.mark(cache, index, columns, real(made.valid[index]), state.length)
        state.steps.extend((real(columns), real(status)) for columns, status in made.steps)
        state.layers_entered, state.cache = len(made.keys), cache  # every layer was walked
        return output_with_cache(real(made.hidden), cache)


def _lengthened(given: Inputs, length: int) -> Inputs:
    """The inputs with more columns at their end, which belong to no group; the mask has the length already."""
    spare = length - given.embeds.shape[1]
    positions, group = pad(given.positions, (0, spare)), pad(given.group, (0, spare))
    status = pad(given.status, (0, spare), value=ALIVE)
    return Inputs(pad(given.embeds, (0, 0, 0, spare)), positions, group, status, given.mask)
