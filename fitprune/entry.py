"""How every command of ours begins and ends: its processes meet, its errors are one line, its exit code says what happened.

0, or 2 for bad input, 130 when interrupted, 141 when nobody reads the output any more; anything else is a bug with its traceback.

Importing this module, which every command does before torch, lets the threads of PyTorch's OpenMP sleep while they wait (`share_cores`): by
default they spin, and beside other processes on the same cores a `fitprune fit` was then more than ten times slower (docs/LOG.md).

    fitprune show llava-v1.5-7b 0.65
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Container, MutableMapping, Sequence
from contextlib import ExitStack, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

from .distributed.launch import joined, own_rank, should_print, started
from .errors import FitPruneError

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # how threads of OpenMP wait, where the user says so


def share_cores(environment: MutableMapping[str, str], loaded: Container[str]) -> None:
    """Makes OpenMP's threads wait without spinning, and no more of them than a container may use, unless the user has set either.

    Args:
        environment: Read once, when torch is imported. loaded: Modules that are there already; with torch among them it is too late.
    """
    if "torch" in loaded:
        return
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    quota = cpu_quota()
    if quota is not None and quota < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(quota))


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """How many cores' time a container may use, rounded up; None without a limit, which OpenMP by itself does not know of."""
    try:
        allowed, period = file.read_text(encoding="ascii").split()
        return max(1, -(-int(allowed) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def guarded(
    run: Callable[[argparse.Namespace], int],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    together: Callable[[argparse.Namespace], bool] = lambda args: False,
) -> int:
    """Runs a command: bad input is one line on stderr and exit code 2, an interruption 130; anything else is a bug.

    Args:
        together: Whether the processes of a launcher share this command's work. It finds them in `args.workers`, and only
            the first of them prints.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a bar or an accent shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        with redirect_stderr(nowhere) if own_rank() else nullcontext():
            args = parser.parse_args(argv)
        try:
            if together(args):
                if own_rank():
                    stack.enter_context(redirect_stdout(nowhere))
                args.workers = stack.enter_context(joined(getattr(args, "tensor_parallel", False)))
            return run(args)
        except FitPruneError as error:
            if should_print(error):
                print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            if not own_rank():
                print(f"\n{parser.prog}: interrupted; what was written stays, run the same command again to continue", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 141


def always(args: argparse.Namespace) -> bool:
    """`together` of a command that always shares its work."""
    return True


def alone(command: str) -> None:
    """Refuses a launcher's processes for a command that does not share its work.

    Raises:
        FitPruneError: if there are several.
    """
    if started() > 1:
        raise FitPruneError(f"{command} runs in one process: start it without torchrun or accelerate launch")


share_cores(os.environ, sys.modules)
