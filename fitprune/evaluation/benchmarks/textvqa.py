"""TextVQA: questions about words in images; how many of the ten people who were asked gave the model's answer.

Scores an answers file against `TextVQA_0.5.1_val.json`, with the file formats, flags and printed lines of LLaVA's
`eval_textvqa`. An answer that c of the ten people gave is worth 0.3, 0.6, 0.9 for c = 1, 2, 3 and 1 from four on; both
sides are spelled alike first (normalise.py). Answer lines carry the image's id, which repeats, as `question_id`;
so an annotation is found by image id and question, and the question has to be read out of the prompt.

One addition: a prompt of a single line is the question itself (question files without an instruction line; the
original stops there). Left out: TextVQA's other splits, whose answers are not public.

    python -m fitprune.evaluation.benchmarks.textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeGuard

from ...errors import FitPruneError
from ...files import read_json
from ...questions import is_question_id
from ..benchmark import Benchmark, Result
from ..normalise import normalise
from ..scoring import ANSWERS, printed, read_answers, shortened, tool

ANNOTATIONS = "TextVQA_0.5.1_val.json"
ANSWERS_PER_QUESTION = 10  # people asked; the measure is defined for ten
MATCHES_FOR_FULL_SCORE = 3

Annotations = Mapping[tuple[int | str, str], list[str]]  # (image id, question in lower case) → the ten answers


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """What an answer is worth, 0 to 1: a third per match, at most 1, averaged over leaving out each of the ten people.

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
    raise FitPruneError(f"no TextVQA question can be found in the prompt {shortened(prompt)}: expected a question and an instruction line")


def read_annotations(path: Path) -> Annotations:
    """The ten answers of every question of an annotation file, by image id and question in lower case.

    Raises:
        FitPruneError: for a missing or torn file and one that is not in TextVQA's format.
    """
    content = read_json(path, "annotation file")
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FitPruneError(f"annotation file {path} has no list 'data': give one in the format of {ANNOTATIONS}")
    annotations: dict[tuple[int | str, str], list[str]] = {}
    for number, entry in enumerate(entries, start=1):
        image_id, question, answers = (entry.get(key) if isinstance(entry, dict) else None for key in ("image_id", "question", "answers"))
        if not (is_question_id(image_id) and isinstance(question, str) and _are_strings(answers)):
            raise FitPruneError(f"annotation file {path}: entry {number} of 'data' needs image_id, question and a list of answers")
        annotations[image_id, question.lower()] = answers
    return annotations


def evaluate(annotations: Annotations, answers: Path) -> Result:
    """Scores an answers file. Only the answers that it holds count, be they fewer than the annotated questions.

    Raises:
        FitPruneError: for a file that is missing, torn, empty or of another format, and an answer to an unknown question.
    """
    worth = []
    for answer in read_answers(answers, by_prompt=True):
        try:
            asked = answer.question_id, question_of(answer.prompt)
            if asked not in annotations:
                raise FitPruneError(f"image {asked[0]!r} with question {shortened(asked[1])} is not in the annotation file")
            worth.append(0.0 if answer.skipped else soft_accuracy(answer.text, annotations[asked]))
        except FitPruneError as problem:
            raise FitPruneError(f"{answer.where}: {problem}") from None
    accuracy = 100.0 * (sum(worth) / len(worth))
    report = f"{answers.stem}\nSamples: {len(worth)}\nAccuracy: {accuracy:.2f}%"
    return Result(accuracy, {"samples": float(len(worth)), "accuracy": accuracy}, report, worth)


def score(data: Path, answers: Path, out: Path, annotations: str = ANNOTATIONS) -> Result:
    """Scores an answers file; writes nothing."""
    return evaluate(read_annotations(data / annotations), answers)


def scored_with(annotations: Path) -> Benchmark:
    """TextVQA with another annotation file, wherever that lies."""
    path = str(annotations.absolute())
    return replace(BENCHMARK, needs=(path,), score=partial(score, annotations=path))


def reports(args: argparse.Namespace) -> Iterator[str]:
    """Name, samples and accuracy of one answers file, of every *.jsonl in a folder, or of both."""
    if args.result_file is None and args.result_dir is None:
        raise FitPruneError("nothing to score: give --result-file or --result-dir")
    annotations = read_annotations(args.annotation_file)
    if args.result_file is not None:
        yield f"{evaluate(annotations, args.result_file).report}\n"
    try:
        files = [] if args.result_dir is None else sorted(args.result_dir.iterdir())
    except OSError as problem:
        raise FitPruneError(f"cannot list --result-dir {args.result_dir}: {problem.strerror or problem}") from None
    for file in files:
        yield f"{evaluate(annotations, file).report}\n" if file.suffix == ".jsonl" else f"Skipping {file.name}"


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `eval_textvqa`."""
    parser = tool("eval_textvqa", "TextVQA accuracy of answers files.", annotation_file=f"annotations, in the format of {ANNOTATIONS}")
    parser.add_argument("--result-file", type=Path, help=f"{ANSWERS} to score")
    parser.add_argument("--result-dir", type=Path, help="folder: score every *.jsonl in it, sorted by name")
    return printed(reports, parser, argv)


def _are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


BENCHMARK = Benchmark(
    name="textvqa", title="TextVQA", folder="textvqa", questions="llava_textvqa_val_v051_ocr.jsonl", images="train_images",
    metric="accuracy, %", needs=(ANNOTATIONS,), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
