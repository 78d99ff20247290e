"""GQA: questions about real scenes, composed from a few operations; an answer is right if it is the word, to the letter.

Two steps, as with LLaVA and GQA's own tool. `convert` (LLaVA's `convert_gqa_for_eval.py`) takes final periods off and
lower-cases; articles and numbers stay as they are. `evaluate` (GQA's `eval.py`) compares over the balanced questions:
binary, open and all; the distance of the answers' distribution from the right one within each global group; tables by
structure, meaning, reasoning steps and words. Consistency is the accuracy on the questions that follow from one that was
answered right; it needs those answered as well, so the tool computes it on `--consistency` and `score` wherever it can.

Departures: `score` scores part of the questions and says so, where the tool stops; without any group there is no
distribution. Left out: validity and plausibility (GQA 1.2's test-dev has no file of choices; some copies of the tool print
0 then), grounding (it needs attention maps and scene graphs), and files in pieces (GQA's training split).

    cd playground/data/eval/gqa/data && python -m fitprune.evaluation.benchmarks.gqa --tier testdev_balanced
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FitPruneError
from ...files import read_json
from ...questions import is_question_id
from ..benchmark import Benchmark, Result
from ..scoring import ANSWERS, check_known, noted, printed, read_answers, share, tool, write_json

TRUTH = "data/testdev_balanced_questions.json"
TABLES = ("structural type", "semantic type", "steps number", "words number")
NO_STEPS = ("exist", "query: name", "choose name")  # operations that only ask for what was found


@dataclass(frozen=True)
class Asked:
    """One annotated question; `kinds` are its rows in the tables, `entailed` the other questions that follow from it."""

    text: str
    answer: str
    balanced: bool
    group: str | None
    kinds: tuple[str | int, ...]
    entailed: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        return self.kinds[0] == "query"


@dataclass(frozen=True)
class Scores:
    """Figures in percent (the distribution is a distance) and, by table and row, accuracy in percent and questions."""

    metrics: dict[str, float]
    tables: dict[str, dict[str | int, tuple[float, int]]]

    @property
    def report(self) -> str:
        """The lines of the official tool."""
        units = {"Distribution": " (lower is better)"}
        lines = [f"{name}: {value:.2f}{units.get(name, '%')}" for name, value in self.metrics.items()]
        for title, rows in self.tables.items():
            lines += ["", f"Accuracy / {title}:"]
            lines += [f"  {name}: {value:.2f}% ({count} questions)" for name, (value, count) in rows.items()]
        return "\n".join(lines)


def read_questions(path: Path) -> dict[str, Asked]:
    """An annotation file, by question id.

    Raises:
        FitPruneError: for a file that is missing, torn or not in GQA's format.
    """
    content = read_json(path, "GQA's questions")
    if not isinstance(content, dict) or not content:
        raise FitPruneError(f"{path} does not map ids to questions: give GQA's testdev_balanced_questions.json")
    asked = {}
    for question_id, item in content.items():
        try:
            asked[question_id] = _asked(question_id, item)
        except (TypeError, KeyError, AttributeError):
            raise FitPruneError(
                f"{path}: question {question_id} lacks an answer, types, groups or semantic: give a file with annotations"
            ) from None
    return asked


def _asked(question_id: str, item: Any) -> Asked:
    steps = (f"{step['operation']}: {step['argument']}" for step in item["semantic"])
    effective = sum(not any(name in step for name in NO_STEPS) for step in steps)
    types, words = item["types"], item["question"].split()
    kinds = (str(types["structural"]), str(types["semantic"]), effective, len(words))
    entailed = tuple(other for other in item.get("entailed") or () if other != question_id)
    return Asked(item["question"], item["answer"], bool(item["isBalanced"]), item["groups"]["global"], kinds, entailed)


def evaluate(asked: Mapping[str, Asked], said: Mapping[int | str, str], consistency: bool = False) -> Scores:
    """The official figures, over the balanced questions.

    Args:
        asked: All questions that the figures are over or refer to.
        said: The predictions; those to other questions do not matter.
        consistency: Compute it, too.
    Raises:
        FitPruneError: for a question without prediction; no balanced question.
    """
    missing = [key for key, one in asked.items() if key not in said and (consistency or one.balanced)]
    if missing:
        raise FitPruneError(f"{len(missing)} of {len(asked)} questions have no prediction, {missing[0]} for one: answer all of them")
    right = {key: float(said[key] == one.answer) for key, one in asked.items() if key in said}
    balanced = {key: one for key, one in asked.items() if one.balanced}
    if not balanced:
        raise FitPruneError("none of the questions is in GQA's balanced set (isBalanced): give another questions file")
    metrics = {
        "Binary": _percent([right[key] for key, one in balanced.items() if not one.is_open]),
        "Open": _percent([right[key] for key, one in balanced.items() if one.is_open]),
        "Accuracy": _percent([right[key] for key in balanced]),
    }
    if consistency:
        metrics["Consistency"] = _consistency(balanced, right)
    if any(one.group is not None for one in balanced.values()):
        metrics["Distribution"] = distribution((one.group, one.answer, said[key]) for key, one in balanced.items())
    tables: dict[str, dict[str | int, tuple[float, int]]] = {}
    for at, title in enumerate(TABLES):
        rows: dict[str | int, list[float]] = defaultdict(list)
        for key, one in balanced.items():
            rows[one.kinds[at]].append(right[key])
        tables[title] = {name: (_percent(rows[name]), len(rows[name])) for name in sorted(rows)}
    return Scores(metrics, tables)


def distribution(answers: Iterable[tuple[str | None, str, str]]) -> float:
    """How far predicted answers are from the right ones as a distribution, 0 if each is given as often as it is right.

    In every group χ² over the answers that are right somewhere in it; the groups' mean, weighted by their questions; / 100.

    Args:
        answers: (group, right answer, predicted answer) of every question; group None is in no group.
    """
    sizes: Counter[str] = Counter()
    gold: Counter[tuple[str, str]] = Counter()
    given: Counter[tuple[str, str]] = Counter()
    for group, answer, predicted in answers:
        if group is not None:
            sizes[group] += 1
            gold[group, answer] += 1
            given[group, predicted] += 1
    distance = sum(sizes[one[0]] * (given[one] - count) ** 2 / count for one, count in gold.items())
    return share(distance, sizes.total()) / 100


def _consistency(balanced: Mapping[str, Asked], right: Mapping[str, float]) -> float:
    scores = []
    for key, one in balanced.items():
        if right[key] and one.entailed:
            if unknown := [other for other in one.entailed if other not in right]:
                raise FitPruneError(f"consistency needs question {unknown[0]}, which follows from {key}: give a questions file that has it")
            scores.append(share(sum(right[other] for other in one.entailed), len(one.entailed)))
    return _percent(scores)


def _percent(values: Sequence[float]) -> float:
    return share(sum(values), len(values)) * 100


def convert(answers: Path) -> list[dict[str, Any]]:
    """Predictions in the form of GQA's tool: the answer without final periods, in lower case; errors as `read_answers`."""
    return [{"questionId": answer.question_id, "prediction": answer.text.rstrip(".").lower()} for answer in read_answers(answers)]


