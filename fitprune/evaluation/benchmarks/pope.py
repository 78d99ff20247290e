"""POPE: is there a … in the image? How often a model says yes to what is not there.

Scored as LLaVA's `eval_pope.py` does, with its flags and printed lines. An answer is "no" if its first sentence has the
word No, no or not (spelled so, between single spaces, commas aside) and "yes" in every other case, "NO" and nothing
included. A split's answers are those whose question has its category; the i-th is compared with the i-th label, so order
decides and ids are not looked at. "Yes" counts as positive; what LLaVA reports is the mean F1 of the splits.

Departures: a share of nothing is 0.0 (a model that always says no has no precision), where the original stops; splits
come sorted by name, not in the folder's order, which is chance; other files in the label folder are passed over. A split
without an answer is printed with zeros and does not count in the mean, so part of the questions can be scored.

    python -m fitprune.evaluation.benchmarks.pope --annotation-dir coco --question-file llava_pope_test.jsonl --result-file …
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import FitPruneError
from ...files import read_json_lines
from ...questions import read_questions
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, printed, read_answers, share, tool

QUESTIONS, LABELS = "llava_pope_test.jsonl", "coco"
PREFIX, SUFFIX = "coco_pope_", ".json"
NO = frozenset(["No", "no", "not"])


@dataclass(frozen=True)
class Split:
    """What the answers to one split came to: right and wrong ones by what was said, and how many said yes."""

    category: str
    samples: int
    true_yes: int
    false_yes: int
    true_no: int
    false_no: int
    said_yes: int

    @property
    def accuracy(self) -> float:
        return share(self.true_yes + self.true_no, self.true_yes + self.true_no + self.false_yes + self.false_no)

    @property
    def precision(self) -> float:
        return share(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        return share(self.true_yes, self.true_yes + self.false_no)

    @property
    def f1(self) -> float:
        return share(2 * self.precision * self.recall, self.precision + self.recall)

    @property
    def yes_ratio(self) -> float:
        return share(self.said_yes, self.samples)

    @property
    def figures(self) -> dict[str, float]:
        """All of them, in the order of the original's last line."""
        return {
            "F1": self.f1, "accuracy": self.accuracy, "precision": self.precision, "recall": self.recall, "yes ratio": self.yes_ratio,
        }  # fmt: skip

    @property
    def report(self) -> str:
        """The lines of the original."""
        lines = [
            f"Category: {self.category}, # samples: {self.samples}",
            "TP\tFP\tTN\tFN\t",
            f"{self.true_yes}\t{self.false_yes}\t{self.true_no}\t{self.false_no}",
            f"Accuracy: {self.accuracy}\nPrecision: {self.precision}\nRecall: {self.recall}",
            f"F1 score: {self.f1}\nYes ratio: {self.yes_ratio}",
            ", ".join(f"{value:.3f}" for value in self.figures.values()),
            "=" * 36,
        ]
        return "\n".join(lines)


def says_yes(text: str) -> bool:
    """Whether an answer counts as yes."""
    first_sentence = text.split(".")[0].replace(",", "")
    return NO.isdisjoint(first_sentence.split(" "))


def read_labels(folder: Path) -> dict[str, list[bool]]:
    """Whether yes is right, question by question, of every `coco_pope_<split>.json` in a folder, sorted by split.

    Raises:
        FitPruneError: for a folder without such a file, and a line without label.
    """
    files = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))
    if not files:
        raise FitPruneError(f"{folder} holds no {PREFIX}<split>{SUFFIX}: name the folder of POPE's label files")
    labels: dict[str, list[bool]] = {}
    for file in files:
        split = labels[file.name.removeprefix(PREFIX).removesuffix(SUFFIX)] = []
        for number, item in read_json_lines(file, "label file"):
            if not isinstance(item.get("label"), str):
                raise FitPruneError(f"label file {file} line {number} has no label, yes or no: get the file again")
            split.append(item["label"] != "no")
    return labels


def evaluate(labels: Path, questions: Path, answers: Path) -> tuple[list[Split], list[float] | None]:
    """Scores an answers file.

    Args:
        labels: Folder of the label files.
        questions: The question file, whose categories say which split a question is in.
    Returns:
        The splits; what each answer is worth, None if there are answers to splits without labels (they do not count).
    Raises:
        FitPruneError: for files that are missing, torn or of another kind, an answer to an unknown question, more answers
            than labels, and no answer to any split.
    """
    truth = read_labels(labels)
    category = {question.question_id: question.category for question in read_questions(questions)}
    said: dict[str, list[bool]] = {split: [] for split in truth}
    worth: list[float] = []
    lines = read_answers(answers)
    for answer in lines:
        if answer.question_id not in category:
            raise FitPruneError(f"{answer.where} answers question {answer.question_id!r}, not in {questions}")
        split = category[answer.question_id]
        if split is None or split not in said:
            continue
        right = truth[split]
        if len(said[split]) == len(right):
            raise FitPruneError(f"{answers} has more answers to {split!r} than the {len(right)} labels: score one run")
        yes = says_yes(answer.text)
        if answer.skipped:  # the official rule would take nothing for yes
            yes = not right[len(said[split])]
        worth.append(float(yes == right[len(said[split])]))
        said[split].append(yes)
    if not worth:
        raise FitPruneError(f"{answers} answers no question of {', '.join(truth)}: give {QUESTIONS} and its answers")
    splits = [_count(split, said[split], truth[split]) for split in truth]
    return splits, worth if len(worth) == len(lines) else None


def _count(category: str, said: list[bool], truth: list[bool]) -> Split:
    pairs = Counter(zip(said, truth, strict=False))
    counts = {"true_yes": (True, True), "false_yes": (True, False), "true_no": (False, False), "false_no": (False, True)}
    return Split(category, len(said), **{name: pairs[pair] for name, pair in counts.items()}, said_yes=said.count(True))


def report(splits: Sequence[Split]) -> str:
    """What the original prints."""
    return "\n".join(split.report for split in splits)


def score(data: Path, answers: Path, out: Path) -> Result:
    """The mean F1 of the splits; writes nothing."""
    splits, per_answer = evaluate(data / LABELS, data / QUESTIONS, answers)
    answered = [split for split in splits if split.samples]
    details = {f"{split.category} {name}": 100 * value for split in answered for name, value in split.figures.items()}
    return Result(100 * share(sum(split.f1 for split in answered), len(answered)), details, report(splits), per_answer)


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `eval_pope`."""
    parser = tool(
        "eval_pope", "POPE's figures of an answers file, split by split.", annotation_dir=f"folder of {PREFIX}<split>{SUFFIX}",
        question_file=f"{QUESTIONS}, for the split of each question", result_file=f"{ANSWERS} to score",
    )  # fmt: skip
    return printed(lambda args: [report(evaluate(args.annotation_dir, args.question_file, args.result_file)[0])], parser, argv)


BENCHMARK = Benchmark(
    name="pope", title="POPE", folder="pope", questions=QUESTIONS, images="val2014", metric="mean F1, %",
    needs=tuple(f"{LABELS}/{PREFIX}{split}{SUFFIX}" for split in ("adversarial", "popular", "random")), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
