"""Files of ours and of others: read with a line that says what is wrong, written whole or not at all.

Recipes and statistics are written once after minutes of work and read by later runs; a torn one must not exist. The
bytes go to a temporary file in the same folder, to the disk, and then take the final name in one step.

    python -c "from fitprune.files import write_atomically; write_atomically('/tmp/a/b.txt', b'whole')"
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

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


def model_names(path: str | os.PathLike[str]) -> list[str]:
    """What a checkpoint is called, by its path or hub name: what the path says, then what the folder is called that a link leads to.

    That is the last part, or `parent_checkpoint-N` for a step of a training (as LLaVA calls it). In the cache of a hub the folder's name is
    a hash, or has its dots replaced: the repository's name counts.
    """
    said, place = str(path).strip(), Path(path).expanduser()
    found = [name for name in (_name(said), _name(os.path.realpath(place)) if place.is_dir() else None) if name]
    return list(dict.fromkeys(found)) or ["model"]


def _name(path: str) -> str | None:
    """As `model_names`, of the path as it is written; None where that says nothing ("..")."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or parts[-1] in ("..", "~"):
        return None
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):  # …/models--org--name/snapshots/<hash>
        parts = parts[:-2]
    if parts[-1].startswith("models--"):
        return parts[-1].removeprefix("models--").split("--", 1)[-1]
    if parts[-1].startswith("checkpoint-"):
        return "_".join(parts[-2:])
    return parts[-1].replace("___", ".")  # ModelScope's cache


def file_name(model: str, ratio: float | None = None, *more: str) -> str:
    """A readable file name stem such as `llava-1.5-7b-hf-r60`."""
    return "-".join([model_names(model)[0], *([] if ratio is None else [f"r{round(ratio * 100, 4):g}"]), *more])


def read_json_lines(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers (from 1); lines end at a newline and nowhere else.

    Args:
        path: The file, UTF-8.
        what: What to call the file in messages ("question file").
    Raises:
        FitPruneError: for a file that cannot be read, and (on reaching it) a line that is not a JSON object.
    """
    for number, line in enumerate(read_bytes(path, what).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise FitPruneError(f"{path} line {number} is torn or not JSON: repair the {what}, or leave that line out") from None
        if not isinstance(entry, dict):
            raise FitPruneError(f"{path} line {number} is not a JSON object: a {what} has one object per line")
        yield number, entry


def read_journal(path: Path, about: Mapping[str, Any]) -> list[Any]:
    """What a journal of JSON lines holds behind its first line, which says what it is about; begins it if there is none.

    A torn last line, of a run that was cut, is dropped.

    Raises:
        FitPruneError: for a journal about something else, a torn line before the last, and a file that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")
            return []
    except OSError as error:
        raise FitPruneError(f"cannot use {path} as a journal: {error.strerror or error}") from None
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) - 1:
                path.write_text("".join(f"{one}\n" for one in lines[:-1]), encoding="utf-8")
                break
            raise FitPruneError(f"{path} line {number + 1} is torn: remove the file and run again") from None
        rows.append(row)
    if not rows or rows[0] != about:
        raise FitPruneError(f"{path} is about another model, other questions or settings: name another file, or remove it")
    return rows[1:]


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """A JSON file's value.

    Raises:
        FitPruneError: for a file that cannot be read or is not JSON.
    """
    content = read_bytes(path, what)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise FitPruneError(f"{what} {path} is torn or not JSON: get it again") from None


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """A file without its byte-order mark.

    Raises:
        FitPruneError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise FitPruneError(f"{what} {path} does not exist: check the path") from None
    except (OSError, ValueError) as problem:
        raise FitPruneError(f"cannot read {what} {path}: {getattr(problem, 'strerror', None) or problem}") from None
