"""The folder of uploads: old files go, the examples stay, and together they stay below a bound."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from fitprune.web.demo import uploads as module
from fitprune.web.demo.uploads import MAX_AGE, Uploads


def file(path: Path, size: int, age: float = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 100)
    file(tmp_path / "example.jpg", 50, 2 * MAX_AGE)
    return Uploads(tmp_path)


def names(uploads: Uploads) -> set[str]:
    return {path.name for path in uploads.folder.rglob("*") if path.is_file()}


def test_old_files_go_whoever_made_them(uploads: Uploads) -> None:
    file(uploads.folder / "tmpcut", 5, MAX_AGE + 9)
    file(uploads.folder / "hash" / "old.png", 5, MAX_AGE + 9)
    file(uploads.folder / "hash" / "new.png", 5, MAX_AGE - 99)

    async def scene() -> None:
        async with uploads.sweeping():
            await asyncio.sleep(0.01)

    asyncio.run(scene())
    assert names(uploads) == {"example.jpg", "new.png"}


def test_the_oldest_make_room(uploads: Uploads) -> None:
    for at in range(4):
        file(uploads.folder / f"{at}.png", 20, 100 - at)
    with uploads.reserve(0) as fits:
        assert fits
    assert len(names(uploads)) == 5
    with uploads.reserve(50) as fits:
        assert fits
    assert names(uploads) == {"example.jpg", "2.png", "3.png"}


def test_what_is_on_its_way_counts(uploads: Uploads) -> None:
    file(uploads.folder / "there.png", 50)
    with uploads.reserve(30) as first:
        file(uploads.folder / "tmppart", 30)
        with uploads.reserve(30) as second:
            assert (first, second) == (True, False)
        assert "tmppart" in names(uploads)
        with uploads.reserve(20) as third:
            assert third
        assert names(uploads) == {"example.jpg", "tmppart"}
    assert uploads.incoming == 0