def score(data: Path, answers: Path, out: Path) -> Result:
    """Scores an answers file of LLaVA's; writes the predictions for GQA's tool to `out`.

    Raises:
        FitPruneError: for files that are missing, torn or of another kind; no answer to a balanced question.
    """
    asked, predictions = read_questions(data / TRUTH), convert(answers)
    notes = check_known(read_answers(answers), {key: one.text for key, one in asked.items()}, data / TRUTH)
    said: dict[int | str, str] = {one["questionId"]: one["prediction"] for one in predictions}
    answered = {key: one for key, one in asked.items() if key in said}
    balanced = {key: one for key, one in answered.items() if one.balanced}
    if not balanced:
        raise FitPruneError(f"{answers} answers no balanced question of {data / TRUTH}: give answers to this split")
    path = out / f"{answers.stem}_predictions.json"
    write_json(path, predictions)
    follow = {other for one in balanced.values() for other in one.entailed}
    scores = evaluate(answered, said, consistency=bool(follow) and follow <= answered.keys())
    worth = [float(one["prediction"] == balanced[one["questionId"]].answer) for one in predictions if one["questionId"] in balanced]
    details = scores.metrics | {f"{title} {name}": value for title, rows in scores.tables.items() for name, (value, _) in rows.items()}
    done, total = len(balanced), sum(one.balanced for one in asked.values())
    note = "" if done == total else f"{done} of {total} questions are answered; the figures are over these\n"
    per_answer = worth if len(worth) == len(predictions) else None
    return noted(Result(scores.metrics["Accuracy"], details, note + scores.report, per_answer, (path,)), notes)


def report(args: argparse.Namespace) -> Iterator[str]:
    """The figures of a predictions file, in the folder where the tier's files are."""
    if args.grounding:
        raise FitPruneError("grounding is not computed here: leave out --grounding, or use GQA's own tool")
    questions, predictions = (Path(name.format(tier=args.tier)) for name in (args.questions, args.predictions))
    said: dict[int | str, str] = {}
    content = read_json(predictions, "predictions file")
    for one in content if isinstance(content, list) else [None]:
        if not (isinstance(one, dict) and is_question_id(one.get("questionId")) and isinstance(one.get("prediction"), str)):
            raise FitPruneError(f"{predictions} is not a list of questionId and prediction: use convert_gqa_for_eval")
        said[one["questionId"]] = one["prediction"]
    yield f"\n{evaluate(read_questions(questions), said, args.consistency).report}"


def main(argv: Sequence[str] | None = None) -> int:
    """GQA's `eval.py`."""
    parser = tool("eval", "GQA's figures of a predictions file.")
    parser.add_argument("--tier", default="val", help="which split, in the names of the files (default: %(default)s)")
    for name in ("questions", "predictions"):
        parser.add_argument(f"--{name}", default=f"{{tier}}_{name}.json", help=f"the tier's {name} (default: %(default)s)")
    parser.add_argument("--consistency", action="store_true", help="also over the questions that follow from others")
    parser.add_argument("--grounding", action="store_true", help="refused: it is left out here")
    parser.add_argument("--objectFeatures", action="store_true", help="not read")
    for name in ("scenes", "choices", "attentions", "mapSize"):
        parser.add_argument(f"--{name}", help="not read")
    return printed(report, parser, argv)


def convert_main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_gqa_for_eval`."""
    about = "Predictions for GQA's evaluation tool."
    parser = tool("convert_gqa_for_eval", about, src=ANSWERS, dst="where the predictions go, such as testdev_balanced_predictions.json")

    def work(args: argparse.Namespace) -> list[str]:
        write_json(args.dst, convert(args.src))
        return []

    return printed(work, parser, argv)


BENCHMARK = Benchmark(
    name="gqa", title="GQA", folder="gqa", questions="llava_gqa_testdev_balanced.jsonl", images="data/images",
    metric="accuracy, %", needs=(TRUTH,), score=score,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
