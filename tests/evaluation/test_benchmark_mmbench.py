"""MMBench: the table with its images, what is asked and saved, the xlsx file for the server."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scored import QUICK

from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile
from fitprune.evaluation.benchmarks import find, mmbench, mmbench_cn
from fitprune.evaluation.benchmarks.mmbench import PLEASE_CN, main, read, sheet, xlsx
from fitprune.evaluation.benchmarks.sqa import PLEASE
from fitprune.evaluation.loader_choices import for_mmbench
from fitprune.questions import open_image

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
COLUMNS += ["source", "l2-category", "comment", "split"]
HANDED_IN = ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]


def png(mode: str = "RGB", size: tuple[int, int] = (3, 2)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 7).save(file, "PNG")
    return file.getvalue()


PICTURE = base64.b64encode(png()).decode()
FULL = {"question": "Which?", "A": "a", "B": "b", "answer": "B", "category": "c", "image": PICTURE, "split": "dev"}


def table(path: Path, *rows: dict[str, str], columns: list[str] = COLUMNS) -> Path:
    lines = [columns, *([{**FULL, **row}.get(column, "") for column in columns] for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(path: Path, *lines: tuple[int | str, str]) -> Path:
    path.write_text("".join(json.dumps({"question_id": key, "prompt": "", "text": text}) + "\n" for key, text in lines))
    return path


def test_what_is_asked_and_what_is_saved(tmp_path: Path) -> None:
    file = table(
        tmp_path / "t.tsv",
        {"index": "241", "C": "c", "D": "d"},
        {"index": "1000241", "hint": "It is red."},
        {"index": "7", "hint": "nan", "D": "after a gap"},
        {"index": "8", "hint": "None", "B": "NONE"},
        {"index": "9", "hint": "", "A": "N/A"},
    )
    asked = read(file)
    prompts = ["Which?\nA. a\nB. b\nC. c\nD. d", "It is red.\nWhich?\nA. a\nB. b", "Which?\nA. a\nB. b", "Which?\nA. a", "Which?"]
    assert [q.question_id for q in asked] == [241, 1000241, 7, 8, 9]
    assert [q.saved for q in asked] == prompts
    assert [q.text for q in asked] == [f"{prompt}\n{PLEASE}" for prompt in prompts]
    assert [q.text for q in read(file, lang="cn")] == [f"{prompt}\n{PLEASE_CN}" for prompt in prompts]
    assert [q.text for q in read(file, single_pred_prompt=False)] == prompts
    assert {q.content for q in asked} == {png()}
    assert dict(asked[0].more) == {"round_id": 0, "options": tuple("abcd"), "option_char": tuple("ABCD")}
    assert [q.category for q in asked] == ["c"] * 5


@pytest.mark.parametrize("cell", ["", "NA", "null", "NULL", "nan", "NaN", "None", "none", "nOnE", "n/a", "<NA>"])
def test_a_missing_choice_ends_the_choices(tmp_path: Path, cell: str) -> None:
    (asked,) = read(table(tmp_path / "t.tsv", {"index": "1", "B": cell, "C": "c"}))
    assert asked.saved == "Which?\nA. a"


@pytest.mark.parametrize("cell", ["na", "Null", "nothing", "0", "-", " "])
def test_other_words_are_choices(tmp_path: Path, cell: str) -> None:
    (asked,) = read(table(tmp_path / "t.tsv", {"index": "1", "B": cell}))
    assert asked.saved == f"Which?\nA. a\nB. {cell}"


def test_all_rounds_rotate_the_choices_and_their_letters_but_not_the_question(tmp_path: Path) -> None:
    file = table(tmp_path / "t.tsv", {"index": "1", "C": "c"}, {"index": "2"})
    asked = read(file, all_rounds=True)
    assert [(q.question_id, dict(q.more)["round_id"]) for q in asked] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert ["".join(dict(q.more)["options"]) for q in asked] == ["abc", "bca", "cab", "ab", "ba"]
    assert ["".join(dict(q.more)["option_char"]) for q in asked] == ["ABC", "BCA", "CAB", "AB", "BA"]
    assert len({q.text for q in asked[:3]}) == 1
    path = tmp_path / "a.jsonl"
    with AnswersFile(path, asked, "m") as answered:
        answered.write(["x", "y"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1] | {"answer_id": ""} == {
        "question_id": 1,
        "prompt": "Which?\nA. a\nB. b\nC. c",
        "text": "y",
        "round_id": 1,
        "options": ["b", "c", "a"],
        "option_char": ["B", "C", "A"],
        "answer_id": "",
        "model_id": "m",
        "metadata": {},
    }
    whole = path.read_bytes()
    for cut in range(len(whole) - 30, len(whole)):  # torn within the last line
        path.write_bytes(whole[:cut])
        with AnswersFile(path, asked, "m") as answered:
            assert answered.done == (1 if cut < len(whole) - 1 else 2)
    with pytest.raises(FitPruneError, match="another round_id or options or option_char"):
        AnswersFile(path, [asked[1], asked[0]], "m")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {name: st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5) for name in ("question", "A", "B", "hint")}
        ),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_any_text_survives_the_table(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    """Tabs, quotes and line breaks inside cells, written as Excel and pandas write them."""
    import csv

    path = tmp_path_factory.mktemp("t") / "t.tsv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({**FULL, **row, "index": at} for at, row in enumerate(rows))
    for row, asked in zip(rows, mmbench.read_table(path), strict=True):
        assert {name: asked[name] for name in row} == {name: None if cell in mmbench.MISSING else cell for name, cell in row.items()}


def test_an_image_larger_than_csvs_limit_and_other_colours(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    large = Image.effect_noise((500, 500), 80).convert("RGBA")
    file = io.BytesIO()
    large.save(file, "PNG")
    cell = base64.b64encode(file.getvalue()).decode()
    assert len(cell) > before
    (asked,) = read(table(tmp_path / "t.tsv", {"index": "1", "image": cell}))
    assert csv.field_size_limit() == before
    picture = open_image(asked, "nowhere")
    assert (picture.mode, picture.size) == ("RGB", (500, 500))
    assert picture.tobytes() == large.convert("RGB").tobytes()
    assert open_image(asked, "nowhere", pixels=False).size == (500, 500)
    assert [path.name for path in tmp_path.iterdir()] == ["t.tsv"]  # nothing is written


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (asked,) = read(table(tmp_path / "t.tsv", {"index": "5", "image": PICTURE[:40]}))
    with pytest.raises(FitPruneError, match=r"cannot read image .*t\.tsv index 5"):
        open_image(asked, "")
    with pytest.raises(FitPruneError, match=r"t\.tsv index 5: the image is not base64"):
        read(table(tmp_path / "t.tsv", {"index": "5", "image": "abcde"}))


def test_bad_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    with pytest.raises(FitPruneError, match="does not exist"):
        read(path)
    for columns in (COLUMNS[1:], [name for name in COLUMNS if name != "D"], ["image"]):
        with pytest.raises(FitPruneError, match="has no column"):
            read(table(path, {"index": "1"}, columns=columns))
    with pytest.raises(FitPruneError, match="holds no questions"):
        read(table(path))
    path.write_text("")
    with pytest.raises(FitPruneError, match="has no column 'index'"):
        read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FitPruneError, match="not UTF-8"):
        read(path)
    table(path, {"index": "3"})
    path.write_text(path.read_text().rstrip("\n") + "\tmore\n")
    with pytest.raises(FitPruneError, match="index 3 has 15 cells for 14 columns"):
        read(path)


def test_what_is_handed_in(tmp_path: Path) -> None:
    file = table(tmp_path / "t.tsv", {"index": "241", "C": "c", "comment": "x"}, {"index": "7", "answer": ""}, {"index": "9"})
    rows, answered = sheet(file, answers(tmp_path / "a.jsonl", (9, "A"), (241, "A"), (241, "The answer is C")))
    assert rows == [
        HANDED_IN,
        [241, "Which?", "a", "b", "c", None, "The answer is C", "B", "dev"],
        [7, "Which?", "a", "b", None, None, None, None, "dev"],
        [9, "Which?", "a", "b", None, None, "A", "B", "dev"],
    ]
    assert answered == 2
    with pytest.raises(FitPruneError, match=r"answers question 5, which .*t\.tsv does not have"):
        sheet(file, answers(tmp_path / "a.jsonl", (5, "A")))
    (tmp_path / "b.jsonl").write_text(json.dumps({"question_id": 9, "prompt": "A hint.\nWhich?\nA. a", "text": "A"}) + "\n")
    assert sheet(file, tmp_path / "b.jsonl")[1] == 1
    (tmp_path / "b.jsonl").write_text(json.dumps({"question_id": 9, "prompt": "Where?\nA. a", "text": "A"}) + "\n")
    with pytest.raises(FitPruneError, match=r"answers 'Where\?.*, but question 9 of .*t\.tsv is 'which\?'"):
        sheet(file, tmp_path / "b.jsonl")
    with pytest.raises(FitPruneError, match="'9'"):
        sheet(file, answers(tmp_path / "a.jsonl", ("9", "A")))


def cells(path: Path) -> list[list[object]]:
    openpyxl = pytest.importorskip("openpyxl")
    return [list(row) for row in openpyxl.load_workbook(path).active.iter_rows(values_only=True)]


def test_the_xlsx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openpyxl")
    file = table(tmp_path / "t.tsv", {"index": "1"}, {"index": "2"}, {"index": "3"}, {"index": "4", "question": "中文？"})
    answers(tmp_path / "llava.jsonl", (1, "B. b"), (2, "=1+1"), (3, "a\x00\x1b[0mb\n"))
    flags = ["--annotation-file", str(file), "--result-dir", str(tmp_path), "--upload-dir", str(tmp_path / "up")]
    assert main([*flags, "--experiment", "llava"]) == 0
    assert "3 of 4 questions answered" in capsys.readouterr().out
    head, *rows = cells(tmp_path / "up" / "llava.xlsx")
    assert head == HANDED_IN
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert [row[6] for row in rows] == ["B. b", "=1+1", "a[0mb\n", None]
    assert rows[3] == [4, "中文？", "a", "b", None, None, None, "B", "dev"]
    import openpyxl

    page = openpyxl.load_workbook(tmp_path / "up" / "llava.xlsx").active
    assert page["G3"].data_type == "s"  # text, no formula
    assert main([*flags, "--experiment", "gone"]) == 2
    assert "gone.jsonl does not exist" in capsys.readouterr().err


def test_without_openpyxl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(FitPruneError, match=r"pip install 'fitprune\[submit\]'"):
        xlsx([["a"]])


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_the_embedded_table_holds_every_question_in_every_rotation(name: str, tmp_path: Path) -> None:
    benchmark = find(name)
    data = embedded().data / benchmark.folder
    benchmark.check(data)
    questions = benchmark.read(data / benchmark.questions)
    rows = mmbench.read_table(data / benchmark.questions)
    assert list(rows[0]) == COLUMNS
    groups: dict[int, list[dict[str, str | None]]] = {}
    for row in rows:
        groups.setdefault(int(str(row["index"])) % 1_000_000, []).append(row)
    for group in groups.values():
        choices = [[row[letter] for letter in "ABCD" if row[letter]] for row in group]
        assert len(group) == len(choices[0]) >= 2
        assert choices == [choices[0][turn:] + choices[0][:turn] for turn in range(len(group))]
        assert len({row[str(row["answer"])] for row in group}) == 1  # the right one moves along
    please = PLEASE_CN if name == "mmbench_cn" else PLEASE
    assert all(question.text == f"{question.saved}\n{please}" for question in questions)
    for question in questions:
        assert open_image(question, "").size == open_image(questions[0], "").size
    assert (mmbench_cn if name == "mmbench_cn" else mmbench).BENCHMARK is benchmark
    pytest.importorskip("openpyxl")
    with AnswersFile(tmp_path / "a.jsonl", questions, "m") as file:
        file.write([str(row["answer"]) for row in rows])
    result = benchmark.score(data, tmp_path / "a.jsonl", tmp_path)
    assert (result.headline, result.per_answer) == (None, None)
    _, *handed_in = cells(result.written[0])
    assert all(row[6] == row[7] for row in handed_in)
    assert len(handed_in) == len(questions) == result.details["answered"]


def test_the_answering_script(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    flags = ["--num-chunks", "6", *QUICK]
    assert for_mmbench([*flags, "--lang", "cn", "--single-pred-prompt", "--all-rounds", "--answers-file", str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["round_id"] for line in lines][:4] == [0, 1, 2, 3]
    assert not any(PLEASE_CN in line["prompt"] for line in lines)
    assert "".join(lines[1]["option_char"]) == "BCDA"
