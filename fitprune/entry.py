"""How every command of ours begins and ends: its processes meet, its errors are one line, its exit code says what happened.

0, or 2 for bad input, 130 when interrupted, 141 when nobody reads the output any more; anything else is a bug with its traceback.

    fitprune show llava-v1.5-7b 0.65
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, redirect_stderr, redirect_stdout

from .distributed.launch import joined, own_rank, should_print, started
from .errors import FitPruneError


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
