"""The answers file: JSON lines in question order, written as the answers come, resumed where a run was cut.

A long evaluation gets interrupted. Each answer is on disk before the next one is computed, and opening the file again
finds out what is done: a torn last line is cut off, complete lines are kept untouched, and a file that belongs to other
questions or another model is refused before a byte of it changes. So a rerun answers nothing twice, and the finished
file is the one that an uninterrupted run would have written (only `answer_id` is random).

A line: {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}, in this order, as LLaVA writes it.
`prompt` is the question's text byte for byte, because scorers look answers up by it (ScienceQA and MMBench keep another
one, `Question.prompt`; MMBench's further fields follow the text).

The file is locked while it is open, where the system and the disk can do that: a second run on it is refused.

    python -c "from fitprune.evaluation.answers import *; print(model_id('checkpoints/llava/checkpoint-500/'))"
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import FitPruneError
from ..files import lock, model_names
from ..questions import Question

SKIPPED = "skipped"  # in the metadata of a line without an answer: why its question was not asked


def model_id(model_path: str) -> str:
    """The name that answer lines carry for a model: the last part of its path, or `parent_checkpoint-N`."""
    return model_names(model_path)[0]


class AnswersFile:
    """Answers to `questions`, in order, at `path`; opening it resumes what is there.

    Attributes:
        path: The file. Missing folders above it are created.
        questions: All questions that the finished file answers.
        done: How many of them are answered; the next `write` answers `questions[done]`.
        mended: How many of these were skipped although their pictures can be used now.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        questions: Sequence[Question],
        model_id: str,
        overwrite: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens or creates the file.

        Args:
            overwrite: Empty the file instead of resuming it.
            metadata: The `metadata` of every line, {} as in the original unless given (JSON values). A line that
                carries other metadata belongs to another run (another recipe, say) and is not resumed.
        Raises:
            FitPruneError: if a line answers another question or comes from another model or run, or the file cannot
                be opened. The file is then as it was.
        """
        from shortuuid import uuid  # here, so that commands that answer nothing run without it

        self.path = Path(path)
        self._new_id: Callable[[], str] = uuid
        self.questions = list(questions)
        self.done = self.mended = 0
        self._model_id = model_id
        self._metadata: dict[str, Any] = json.loads(json.dumps(dict(metadata or {})))
        self._file: BinaryIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: a failed write leaves nothing behind that closing the file would write again
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            if not lock(self._file):
                raise FitPruneError(f"another run is writing {self.path}: wait for it, or stop it")
            content = b"" if overwrite else self._file.read()
            kept = self._resume(content)
            self._file.truncate(kept)
            self._file.seek(0, os.SEEK_END)
            if kept and content[kept - 1 : kept] != b"\n":  # whole but for its newline
                self._append(b"\n")
        except FitPruneError:
            self.close()
            raise
        except OSError as problem:
            self.close()
            raise FitPruneError(f"cannot open answers file {self.path}: {problem.strerror or problem}") from None

    @property
    def remaining(self) -> list[Question]:
        """The questions that are still to be answered, in order."""
        return self.questions[self.done :]

    def write(self, texts: Sequence[str | None]) -> None:
        """Append the answers to the next `len(texts)` questions, None for one that is skipped; they are on disk when this returns.

        Raises:
            ValueError: for more answers than there are questions left, or a closed file (a caller's mistake).
            FitPruneError: when the disk refuses (full, say); what was written before is kept and can be resumed.
        """
        if isinstance(texts, str):
            raise ValueError("write takes a list of answers, not one string")
        if self._file is None:
            raise ValueError("the answers file is closed")
        if len(texts) > len(self.questions) - self.done:
            raise ValueError(f"{len(texts)} answers for the {len(self.questions) - self.done} questions that are left")
        lines = [self._line(question, text) for question, text in zip(self.remaining, texts, strict=False)]
        try:
            self._append(b"".join(lines))
        except OSError as problem:
            self.close()
            raise FitPruneError(
                f"cannot write answers file {self.path}: {problem.strerror or problem}; run again to resume after the last whole line"
            ) from None
        self.done += len(texts)

    def close(self) -> None:
        """Close the file; twice does no harm."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, data: bytes) -> None:
        """Write all of `data` at the end and wait until it is on disk."""
        assert self._file is not None
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def _line(self, question: Question, text: str | None) -> bytes:
        entry = {
            "question_id": question.question_id,
            "prompt": question.saved,
            "text": text or "",
            **dict(question.more),
            "answer_id": self._new_id(),
            "model_id": self._model_id,
            "metadata": self._metadata if text is not None else {**self._metadata, SKIPPED: question.unusable},
        }
        return json.dumps(entry).encode() + b"\n"

    def _resume(self, content: bytes) -> int:
        """Check the lines of an existing file, set `done`, and return how many bytes of it to keep."""
        *lines, tail = content.rstrip(b"\0").split(b"\n")  # a crash of the machine can leave zeros after the data
        for line in lines:
            self._check(line)
            self.done += 1
        kept = sum(len(line) + 1 for line in lines)
        if tail and _parse(tail) is not None:
            self._check(tail)
            self.done += 1
            return kept + len(tail)
        if tail and not self._is_torn_answer(tail):
            raise self._refusal("is not an answer to its question")
        return kept

    def _check(self, line: bytes) -> None:
        """Raise unless `line` is an answer to question number `done`."""
        entry = _parse(line)
        if entry is None or not isinstance(entry.get("text"), str):
            raise self._refusal("is damaged or not an answer")
        if self.done >= len(self.questions):
            raise self._refusal(f"is one more than the {len(self.questions)} questions")
        question = self.questions[self.done]
        asked = entry.get("question_id")
        if type(asked) is not type(question.question_id) or asked != question.question_id:
            raise self._refusal(f"answers question {asked!r}, not {question.question_id!r}")
        if entry.get("prompt") != question.saved:
            raise self._refusal("answers another text than the question file has")
        if any(entry.get(key) != json.loads(json.dumps(value)) for key, value in question.more):
            raise self._refusal(f"has another {' or '.join(key for key, _ in question.more)} than the question")
        if entry.get("model_id") != self._model_id:
            raise self._refusal(f"comes from model {entry.get('model_id')!r}, not {self._model_id!r}")
        metadata = entry.get("metadata") or {}
        if (dict(metadata, **{SKIPPED: ""}) if isinstance(metadata, dict) else metadata) != {**self._metadata, SKIPPED: ""}:
            raise self._refusal(f"comes from a run with metadata {entry.get('metadata')!r}, not {self._metadata!r}")
        self.mended += SKIPPED in metadata and not question.unusable

    def _is_torn_answer(self, tail: bytes) -> bool:
        """Whether an unfinished last line can be the beginning of the next answer (else it is somebody's data)."""
        if self.done >= len(self.questions):
            return False
        question = self.questions[self.done]
        for ascii_only in (True, False):
            fixed = json.dumps({"question_id": question.question_id, "prompt": question.saved}, ensure_ascii=ascii_only)
            head = fixed[:-1].encode("utf-8", "surrogatepass") + b', "text": "'
            if tail.startswith(head) or head.startswith(tail):
                return True
        return False

    def _refusal(self, reason: str) -> FitPruneError:
        return FitPruneError(
            f"answers file {self.path} cannot be resumed: line {self.done + 1} {reason}; "
            "use --overwrite to start anew, or another answers file"
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line as a JSON object, or None."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
