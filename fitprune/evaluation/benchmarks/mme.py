"""MME: two yes/no questions about each image, in ten categories of perception and four of cognition.

Two steps, as with LLaVA and MME's own tool. `convert_answer_to_mme` looks up the truth in the release folder and writes a
text file per category. `calculation` takes its lines in consecutive pairs, one image each, so the two lines of an image are
written together whatever the order of the answers, and an image with one answer or three is refused. A
category's score is the share of right answers plus the share of images with both right, times 100 each. An answer is
read from its first four characters, lower-cased: yes if they hold "yes", else no if they hold "no" (as in "not" and
"know"), else other, which is wrong. What papers call MME is the total of perception.

Departures: categories that were not answered are left out of the totals and named (the tool stops), so part of the
questions and the embedded benchmark can be scored; pairs of lines about two images, in files that another program made,
count as in the tool, and are said. The release folder is found as people unpack it (`release_in`).
Left out: precision, recall and the counts behind them, which the tool computes and does not print.

    cd playground/data/eval/MME && python -m fitprune.evaluation.benchmarks.mme --experiment llava-v1.5-7b
    python -m fitprune.evaluation.benchmarks.mme --results_dir playground/data/eval/MME/eval_tool/answers/llava-v1.5-7b
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import FitPruneError
from ...files import read_bytes, write_atomically
from ..benchmark import Benchmark, Result
from ..layout import folders_below, is_litter
from ..scoring import check_once, printed, read_answers, share, tool

RELEASE, QUESTIONS = "MME_Benchmark_release_version", "llava_mme.jsonl"
SECTIONS = {
    "Perception": ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    "Cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
CATEGORIES = [name for names in SECTIONS.values() for name in names]
INSTRUCTION = "Answer the question using a single word or phrase."
PLEASE = "Please answer yes or no."
PREFIX = 4  # characters of an answer that are read
PAIR = 2  # questions about an image

Truth = Mapping[tuple[str, str, str], str]  # (category, text file, question) → "Yes" or "No"


@dataclass(frozen=True)
class Line:
    """A line of a category's file: the image's text file, the question, the right answer and what was said."""

    file: str
    question: str
    truth: str
    answer: str

    def __str__(self) -> str:
        return f"{self.file}\t{self.question}\t{self.truth}\t{self.answer}\n"

    @property
    def is_right(self) -> bool:
        return parse(self.answer) == self.truth.lower()


@dataclass(frozen=True)
class Category:
    """What the answers of a category came to."""

    outcomes: tuple[tuple[str, str], ...]  # (right answer, answer as read) of every question, in order
    images: int  # pairs of lines
    both_right: int  # pairs with both answers right
    mixed: int  # pairs about two images: the order of the lines is not that of the questions
    skipped: tuple[str, ...]  # lines without four fields, which count for nothing but their image

    @property
    def acc(self) -> float:
        return share(sum(truth == said for truth, said in self.outcomes), len(self.outcomes))

    @property
    def acc_plus(self) -> float:
        return share(self.both_right, self.images)

    @property
    def score(self) -> float:
        return self.acc * 100 + self.acc_plus * 100


def parse(answer: str) -> str:
    """What an answer counts as: "yes", "no" or "other"."""
    start = answer.lower()[:PREFIX]
    return next((word for word in ("yes", "no") if word in start), "other")


def release_in(folder: Path) -> Path:
    """The folder of MME's categories in or below a folder: newer archives hold `MME_Benchmark/` beside `eval_tool/` and a readme.

    Raises:
        FitPruneError: if there is none, or several.
    """
    found = sorted({path.parent for path in folders_below(folder) if path.name in CATEGORIES and _text_files(path)})
    if not found:
        raise FitPruneError(f"{folder} holds no questions of MME: docs/evaluation.md says where to get its release folder")
    if len(found) > 1:
        raise FitPruneError(f"{folder} holds MME's categories more than once, in {found[0]} and {found[1]}: leave one of them there")
    return found[0]


def _text_files(category: Path) -> list[Path]:
    own = category / "questions_answers_YN"
    return sorted(file for file in (own if own.is_dir() else category).glob("*.txt") if not is_litter(file.name))


def read_truth(release: Path) -> Truth:
    """All questions of a release folder with their answers; text files lie beside the images or in a folder of their own.

    Raises:
        FitPruneError: for a folder that is missing or without questions, and a line that is no question with its answer.
    """
    truth = {}
    for category in sorted(path for path in release_in(release).glob("*") if path.is_dir() and not is_litter(path.name)):
        for file in _text_files(category):
            for line in read_bytes(file, "MME's questions").decode("utf-8", "replace").split("\n"):
                if not line.strip():
                    continue
                question, _, answer = line.strip().partition("\t")
                if answer.lower() not in ("yes", "no"):
                    raise FitPruneError(f"{file}: a line is not a question, a tab and Yes or No: get the release again")
                truth[category.name, file.name, question] = answer
    return truth


def convert_answer_to_mme(release: Path, answers: Path) -> list[tuple[str, Line]]:
    """The category of each answer and its line in that category's file, in the order of the answers.

    Args:
        answers: Answers file; `question_id` is the image, `prompt` the question with or without an instruction line.
    Raises:
        FitPruneError: for files that are missing, torn or of another kind, a question that the release does not have, and one that
            is answered twice.
    """
    truth = read_truth(release)
    lines = []
    found = read_answers(answers)
    check_once(found)
    for answer in found:
        parts = str(answer.question_id).split("/")
        category, file = parts[0], f"{parts[-1].split('.')[0]}.txt"
        question = answer.prompt
        if INSTRUCTION in question:
            question = question.replace(INSTRUCTION, "").strip()
        if PLEASE not in question:
            question = f"{question} {PLEASE}"
            if (category, file, question) not in truth:  # a few questions have two spaces there
                question = question.replace(f" {PLEASE}", f"  {PLEASE}")
        if (category, file, question) not in truth:
            raise FitPruneError(f"{answer.where} is to {answer.prompt!r} about {answer.question_id}, which {release} does not ask")
        lines.append((category, Line(file, question, truth[category, file, question], answer.text)))
    return lines


def paired(lines: Sequence[tuple[str, Line]], answers: Path) -> tuple[list[tuple[str, Line]], list[str]]:
    """The lines with those of an image together, otherwise in their order; and a note if they were apart.

    Raises:
        FitPruneError: for an image of which not two questions are answered.
    """
    images: dict[tuple[str, str], list[tuple[str, Line]]] = {}
    for category, line in lines:
        images.setdefault((category, line.file), []).append((category, line))
    for (category, file), pair in images.items():
        if len(pair) != PAIR:
            said = "one question" if len(pair) == 1 else f"{len(pair)} questions"
            raise FitPruneError(f"{answers} answers {said} about {category}/{file}, two of them for each image: answer both")
    together = [line for pair in images.values() for line in pair]
    apart = sum(one != two for one, two in zip(lines, together, strict=True))
    note = f"{apart} of {len(lines)} answers were not beside the other one about their image, so their lines were brought together"
    return together, [note] if apart else []


def write_categories(lines: Sequence[tuple[str, Line]], folder: Path) -> dict[str, Path]:
    """Writes a text file for each category; what else is in the folder stays. Returns the files by category."""
    files: dict[str, Path] = {}
    for category in dict.fromkeys(category for category, _ in lines):
        files[category] = folder / f"{category}.txt"
        content = "".join(str(line) for name, line in lines if name == category)
        write_atomically(files[category], content.encode("utf-8", "replace"))
    return files


def calculation(files: Mapping[str, Path]) -> dict[str, Category]:
    """Scores the text files of categories (others than MME's fourteen do not count), in MME's order.

    Raises:
        FitPruneError: for a file that is missing, an odd number of lines, and a right answer that is neither yes nor no.
    """
    scored = {name: _category(files[name]) for name in CATEGORIES if name in files}
    if not scored:
        raise FitPruneError("none of MME's categories is answered: give answers to llava_mme.jsonl")
    return scored


def _category(path: Path) -> Category:
    text = read_bytes(path, "category file").decode("utf-8", "replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    if len(lines) % PAIR:
        raise FitPruneError(f"{path} has {len(lines)} lines, two of them for each image: answer both of its questions")
    outcomes: list[tuple[str, str]] = []
    skipped: list[str] = []
    both_right = mixed = 0
    for at in range(0, len(lines), PAIR):
        pair = []
        for line in lines[at : at + PAIR]:
            fields = line.split("\t")
            if len(fields) != 4:
                skipped.append(line)
                continue
            pair.append(Line(*fields))
            if fields[2].lower() not in ("yes", "no"):
                raise FitPruneError(f"{path}: the right answer {fields[2]!r} is neither yes nor no: convert the answers again")
        outcomes += [(line.truth.lower(), parse(line.answer)) for line in pair]
        both_right += sum(line.is_right for line in pair) == PAIR
        mixed += len({line.file for line in pair}) > 1
    return Category(tuple(outcomes), len(lines) // PAIR, both_right, mixed, tuple(skipped))


def totals(scored: Mapping[str, Category]) -> dict[str, float]:
    """Perception and cognition: the sums of their categories' scores; a section without any is left out."""
    found = {section: [scored[name].score for name in names if name in scored] for section, names in SECTIONS.items()}
    return {section: sum(scores) for section, scores in found.items() if scores}


def report(scored: Mapping[str, Category]) -> str:
    """The lines of the official tool, and a line on what does not come from all of MME in order."""
    lines = []
    for section, total in totals(scored).items():
        names = [name for name in SECTIONS[section] if name in scored]
        lines.append(f"=========== {section} ===========")
        lines += [line for name in names for line in scored[name].skipped]
        lines += [f"total score: {total} ", ""]
        lines += [f"\t {name}  score: {scored[name].score}" for name in names] + ["", ""]
    if missing := [name for name in CATEGORIES if name not in scored]:
        lines.append(f"not answered, so not in the totals: {', '.join(missing)}")
    lines += [
        f"{name}: {one.mixed} pairs of lines are about two images, so acc+ means nothing: keep the order of the questions"
        for name, one in scored.items()
        if one.mixed
    ]
    return "\n".join(lines)


def score(data: Path, answers: Path, out: Path) -> Result:
    """Scores an answers file; writes the categories' files into a folder of its name in `out`."""
    lines, notes = paired(in_order := convert_answer_to_mme(data / RELEASE, answers), answers)
    files = write_categories(lines, out / answers.stem)
    scored = calculation(files)
    found = totals(scored)
    details = found | {name: one.score for name, one in scored.items()}
    for name, one in scored.items():
        details |= {f"{name} acc": one.acc * 100, f"{name} acc+": one.acc_plus * 100}
    whole = not any(one.skipped for one in scored.values())
    return Result(
        headline=found.get("Perception"),
        details=details,
        report="\n".join([report(scored), *notes]),
        per_answer=[float(line.is_right) for _, line in in_order] if whole else None,
        written=tuple(files.values()),
    )


def work(args: argparse.Namespace) -> Iterator[str]:
    """Converts, scores, or both."""
    if args.experiment is None and args.results_dir is None:
        raise FitPruneError("nothing to do: give --experiment to convert its answers, --results_dir to score converted ones")
    if args.experiment is not None:
        answers = args.data / "answers" / f"{args.experiment}.jsonl"
        lines, notes = paired(convert_answer_to_mme(args.data / RELEASE, answers), answers)
        yield from notes
        write_categories(lines, args.data / "eval_tool" / "answers" / args.experiment)
    if args.results_dir is not None:
        files = {name: args.results_dir / f"{name}.txt" for name in CATEGORIES}
        yield report(calculation({name: file for name, file in files.items() if file.exists()}))


def main(argv: Sequence[str] | None = None) -> int:
    """`convert_answer_to_mme` and `calculation`."""
    parser = tool("mme", "Convert answers for MME's tool, and compute its scores.")
    parser.add_argument("--experiment", help="convert answers/EXPERIMENT.jsonl into eval_tool/answers/EXPERIMENT/")
    parser.add_argument("--results_dir", type=Path, help="score the text files in this folder")
    parser.add_argument("--data", type=Path, default=".", help="MME's folder, for --experiment (default: the current one)")
    return printed(work, parser, argv)


BENCHMARK = Benchmark(
    name="mme", title="MME", folder="MME", questions=QUESTIONS, images=RELEASE,
    metric="perception score", needs=(RELEASE,), score=score, group=2,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
