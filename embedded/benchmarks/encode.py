"""Pictures and questions as bytes: what the files of all benchmarks have in common.

A benchmark is made in memory, as a dictionary from path to bytes: it can then be tested without a disk and written in
one go. JPEG bytes depend on the machine's libjpeg (the pixels before it do not), so files are the same for the same
Pillow, not for every Pillow.

    python -c "from embedded.benchmarks.encode import *; print(json_lines([question(1, 'a.jpg', 'Is it red?', 'verify')]))"
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

from ..render import render
from ..scene import Scene
from ..tokens import INSTRUCTION

Files = dict[str, bytes]  # path below the benchmark's folder: content
JPEG = {"quality": 92, "subsampling": 0, "optimize": True}


def picture(scene: Scene) -> bytes:
    """The picture of a scene as a JPEG file; colour in full resolution, since letters are a few pixels wide."""
    file = io.BytesIO()
    render(scene).save(file, "JPEG", **JPEG)
    return file.getvalue()


def question(question_id: int | str, image: str, text: str, category: str) -> dict[str, Any]:
    """One line of a question file as LLaVA writes it; the instruction is the second line of `text`."""
    return {"question_id": question_id, "image": image, "text": f"{text}\n{INSTRUCTION}", "category": category}


def json_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """One JSON object per line, UTF-8."""
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()


def json_file(content: Any) -> bytes:
    """One JSON value, UTF-8."""
    return json.dumps(content).encode()
