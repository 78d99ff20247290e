"""What goes wrong, said in one line.

Every error that a user can cause (a missing file, a ratio of 1.7, a recipe for another model, a static cache) is a
`FitPruneError` whose message says what is wrong and what to do. The command line prints that line and exits with 2;
anything else is a bug of ours and keeps its traceback.

    python -c "import fitprune; fitprune.Recipe.published('llava-v1.5-7b', 0.65)"
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FitPruneError(ValueError):
    """Bad input, described in one line that says what to do about it."""


class UnsupportedError(FitPruneError, NotImplementedError):
    """Something that pruning cannot do (static cache, assisted decoding, training, …); the message says why."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns whatever another library raises over a user's file into one line that begins with `what`.

    Only for code that does nothing but make something of that file: a fault of ours would be taken for the file's. The
    original error stays attached.
    """
    try:
        yield
    except FitPruneError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise FitPruneError(f"{what}: {said}") from error


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to one line for a message of ours; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
