"""TextVQA: how many of the ten people who were asked gave the model's answer.

Scores an answers file against `TextVQA_0.5.1_val.json`, with the file formats, flags and printed lines of LLaVA's
`eval_textvqa`. An answer that c of the ten people gave is worth 0.3, 0.6, 0.9 for c = 1, 2, 3 and 1 from four on; both
sides are spelled alike first (normalise.py). Answer lines carry the image's id, which repeats, as `question_id`;
so an annotation is found by image id and question, and the question has to be read out of the prompt.

One addition: a prompt of a single line is the question itself (question files without an instruction line; the
original stops there).

Left out: TextVQA's other splits, whose answers are not public.

    python -m fitprune.evaluation.textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ..errors import FitPruneError
from ..files import read_json_lines
from ..questions import is_question_id
from .normalise import normalise

ANSWERS_PER_QUESTION = 10  # people asked; the measure is defined for ten
MATCHES_FOR_FULL_SCORE = 3

Annotations = Mapping[tuple[int | str, str], list[str]]  # (image id, question in lower case) → the ten answers


@dataclass(frozen=True)
class TextVQAScore:
    """Result of one answers file.

    Attributes:
        samples: Number of answers scored.
        accuracy: Mean soft accuracy in percent, 0 to 100.
        per_answer: Soft accuracy of each answer, 0 to 1, in file order.
    """

    samples: int
    accuracy: float
    per_answer: list[float]


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """What an answer is worth, 0 to 1: a third per match, at most 1, averaged over leaving out each of the ten people.

    Args:
        prediction: The model's answer, spelled anyhow.
        answers: The ten people's answers, spelled anyhow.
    Raises:
        FitPruneError: if there are not ten.
    """
    if len(answers) != ANSWERS_PER_QUESTION:
        raise FitPruneError(f"TextVQA's accuracy needs {ANSWERS_PER_QUESTION} human answers per question, not {len(answers)}")
    said, people = normalise(prediction), [normalise(answer) for answer in answers]
    matches = people.count(said)
    left_out = (min(1.0, (matches - (person == said)) / MATCHES_FOR_FULL_SCORE) for person in people)
    return sum(left_out) / len(people)


def question_of(prompt: str) -> str:
    """The question inside a saved prompt, in lower case.

    The first rule that fits: "OCR tokens: … Question: … Short answer:"; three lines with a "Reference OCR token: " one
    before or after the question; question and instruction on two lines; (ours) a single line.

    Raises:
        FitPruneError: if none fits.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) in (1, 2):
        return lines[0].lower()
    raise FitPruneError(f"no TextVQA question can be found in the prompt {_shorten(prompt)}: expected a question and an instruction line")


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """The ten answers of every question of an annotation file, by image id and question in lower case.

    Raises:
        FitPruneError: for a missing or torn file and one that is not in TextVQA's format.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise FitPruneError(f"annotation file {path} does not exist: check the path") from None
    except OSError as problem:
        raise FitPruneError(f"cannot read annotation file {path}: {problem.strerror or problem}") from None
    except (ValueError, RecursionError):
        raise FitPruneError(f"annotation file {path} is torn or not JSON: get it again") from None
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FitPruneError(f"annotation file {path} has no list 'data': give one in the format of TextVQA_0.5.1_val.json")
    annotations: dict[tuple[int | str, str], list[str]] = {}
    for number, entry in enumerate(entries, start=1):
        image_id, question, answers = (entry.get(key) if isinstance(entry, dict) else None for key in ("image_id", "question", "answers"))
        if not (is_question_id(image_id) and isinstance(question, str) and _are_strings(answers)):
            raise FitPruneError(f"annotation file {path}: entry {number} of 'data' needs image_id, question and a list of answers")
        annotations[image_id, question.lower()] = answers
    return annotations


def evaluate(annotation_file: str | os.PathLike[str], result_file: str | os.PathLike[str]) -> TextVQAScore:
    """Score an answers file. Only the answers that it holds count, be they fewer than the annotated questions.

    Raises:
        FitPruneError: for files that are missing, torn or of another format, an answer to an unknown question, and a
            file without answers.
    """
    return _score(read_annotations(annotation_file), result_file)


def main(argv: Sequence[str] | None = None) -> int:
    """The script: name, samples and accuracy of one answers file, of every *.jsonl in a folder, or of both.

    Returns the exit status: 0, or 2 after one line on stderr that says what is wrong.
    """
    parser = argparse.ArgumentParser(prog="eval_textvqa", description="TextVQA accuracy of answers files.")
    parser.add_argument("--annotation-file", help="annotations, in the format of TextVQA_0.5.1_val.json")
    parser.add_argument("--result-file", help="answers file (JSON lines) to score")
    parser.add_argument("--result-dir", help="folder: score every *.jsonl in it, sorted by name")
    args = parser.parse_args(argv)
    try:
        if args.annotation_file is None:
            raise FitPruneError("no annotations: give --annotation-file TextVQA_0.5.1_val.json")
        if args.result_file is None and args.result_dir is None:
            raise FitPruneError("nothing to score: give --result-file or --result-dir")
        annotations = read_annotations(args.annotation_file)
        if args.result_file is not None:
            _report(annotations, args.result_file)
        if args.result_dir is not None:
            _report_folder(annotations, args.result_dir)
    except FitPruneError as problem:
        print(f"eval_textvqa: {problem}", file=sys.stderr)
        return 2
    return 0


def _report_folder(annotations: Annotations, folder: str) -> None:
    try:
        names = sorted(os.listdir(folder))
    except OSError as problem:
        raise FitPruneError(f"cannot list --result-dir {folder}: {problem.strerror or problem}") from None
    for name in names:
        if name.endswith(".jsonl"):
            _report(annotations, os.path.join(folder, name))
        else:
            print(f"Skipping {name}")


def _report(annotations: Annotations, result_file: str) -> None:
    print(lines(result_file, _score(annotations, result_file)) + "\n")


def lines(result_file: str | os.PathLike[str], score: TextVQAScore) -> str:
    """What the script prints for one answers file."""
    name = os.path.splitext(os.path.basename(result_file))[0]
    return f"{name}\nSamples: {score.samples}\nAccuracy: {score.accuracy:.2f}%"


def _score(annotations: Annotations, result_file: str | os.PathLike[str]) -> TextVQAScore:
    per_answer = []
    for number, entry in read_json_lines(result_file, "answers file"):
        where = f"answers file {result_file} line {number}"
        image_id, prompt, text = entry.get("question_id"), entry.get("prompt"), entry.get("text")
        if not (is_question_id(image_id) and isinstance(prompt, str) and isinstance(text, str)):
            raise FitPruneError(f"{where} needs question_id, prompt and text: score a file that model_vqa_loader wrote")
        try:
            question = question_of(prompt)
            if (image_id, question) not in annotations:
                raise FitPruneError(f"image {image_id!r} with question {_shorten(question)} is not in the annotation file")
            per_answer.append(soft_accuracy(text, annotations[image_id, question]))
        except FitPruneError as problem:
            raise FitPruneError(f"{where}: {problem}") from None
    if not per_answer:
        raise FitPruneError(f"answers file {result_file} holds no answers: there is nothing to score")
    return TextVQAScore(len(per_answer), 100.0 * (sum(per_answer) / len(per_answer)), per_answer)


def _are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


if __name__ == "__main__":
    sys.exit(main())
