"""The folder of uploaded images: old ones are deleted, and all of them together are bounded.

Gradio's own `delete_cache` does not do this. It deletes what `Blocks.upload_file_set` lists, and an upload gets in there once it
has arrived whole; one that was cut off stays as tmp… for good: with delete_cache=(1, 1) it was still there after the server's
end (Gradio 6.31). So age is judged by the files themselves. Files of the beginning (the examples) stay.

    python -m pytest tests/web/test_demo_uploads.py
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from ..untrusted import MAX_BYTES

SWEEP_EVERY, MAX_AGE = 600, 3600  # seconds
MAX_TOTAL_BYTES = 16 * MAX_BYTES


class Uploads:
    """A folder, the files that stay in it, and how many bytes are on their way into it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.incoming = folder.resolve(), 0
        self.examples = frozenset(self.folder.rglob("*"))

    def sweep(self) -> None:
        """Deletes uploads older than `MAX_AGE`."""
        for written, _, path in self._uploaded():
            if written < time.time() - MAX_AGE:
                path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def sweeping(self, _: Any = None) -> AsyncIterator[None]:
        """Sweeps every `SWEEP_EVERY` seconds within the block; the lifespan of an ASGI app."""

        async def forever() -> None:
            while True:
                self.sweep()
                await asyncio.sleep(SWEEP_EVERY)

        task = asyncio.create_task(forever())
        try:
            yield
        finally:
            task.cancel()

    @contextlib.contextmanager
    def reserve(self, size: int) -> Iterator[bool]:
        """Whether an upload of so many bytes fits, for which the oldest are deleted; it counts as incoming until the block ends.

        Incoming uploads may be in the folder in part already, so they count twice.
        """
        if 2 * (self.incoming + size) > MAX_TOTAL_BYTES:
            yield False
            return
        uploaded = self._uploaded()
        excess = sum(taken for _, taken, _ in uploaded) + self.incoming + size - MAX_TOTAL_BYTES
        for _, taken, path in uploaded:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= taken
        self.incoming += size
        try:
            yield True
        finally:
            self.incoming -= size

    def _uploaded(self) -> list[tuple[float, int, Path]]:
        """When each uploaded file was last written, its bytes and its path, oldest first."""
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # renamed or deleted meanwhile
                status = path.stat()
                if path not in self.examples and stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime, status.st_size, path))
        return sorted(found)
