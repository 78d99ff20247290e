"""What a piece of work allocates and computes, counted, not timed: figures that do not depend on who else uses the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that PyTorch's CPU allocator held at once for `work`, temporaries inside operators included, beyond what was held."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    del result
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most
