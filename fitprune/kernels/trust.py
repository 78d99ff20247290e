"""A GPU kernel is compared with the formula before it is used for the first time on a device.

GPUs, drivers and compilers differ more than tests can cover. So the first call for a device, precision and head size runs a
small example both ways; if they disagree, or the kernel fails, that is logged once and the slower way is taken from then
on. The answer is remembered for the process. It takes a wait for the device, once, outside of any captured graph.

    pytest tests/kernels/test_trust.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from itertools import product

import torch
from torch import Tensor

from .reference import TEXT
from .reference import received_attention as reference

log = logging.getLogger(__name__)
_known: dict[Hashable, bool] = {}


def trusted(kind: tuple[Hashable, ...], check: Callable[[], bool]) -> bool:
    """Whether a kernel is right for a kind of input.

    Args:
        kind: The kernel's name, then what sets the case apart (device, precision, head size, …).
        check: Runs a small example; True if the kernel is right. Any exception counts as no.
    """
    if kind not in _known:
        said = ""
        try:
            with torch.inference_mode():
                _known[kind] = check()
        except Exception as error:  # compilers and drivers raise what they like; the reason is logged below
            _known[kind], said = False, f" ({type(error).__name__}: {error})"
        if not _known[kind]:
            log.warning(
                "fitprune: %s is not right or does not run for %s%s; a slower kernel serves instead",
                kind[0], ", ".join(map(str, kind[1:])), said,
            )  # fmt: skip
    return _known[kind]


def noise(like: Tensor, *shape: int) -> Tensor:
    """Normal numbers [*shape, head size of `like`] on its device; nobody's random numbers are used up."""
    generator = torch.Generator(like.device).manual_seed(sum(shape))
    return like.new_empty(*shape, like.shape[-1]).normal_(generator=generator)


def matches_formula(kernel: Callable[..., tuple[Tensor, Tensor]], like: Tensor) -> bool:
    """Whether a kernel of received attention agrees with the formula on a small batch with every kind of mask.

    Args:
        kernel: As `reference.received_attention`.
        like: A tensor whose device, precision and last dimension (the head size) count.
    """
    batch, heads, groups, length, past, images = 2, 4, 2, 75, 6, 2
    query = noise(like, batch, heads, length)
    key = noise(like, batch, groups, past + length)
    group = torch.full((batch, length), TEXT, device=like.device)
    group[:, 9:30], group[:, 30:50], group[1, :9] = 1, 2, 0
    key_group = torch.nn.functional.pad(group.clamp(min=0), (past, 0))
    real = torch.ones(batch, past + length, dtype=torch.bool, device=like.device)
    real[1, : past + 9] = False
    pattern = (real[:, None] & real.new_ones(length, past + length).tril(past))[:, None]
    scaling = like.shape[-1] ** -0.5
    for mask, itself in product((None, real, pattern), (True, False)):
        ours = kernel(query, key, scaling, mask, group, key_group, images=images, itself=itself)
        theirs = reference(query, key, scaling, mask, group, key_group, itself)
        if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(ours, theirs, strict=True)):
            return False
    return True
