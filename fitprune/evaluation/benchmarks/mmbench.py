"""MMBench: questions with two to four choices, scored by its server; this makes the xlsx that is handed in.

The question file is a table (tab separated) that holds the images too, in base64; they are decoded in memory. A choice
that pandas would read as missing (an empty cell, "NA", "null", …) or that says "nan" or "none" ends the choices; such a
hint is none. Circular evaluation needs nothing here: the released tables hold the questions with their choices rotated as
rows of their own. `all_rounds` rotates once more, as `model_vqa_mmbench --all-rounds` does: it asks the same question
again, and only the fields that name the choices change; of several rounds the last one is handed in.

Left out: a score. A server compares free answers with the choices by another language model, on answers partly not public.

    python -m fitprune.evaluation.benchmarks.mmbench --annotation-file mmbench_dev_20230712.tsv --result-dir answers \\
        --upload-dir answers_upload --experiment llava-v1.5-7b
"""

from __future__ import annotations

import argparse
import base64
import binascii
import csv
import io
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ...errors import FitPruneError
from ...files import read_bytes, write_atomically
from ...questions import Question
from ..benchmark import Benchmark, Result
from ..scoring import as_number, check_asked, printed, read_answers, said, tool
from .sqa import PLEASE

QUESTIONS = "mmbench_dev_20230712.tsv"
PLEASE_CN = "请直接回答选项字母。"
LETTERS = "ABCD"
NEEDED = ("index", "question", *LETTERS, "hint", "image")
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")  # not handed in
PREDICTION_AT = 6  # column of the answers in what is handed in
LARGEST_CELL = 2**31 - 1  # characters; csv's own limit is below an image
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"} | {
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
}  # what pandas reads as an empty cell  # fmt: skip


def read(path: Path, single_pred_prompt: bool = True, lang: str = "en", all_rounds: bool = False) -> list[Question]:
    """The questions of a table.

    Args:
        single_pred_prompt: Ask for the letter alone, in `lang` ("cn": Chinese, else English); not part of saved prompts.
        all_rounds: Every question as often as it has choices.
    Raises:
        FitPruneError: for a file that is missing or another's, and an image that is not base64.
    """
    please = PLEASE_CN if lang == "cn" else PLEASE
    questions = []
    for row in read_table(path):
        where = f"{path} index {row['index']}"
        try:
            image = base64.b64decode(row["image"] or "")
        except (binascii.Error, ValueError):
            raise FitPruneError(f"{where}: the image is not base64: get the file again") from None
        choices = _choices(row)
        hint = [] if _is_none(row["hint"]) else [row["hint"]]
        lines = [*hint, row["question"] or "", *(f"{at}. {choice}" for at, choice in zip(LETTERS, choices, strict=False))]
        prompt = "\n".join(map(str, lines))
        for turn in range(len(choices) if all_rounds else 1):
            letters = list(LETTERS[: len(choices)])
            rotated = tuple(choices[turn:] + choices[:turn]), tuple(letters[turn:] + letters[:turn])
            more = (("round_id", turn), ("options", rotated[0]), ("option_char", rotated[1]))
            text = f"{prompt}\n{please}" if single_pred_prompt else prompt
            questions.append(Question(as_number(str(row["index"])), where, text, row.get("category"), prompt, image, more))
    return questions


def read_table(path: Path) -> list[dict[str, str | None]]:
    """The rows of a table, by column in its order; None for an empty cell.

    Raises:
        FitPruneError: for a file that is missing, or has no such columns, a row with too many cells, or no rows.
    """
    raw = read_bytes(path, "question file")
    try:
        content = raw.decode("utf-8")
    except ValueError:
        raise FitPruneError(f"question file {path} is not UTF-8: get it again") from None
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        head, *rows = [row for row in csv.reader(io.StringIO(content, newline=""), delimiter="\t") if row] or [[]]
    except csv.Error as error:
        raise FitPruneError(f"question file {path} is not a tab-separated table ({error}): get it again") from None
    finally:
        csv.field_size_limit(limit)
    if absent := [column for column in NEEDED if column not in head]:
        raise FitPruneError(f"question file {path} has no column {absent[0]!r}: give a table like mmbench_dev_20230712.tsv")
    if not rows:
        raise FitPruneError(f"question file {path} holds no questions: get it again")
    table = []
    for cells in rows:
        if len(cells) > len(head):
            raise FitPruneError(f"{path} index {cells[0]} has {len(cells)} cells for {len(head)} columns: get it again")
        filled = [*cells, *[""] * (len(head) - len(cells))]
        table.append({column: None if cell in MISSING else cell for column, cell in zip(head, filled, strict=True)})
    return table


