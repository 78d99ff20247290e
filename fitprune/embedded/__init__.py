"""What ships inside: a small trained LLaVA-1.5, pictures with questions in TextVQA's format, and a calibration set.

The model (5.19 M parameters, 144 visual tokens, 8 layers, bf16) reads numbers and words, and names colours, shapes,
counts and relations in synthetic pictures. Evaluation questions (438, the first 120 pictures) and calibration
questions (145, the other 40) share no picture. It is the default everywhere, so that every command runs with no
download; it says nothing about how real photographs are answered.

    python -c "from fitprune.embedded import embedded; print(embedded())"
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

MODEL_NAME = "embedded"


@dataclass(frozen=True)
class Embedded:
    """Paths of everything that ships."""

    model: Path
    questions: Path
    calibration: Path
    annotations: Path
    images: Path


def embedded() -> Embedded:
    """Where the shipped files are in this installation."""
    root = Path(str(resources.files(__name__)))
    data = root / "data"
    return Embedded(
        root / "model", data / "questions.jsonl", data / "calibration.jsonl", data / "annotations.json", data
    )


def model_path() -> Path:
    """The folder of the shipped checkpoint (transformers layout)."""
    return embedded().model
