"""One run in chunks: each is answered into a file of its own, by a process started by hand, then they are joined in order.

File k of n chunks is `n_k.jsonl`, the whole is `merge.jsonl` beside it, as the LLaVA family's scripts name them. A chunk
that is answered again continues its file; joining asks for all of them, complete. Under torchrun no chunks are needed.

    fitprune eval --limit 4 --num-chunks 2 --chunk-idx 0
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import FitPruneError
from ..files import read_bytes, write_atomically
from ..questions import Question, chunk

MERGED = "merge.jsonl"


def slices(questions: Sequence[Question], num_chunks: int) -> list[list[Question]]:
    """Every chunk in order; fewer than `num_chunks` where rounding up leaves nothing for the last ones; errors as `chunk`."""
    parts = [chunk(questions, num_chunks, 0)]
    while (done := sum(map(len, parts))) < len(questions):
        parts.append(chunk(questions, num_chunks, done // len(parts[0])))
    return parts


def chunk_file(folder: Path, num_chunks: int, chunk_idx: int) -> Path:
    """Where a chunk's answers are."""
    return folder / f"{num_chunks}_{chunk_idx}.jsonl"


def begun(folder: Path) -> int:
    """Into how many chunks the run was cut whose files are there, 0 where there are none; files of several runs are refused."""
    counts = {int(found[1]) for path in folder.glob("*_*.jsonl") if (found := re.fullmatch(r"(\d+)_\d+", path.stem))}
    if len(counts) > 1:
        said = " and ".join(map(str, sorted(counts)))
        raise FitPruneError(f"{folder} holds answers in {said} chunks: remove all but one run's files, or give --overwrite")
    return max(counts, default=0)


def merge(folder: Path, questions: Sequence[Question], num_chunks: int) -> Path:
    """Joins the chunks of a run; returns the joined file.

    Raises:
        FitPruneError: for a chunk that is missing or not answered to its end.
    """
    whole = []
    for number, part in enumerate(slices(questions, num_chunks)):
        path = chunk_file(folder, num_chunks, number)
        content = read_bytes(path, f"chunk {number} of {num_chunks}") if path.exists() else b""
        done = content.count(b"\n")
        if done != len(part) or not content.endswith(b"\n"):
            raise FitPruneError(
                f"{path} has {done} of {len(part)} answers: run --num-chunks {num_chunks} --chunk-idx {number} to its end first"
            )
        whole.append(content)
    write_atomically(folder / MERGED, b"".join(whole))
    return folder / MERGED
