"""Question files: JSON lines, one question about one image each, as LLaVA's loaders read them; and which to fit on.

A line is an object with `question_id` (a number or a string; TextVQA and MME repeat it, so it is no key), `image` (a path inside the image
folder), `text` (all that the user says, instruction included, without `<image>`) and an optional `category`. For models that know videos
it may have a `video` (a file in the image folder, or a folder there with an image per frame) instead of the image or beside it, with `fps`
and `max_frames` for how many of its frames are looked at. Other keys are ignored. Blank lines are skipped; anything else that is not a
question is refused with its line number, because a question that is silently lost shifts every benchmark that depends on line order.

Fitting needs images and questions, no answers: a `Calibration` takes evenly spaced ones, so that a file sorted by kind is
covered. Question files of other shapes (ScienceQA's list, MMBench's table) are read by their benchmark, into the same
`Question`.

    python -c "from fitprune.questions import *; print(read_questions('questions.jsonl')[0])"
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from PIL import Image

from ..embedded import embedded
from ..errors import FitPruneError
from ..files import read_json_lines
from ..images.reading import read_image
from ..images.video import FPS, MOST, Video, read_video
from .official import with_hint

if TYPE_CHECKING:
    from torch import Tensor

    from ..families import VLM
    from ..families.protocols import Visual

SAMPLES = 128  # calibration questions taken unless told otherwise
IMAGE, VIDEO = "<image>", "<video>"  # stand for an image and a video in prompts, and so in no question that has one
OTHER_NAMES = ("images", "image_id", "image_path", "image_file", "image_name", "imageId", "img", "picture")  # not for `image`
Item = TypeVar("Item")


@dataclass(frozen=True)
class Question:
    """One line of a question file.

    Attributes:
        question_id: The file's own name for it, kept as a number or a string; may repeat.
        image: Path of the image relative to the image folder, or None for a question without one.
        text: The user's text, byte for byte as in the file (scorers look answers up by it).
        category: The file's free label, if it has one.
        prompt: What the answers file keeps as `prompt`, where that is not the text (`saved` is either).
        content: The image file itself, where the question file holds it; `image` then only names it in messages.
        stored: Its picture is read as it is stored, not turned upright, as LLaVA's loader reads a benchmark's.
        unusable: Why its picture cannot be used, so that it is not asked (evaluation/usable.py).
        more: Further fields of its answer line, (name, JSON value) each.
        video: Path of a video relative to the image folder, or None. fps, max_frames: As `read_video`.
    """

    question_id: int | str
    image: str | None
    text: str
    category: str | None = None
    prompt: str | None = None
    content: bytes | None = field(default=None, repr=False)
    more: tuple[tuple[str, Any], ...] = ()
    video: str | None = None
    fps: float = FPS
    max_frames: int = MOST
    stored: bool = False
    unusable: str = ""

    @property
    def visual(self) -> bool:
        """Whether there is anything to look at, and so to prune."""
        return bool(self.image or self.video) and not self.unusable

    @property
    def saved(self) -> str:
        """The `prompt` of its answer line."""
        return self.text if self.prompt is None else self.prompt


def questions_digest(questions: Sequence[Question]) -> bytes:
    """What tells lists of questions apart: ids, images, videos and texts."""

    def told(q: Question) -> list[Any]:
        return [q.question_id, q.image, q.text, *([q.video, q.fps, q.max_frames] if q.video else []), *(["skipped"] if q.unusable else [])]

    return json.dumps([told(question) for question in questions]).encode()


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """All questions of a JSON-lines file, in file order.

    Raises:
        FitPruneError: for a missing or unreadable file, a file without questions, and a line that is torn or is not a
            question (the message names file and line, or what the file is if it is one of a benchmark's own: official.py).
    """
    try:
        questions = [_question(entry, f"{path} line {number}") for number, entry in read_json_lines(path, "question file")]
    except FitPruneError as error:
        raise with_hint(error, path) from None
    if not questions:
        raise FitPruneError(f"question file {path} holds no questions: give a file with one JSON object per line")
    return questions


def as_stored(read: Callable[[Path], list[Question]]) -> Callable[[Path], list[Question]]:
    """The same way to read questions, with pictures as they are stored: for benchmarks and the paper's scripts."""
    return lambda path: [replace(question, stored=True) for question in read(path)]


def is_question_id(value: object) -> TypeGuard[int | str]:
    """Whether a JSON value can be a question's id: a string or a whole number (true and false are neither)."""
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def chunk(questions: Sequence[Item], num_chunks: int, chunk_idx: int) -> list[Item]:
    """The share of process `chunk_idx` out of `num_chunks`: consecutive slices of ceil(N / num_chunks) items.

    The slices joined in index order are the whole sequence again, so answers may be concatenated. Rounding up can
    leave nothing for the last indices (10 items in 6 chunks make 5 slices of 2): such an index is refused, as the
    original's is.

    Raises:
        FitPruneError: for fewer than one chunk and for an index outside the slices that there are.
    """
    if num_chunks < 1:
        raise FitPruneError(f"--num-chunks {num_chunks} is not possible: give 1 or more")
    size = -(-len(questions) // num_chunks)
    slices = -(-len(questions) // size) if size else 0
    if not 0 <= chunk_idx < slices:
        raise FitPruneError(
            f"--chunk-idx {chunk_idx} is out of range: {len(questions)} questions in --num-chunks {num_chunks} make "
            f"{slices} slices of {size}, so the index goes from 0 to {slices - 1}"
            if slices
            else "there are no questions to cut into chunks: check the question file"
        )
    return list(questions[chunk_idx * size : (chunk_idx + 1) * size])


def _question(entry: dict[str, Any], where: str) -> Question:
    """One parsed line as a Question; `where` begins the message when it is not one."""
    for key in ("question_id", "text"):
        if key not in entry:
            raise FitPruneError(f"{where} has no {key!r}: a question needs question_id, image and text")
    question_id, image, text, category = (entry.get(key) for key in ("question_id", "image", "text", "category"))
    if "answer_id" in entry:
        raise FitPruneError(f"{where} is an answer, not a question: give the question file that was asked")
    if image is None and (other := next((key for key in OTHER_NAMES if key in entry), None)):
        raise FitPruneError(f"{where} has {other!r} and no 'image': name the picture's path there 'image', or it is asked without")
    if not is_question_id(question_id):
        raise FitPruneError(f"{where}: question_id must be a whole number or a string, not {question_id!r}")
    if not isinstance(text, str):
        raise FitPruneError(f"{where}: text must be a string, not {text!r}")
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise FitPruneError(f"{where}: text has half of a surrogate pair, which is no character: repair the line")
    if IMAGE in text:
        raise FitPruneError(f"{where}: text contains {IMAGE}: leave it out, the image's place is before the text")
    video, fps, frames = entry.get("video"), entry.get("fps", FPS), entry.get("max_frames", MOST)
    for kind, path in (("image", image), ("video", video)):
        if path is not None and not isinstance(path, str):
            raise FitPruneError(f"{where}: {kind} must be a path inside the image folder, not {path!r}")
    if video and VIDEO in text:
        raise FitPruneError(f"{where}: text contains {VIDEO}: leave it out, the video's place is before the text")
    if video and not (_number(fps) and fps > 0 and isinstance(frames, int) and not isinstance(frames, bool) and frames > 0):
        raise FitPruneError(f"{where}: fps must be a number and max_frames a whole number, both above 0, not {fps!r} and {frames!r}")
    label = None if category is None else str(category)
    return Question(question_id, image, text, label, **({"video": video, "fps": float(fps), "max_frames": frames} if video else {}))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Calibration:
    """Where calibration questions come from, how many are taken, how many are run at a time, how the file is read."""

    question_file: str | Path
    image_folder: str | Path
    samples: int = SAMPLES
    batch_size: int = 8
    read: Callable[[Path], list[Question]] = read_questions

    @classmethod
    def shipped(cls, samples: int = SAMPLES, batch_size: int = 8) -> Calibration:
        """The embedded set, for embedded models."""
        return cls(embedded().calibration, embedded().calibration_images, samples, batch_size)

    @classmethod
    def nothing(cls, what: str) -> Calibration:
        """Where nothing may be fitted on: asked for questions it raises a FitPruneError that says what to do instead."""

        def refuse(path: Path) -> list[Question]:
            raise FitPruneError(what)

        return cls("", "", read=refuse)

    def questions(self) -> list[Question]:
        """Evenly spaced questions that have an image or a video.

        Raises:
            FitPruneError: if there is none, or fewer than one sample is asked for.
        """
        if self.samples < 1:
            raise FitPruneError(f"cannot fit on {self.samples} samples: give at least 1")
        illustrated = [question for question in self.read(Path(self.question_file)) if question.visual]
        if not illustrated:
            raise FitPruneError(f"{self.question_file} has no question with an image to fit on")
        count = min(self.samples, len(illustrated))
        return [illustrated[index * len(illustrated) // count] for index in range(count)]

    def together(self, questions: Sequence[Question]) -> int:
        """How many of its questions are run at a time: one where there is a video, as videos have unlike numbers of frames."""
        return 1 if any(question.video for question in questions) else self.batch_size


def open_image(question: Question, image_folder: str | Path, pixels: bool = True) -> Image.Image:
    """The image of a question that has one, from the folder or from the question itself; `pixels` as `read_image`.

    Raises:
        FitPruneError: unreadable image.
    """
    if question.content is not None:
        return read_image(str(question.image), pixels, question.content, question.stored)
    return read_image(Path(image_folder) / str(question.image), pixels, stored=question.stored)


def shown(question: Question, image_folder: str | Path, pixels: bool = True) -> list[Visual]:
    """The image and the video of a question, as far as it has them; errors as `open_image` and `read_video`."""
    found: list[Visual] = [open_image(question, image_folder, pixels)] if question.image else []
    if question.video:
        found.append(open_video(question, image_folder))
    return found


def open_video(question: Question, image_folder: str | Path) -> Video:
    """The video of a question that has one; errors as `read_video`."""
    return read_video(Path(image_folder) / str(question.video), question.fps, question.max_frames)


def prompt_of(vlm: VLM, question: Question) -> str:
    """The whole prompt of a question, in the checkpoint's template."""
    return vlm.prompt(question.text, image=bool(question.image), video=bool(question.video))


def encode_questions(vlm: VLM, questions: Sequence[Question], image_folder: str | Path, padding_side: str = "left") -> dict[str, Tensor]:
    """Model inputs of a batch of questions, with their images and videos where they have one.

    Raises:
        FitPruneError: unreadable image or video.
    """
    return vlm.encode([(prompt_of(vlm, question), shown(question, image_folder)) for question in questions], padding_side)
