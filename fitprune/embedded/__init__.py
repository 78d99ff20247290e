"""What ships inside: a small trained model of each family, benchmarks in their official formats, and a calibration set.

The models read numbers and words, and name colours, shapes, counts and relations in synthetic pictures. The LLaVA-1.5
("embedded") is the default; the LLaVA-NeXT, the LLaVA-HR and the Qwen3-VL were trained on from it. A README.md beside each is its card.
The benchmarks lie as in LLaVA's `playground/data/eval` (textvqa, gqa, MME, pope, scienceqa, seed_bench, mmbench,
mmbench_cn, vqav2, vizwiz, mm-vet) and share no picture with each other (but for MMBench's two languages), with calibration
or with training. They are the default everywhere, so that every command runs with no download; they say nothing about how
real photographs are answered, and multiple choice was not trained (the models answer with a word instead of a letter: 0).
The folder `embedded/` of the repository makes it all.

    python -c "from fitprune.embedded import embedded; print(embedded())"
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

MODEL_NAME = "embedded"  # the default: a LLaVA-1.5
MODELS = {
    MODEL_NAME: "model",
    "embedded-next": "model_next",
    "embedded-hr": "model_hr",
    "embedded-qwen": "model_qwen",
}  # name: folder in here


@dataclass(frozen=True)
class Embedded:
    """Paths of everything that ships.

    model: the LLaVA-1.5 (`model_path` knows the others). data: the benchmarks, one folder each; questions, annotations and
    images are TextVQA's, the default of commands that are given none; calibration and calibration_images are what
    recipes of these models are fitted on.
    """

    model: Path
    data: Path

    @property
    def questions(self) -> Path:
        return self.data / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"

    @property
    def annotations(self) -> Path:
        return self.data / "textvqa" / "TextVQA_0.5.1_val.json"

    @property
    def images(self) -> Path:
        return self.data / "textvqa" / "train_images"

    @property
    def picture(self) -> Path:
        """A picture with a number and a word in it."""
        return self.images / "5eed000000000006.jpg"

    @property
    def calibration(self) -> Path:
        return self.data / "calibration" / "statistical_analysis_data.jsonl"

    @property
    def calibration_images(self) -> Path:
        return self.data / "calibration" / "images"


def embedded() -> Embedded:
    """Where the shipped files are in this installation."""
    root = Path(str(resources.files(__name__)))
    return Embedded(root / "model", root / "data")


def model_path(name: str = MODEL_NAME) -> Path:
    """The folder of a shipped checkpoint (transformers layout); name as in `MODELS`."""
    return embedded().model.with_name(MODELS[name])