def _is_none(cell: str | None) -> bool:
    return cell is None or cell.lower() in ("nan", "none")


def _choices(row: dict[str, str | None]) -> list[str]:
    """The choices up to the first one that is missing."""
    return [str(choice) for choice in takewhile(lambda choice: not _is_none(choice), map(row.get, LETTERS))]


def sheet(table: Path, answers: Path) -> tuple[list[list[str | int | None]], int]:
    """What is handed in, header first, and how many rows have an answer.

    Raises:
        FitPruneError: as `read_table`; for an answers file that is missing or torn, or answers another table.
    """
    rows = read_table(table)
    ids = [as_number(str(row["index"])) for row in rows]
    given = said(lines := read_answers(answers))
    if unknown := given.keys() - set(ids):
        raise FitPruneError(f"{answers} answers question {min(unknown, key=str)!r}, which {table} does not have")
    check_asked(lines, {one: row["question"] or "" for one, row in zip(ids, rows, strict=True)}, table)
    columns = [column for column in rows[0] if column not in DROPPED]
    made: list[list[str | int | None]] = [[*columns]]
    made += [[one if column == "index" else row[column] for column in columns] for one, row in zip(ids, rows, strict=True)]
    for cells, prediction in zip(made, ["prediction", *map(given.get, ids)], strict=True):
        cells.insert(PREDICTION_AT, prediction)
    return made, sum(one in given for one in ids)


def xlsx(rows: Sequence[Sequence[str | int | None]]) -> bytes:
    """Rows as an Excel file; text stays text (an answer "=1" is no formula), control characters are left out.

    Raises:
        FitPruneError: without openpyxl.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise FitPruneError("MMBench is handed in as xlsx, which needs openpyxl: pip install 'fitprune[submit]', then run again") from None
    book = Workbook()
    page = book.active
    for at, row in enumerate(rows, start=1):
        for column, value in enumerate(row, start=1):
            if isinstance(value, str):
                cell = page.cell(at, column)
                cell.value, cell.data_type = ILLEGAL_CHARACTERS_RE.sub("", value), "s"
            else:
                page.cell(at, column, value)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def submission(table: Path, answers: Path, path: Path) -> Result:
    """Writes what is handed in; errors as `sheet` and `xlsx`."""
    rows, answered = sheet(table, answers)
    write_atomically(path, xlsx(rows))
    count = len(rows) - 1
    report = f"{path}: {answered} of {count} questions answered; MMBench's server scores it"
    return Result(None, {"questions": count, "answered": answered}, report, written=(path,))


def score(data: Path, answers: Path, out: Path, questions: str = QUESTIONS) -> Result:
    """Writes the xlsx file for the server to `out`."""
    return submission(data / questions, answers, out / f"{answers.stem}.xlsx")


def main(argv: Sequence[str] | None = None) -> int:
    """LLaVA's `convert_mmbench_for_submission`."""
    parser = tool(
        "convert_mmbench_for_submission", "MMBench's answers as the xlsx file that its server takes.",
        annotation_file="the table that was asked", result_dir="folder of the answers file EXPERIMENT.jsonl",
        upload_dir="folder that gets EXPERIMENT.xlsx",
    )  # fmt: skip
    parser.add_argument("--experiment", required=True, help="name of both files, without their endings")

    def work(args: argparse.Namespace) -> list[str]:
        answers, upload = args.result_dir / f"{args.experiment}.jsonl", args.upload_dir / f"{args.experiment}.xlsx"
        return [submission(args.annotation_file, answers, upload).report]

    return printed(work, parser, argv)


BENCHMARK = Benchmark(
    name="mmbench", title="MMBench", folder="mmbench", questions=QUESTIONS, images=".",
    metric="xlsx for MMBench's server", needs=(), score=score, read=read, max_new_tokens=1024,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
