"""Writing a file so that it is either the old one or the new one, never half of it.

Recipes and statistics are written once after minutes of work and read by later runs; a torn one must not exist. The
bytes go to a temporary file in the same folder, to the disk, and then take the final name in one step.

    python -c "from fitprune.files import write_atomically; write_atomically('/tmp/a/b.txt', b'whole')"
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from .errors import FitPruneError


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, creating its folders; on any failure the file that was there stays as it was.

    Raises:
        FitPruneError: when the folder cannot be created or written to.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~current_umask()
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise FitPruneError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def lock(file: BinaryIO) -> bool:
    """Locks an open file for this process until it is closed; False if another process has it.

    True as well where files cannot be locked (some network disks, Windows).
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, else the folder above it that does: what decides whether it can be made."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def writable(path: Path) -> bool:
    """Whether a file can be made there: found out before a model runs for minutes."""
    nearest = nearest_existing(path.absolute().parent)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def check_writable(folder: Path) -> None:
    """Finds out before a model runs whether results can be kept in a folder, which need not be there yet.

    Raises:
        FitPruneError: if it is a file, or cannot be written to.
    """
    there = nearest_existing(folder)
    if not there.is_dir():
        raise FitPruneError(f"{there} is a file: name a folder for the results")
    if not os.access(there, os.W_OK):
        raise FitPruneError(f"{there} cannot be written to: choose another place for the results")


def current_umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
