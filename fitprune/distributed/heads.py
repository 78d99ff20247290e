"""Attention heads that lie on several devices (tensor parallelism), put together where scores need all of them.

Under tensor parallelism each process computes some heads of every layer. FitPrune's score takes the maximum over *all* heads before
it sums over queries, so the maxima are reduced across the processes, tile by tile; scores of single rows are gathered head by
head; products of values are sums over heads and are added up. Every process then holds the same numbers and deletes the same tokens;
that they do is not left to chance: the ranking of the first one counts (`broadcast_from_first`), which also covers scores that look
at the heads of one process only.

The processes are found from the projections: transformers keeps a sharded weight as a DTensor, whose mesh they form, or (some
versions between 5.0 and 5.17) as a plain part, with the mesh on the module.

Left out: heads that do not divide evenly (a process would hold part of a head), and reductions inside CUDA graphs.

    torchrun --nproc-per-node 2 -m fitprune eval --tensor-parallel --limit 8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UnsupportedError
from .workers import detect_lost_peer


@dataclass(frozen=True)
class HeadGroup:
    """The processes that hold the heads of a layer, in the order of their heads."""

    group: Any

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def maximum(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over all processes, in place."""
        with detect_lost_peer():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all processes, in place."""
        with detect_lost_peer():
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The parts [B, H / size, …] of all processes as one, [B, H, …]."""
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with detect_lost_peer():
            dist.all_gather(parts, tensor, group=self.group)
        return torch.cat(parts, 1)

    def broadcast_from_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in place."""
        with detect_lost_peer():
            dist.broadcast(tensor, dist.get_global_rank(self.group, 0), group=self.group)
        return tensor


def heads_of(attention: nn.Module) -> HeadGroup | None:
    """The processes that share an attention module's heads; None where this one has them all.

    Raises:
        UnsupportedError: for weights that are shared out in a way that is not known here.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    for mesh in filter(None, map(_mesh, attention.children())):
        names = mesh.mesh_dim_names
        if mesh.ndim == 1 and names in (None, ("tp",)):
            return HeadGroup(mesh.get_group())
        if names is not None and "tp" in names:
            return HeadGroup(mesh.get_group("tp")) if mesh["tp"].size() > 1 else None
        raise UnsupportedError(
            f"the weights of {type(attention).__name__} are shared out over a mesh {names}, which is not understood here: "
            "load the model with transformers' tensor parallelism, or whole"
        )
    return None


def _mesh(projection: nn.Module) -> Any:
    """The mesh that a projection's weight is shared out over, None if it is not."""
    from torch.distributed.tensor import DTensor

    weight = getattr(projection, "weight", None)
    if isinstance(weight, DTensor):
        return weight.device_mesh if any(placement.is_shard() for placement in weight.placements) else None
    return getattr(projection, "_hf_device_mesh", None)


def check_complete(heads: HeadGroup | None, seen: int, config: Any) -> None:
    """Raises UnsupportedError where an attention shows other heads than it has: scores of a part would not be those of the whole."""
    total = getattr(config, "num_attention_heads", None)
    here = seen * (heads.size if heads else 1)
    if total is not None and here != total:
        raise UnsupportedError(
            f"the attention shows {here} of {total} heads: a model whose heads are shared out has to be loaded with "
            "transformers' tensor parallelism, in a way that divides them evenly"
        )
