"""The folder of uploaded pictures: what is old goes, and all of it together stays below a bound.

Gradio takes away only what it has finished receiving; an upload that was cut off stays as a file that nobody knows. So age is
looked at here, by the files themselves, and for all of them. What was there at the beginning (the examples) stays.

    python -m pytest tests/web/test_demo_uploads.py
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..untrusted import MAX_BYTES

CLEANED, KEPT = 600, 3600  # seconds: how often uploads are looked through, how old they may become
MOST = 16 * MAX_BYTES  # bytes of all uploads together


class Uploads:
    """A folder, the files that stay in it, and how many bytes are on their way into it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.coming = folder.resolve(), 0
        self.ours = frozenset(self._files())

    def sweep(self) -> None:
        """Deletes what is older than `KEPT` seconds."""
        oldest = time.time() - KEPT
        for path in self._files():
            if path not in self.ours and _seen(path)[0] < oldest:
                path.unlink(missing_ok=True)

    async def sweeping(self) -> None:
        """Sweeps every `CLEANED` seconds until it is cancelled."""
        while True:
            self.sweep()
            await asyncio.sleep(CLEANED)

    @contextmanager
    def room(self, size: int) -> Iterator[bool]:
        """Whether an upload of so many bytes finds room; until the end of the block it counts as on its way.

        The oldest go first. What is on its way may be in the folder in part already, so it counts twice.
        """
        fits = 2 * (self.coming + size) <= MOST
        there = sorted((*_seen(path), path) for path in self._files() if path not in self.ours)
        held = sum(taken for _, taken, _ in there)
        for _, taken, path in there:
            if held + self.coming + size <= MOST or not fits or not size:
                break
            path.unlink(missing_ok=True)
            held -= taken
        self.coming += size * fits
        try:
            yield fits
        finally:
            self.coming -= size * fits

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


def _seen(path: Path) -> tuple[float, int]:
    """When a file was last written, and its bytes; of one that has gone meanwhile (0, 0)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return found.st_mtime, found.st_size
