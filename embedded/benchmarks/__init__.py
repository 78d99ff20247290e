"""Small benchmarks about drawn pictures, in the official files of eleven benchmarks, and a calibration set.

Why: the evaluation of real checkpoints and of the embedded model is then one and the same code, and its file formats are
tried out on every run. The layout is that of LLaVA's `playground/data/eval`. One file per benchmark, a function `build`
that makes its files in memory; a further benchmark is a file here and a line in `BENCHMARKS`.

    python -m embedded.benchmarks /tmp/eval --pictures 5
    python -m embedded.benchmarks /tmp/judge --scenes cluttered
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from fitprune.errors import FitPruneError

from ..scene import Draw, draw
from . import calibration, gqa, mmbench, mmbench_cn, mme, mmvet, pope, scienceqa, seed_bench, textvqa, vizwiz, vqav2
from .encode import Files

BENCHMARKS: dict[str, Callable[..., Files]] = {
    "textvqa": textvqa.build,
    "gqa": gqa.build,
    "MME": mme.build,
    "pope": pope.build,
    "scienceqa": scienceqa.build,
    "seed_bench": seed_bench.build,
    "mmbench": mmbench.build,
    "mmbench_cn": mmbench_cn.build,
    "vqav2": vqav2.build,
    "vizwiz": vizwiz.build,
    "mm-vet": mmvet.build,
    "calibration": calibration.build,
}  # name of the folder: its files, for a number of pictures (in MME: of each category)


def write(dest: Path, pictures: int | None = None, overwrite: bool = False, draw: Draw = draw) -> dict[str, Files]:
    """Makes all benchmarks below `dest`; each folder is replaced whole or not at all, nothing else is touched.

    Args:
        dest: A folder, made if need be.
        pictures: Pictures per benchmark (in MME: per category); None for each one's own number.
        overwrite: Replace folders of these names that are there, whatever they hold.
        draw: Scenes; cluttered ones are the judge's.
    Returns:
        What was written, by folder.
    Raises:
        FitPruneError: fewer than one picture; a folder that is there and not empty; a disk that refuses.
    """
    if pictures is not None and pictures < 1:
        raise FitPruneError(f"cannot make benchmarks about {pictures} pictures: give 1 or more")
    made: dict[str, Files] = {}
    try:
        dest.mkdir(parents=True, exist_ok=True)
        for name in BENCHMARKS:
            if not overwrite and (dest / name).exists() and any((dest / name).iterdir()):
                raise FitPruneError(f"{dest / name} is not empty: give another folder, or --overwrite to replace it whole")
        for name, build in BENCHMARKS.items():
            made[name] = build(draw=draw) if pictures is None else build(pictures, draw)
            _replace(dest / name, made[name])
    except OSError as error:
        raise FitPruneError(f"cannot write benchmarks to {dest}: {error.strerror or error}") from None
    return made


def _replace(folder: Path, files: Files) -> None:
    """Writes files beside a folder, then lets them take its place; if that fails, the folder is as it was."""
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    new, old = temporary / "new", temporary / "old"
    try:
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary)
