"""POPE: is there a … in the image? How often a model says yes to what is not there.

Scored as LLaVA's `eval_pope.py` does, with its flags and printed lines. An answer is "no" if its first sentence has the
word No, no or not (spelled so, between single spaces, commas aside) and "yes" in every other case, "NO" and nothing
included. A split's answers are those whose question has its category. "Yes" counts as positive; what LLaVA reports is the
mean F1 of the splits.

Which label is an answer's: the original compares the i-th answer with the i-th label and looks at nothing else. The label
files exist in several revisions, so here the i-th label is that of the i-th *question* of the split, and only if both are
about the same picture and question; else the label is looked up by these, which the report says, and a question that no
label is about is refused. With the files that belong together (docs/evaluation.md) this is the original's figure.

Departures: a share of nothing is 0.0 (a model that always says no has no precision), where the original stops; splits
come sorted by name, not in the folder's order, which is chance; other files in the label folder are passed over. A split
without an answer is printed with zeros and does not count in the mean, so part of the questions can be scored.

    python -m fitprune.evaluation.benchmarks.pope --annotation-dir coco --question-file llava_pope_test.jsonl --result-file …
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import FitPruneError
from ...questions import Question, read_questions
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, check_asked, check_once, printed, read_answers, share, tool
from .pope_labels import PREFIX, SUFFIX, Labels, read_labels

QUESTIONS, LABELS = "llava_pope_test.jsonl", "coco"
NO = frozenset(["No", "no", "not"])


@dataclass(frozen=True)
class Split:
    """What the answers to one split came to: right and wrong ones by what was said, and how many said yes.

    `note` says that labels were looked up.
    """

    category: str
    samples: int
    true_yes: int
    false_yes: int
    true_no: int
    false_no: int
    said_yes: int
    note: str = ""

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


def _placed(path: Path) -> tuple[dict[int | str, tuple[Question, int]], Counter[str | None]]:
    """The questions of a file by id, each with its place in its split, and how many every split has."""
    placed: dict[int | str, tuple[Question, int]] = {}
    sizes: Counter[str | None] = Counter()
    for question in read_questions(path):
        if question.question_id in placed:
            raise FitPruneError(
                f"{path} has question {question.question_id!r} twice, so answers do not tell their split: number questions through"
            )
        placed[question.question_id] = question, sizes[question.category]
        sizes[question.category] += 1
    return placed, sizes


def evaluate(labels: Path, questions: Path, answers: Path) -> tuple[list[Split], list[float] | None]:
    """Scores an answers file.

    Args:
        labels: Folder of the label files.
        questions: The question file, whose categories say which split a question is in.
    Returns:
        The splits; what each answer is worth, None if there are answers to splits without labels (they do not count).
    Raises:
        FitPruneError: for files that are missing, torn or of another kind; an answer to an unknown or another question, or the
            second to one; a question without label; no answer to any split.
    """
    truth, (asked, sizes) = read_labels(labels), _placed(questions)
    pairs: dict[str, list[tuple[bool, bool]]] = {split: [] for split in truth}  # (said yes, yes is right)
    worth: list[float] = []
    elsewhere: Counter[str] = Counter()
    lines = read_answers(answers)
    check_once(replace(line, prompt="") for line in lines)
    check_asked(lines, {key: question.text for key, (question, _) in asked.items()}, questions)
    for answer in lines:
        if answer.question_id not in asked:
            raise FitPruneError(f"{answer.where} answers question {answer.question_id!r}, not in {questions}")
        question, place = asked[answer.question_id]
        split = question.category
        if split is None or split not in truth:
            continue
        right, moved = truth[split].of(question, place, sizes[split])
        yes = not right if answer.skipped else says_yes(answer.text)  # the official rule would take nothing for yes
        pairs[split].append((yes, right))
        worth.append(float(yes == right))
        elsewhere[split] += moved
    if not worth:
        raise FitPruneError(f"{answers} answers no question of {', '.join(truth)}: give {QUESTIONS} and its answers")
    splits = [_count(split, found, truth[split], elsewhere[split]) for split, found in pairs.items()]
    return splits, worth if len(worth) == len(lines) else None


def _count(category: str, pairs: Sequence[tuple[bool, bool]], labels: Labels, elsewhere: int) -> Split:
    found = Counter(pairs)
    counts = {"true_yes": (True, True), "false_yes": (True, False), "true_no": (False, False), "false_no": (False, True)}
    note = f"{category}: {labels.file} has another order than the question file, so labels were looked up by picture and question"
    return Split(
        category, len(pairs), **{name: found[pair] for name, pair in counts.items()}, said_yes=sum(yes for yes, _ in pairs),
        note=f"{note} ({elsewhere} of {len(pairs)} stood elsewhere)" if elsewhere else "",
    )  # fmt: skip


def report(splits: Sequence[Split]) -> str:
    """What the original prints, then notes on labels that were looked up."""
    return "\n".join([*(split.report for split in splits), *(split.note for split in splits if split.note)])


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
