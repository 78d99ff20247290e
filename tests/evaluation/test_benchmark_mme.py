"""MME: looking up the truth, the parse of an answer, scores by pairs of lines, and the commands around them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import answer, answered, embedded_folder, lines, write_lines

from fitprune.errors import FitPruneError
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.mme import (
    BENCHMARK,
    INSTRUCTION,
    PLEASE,
    RELEASE,
    Line,
    calculation,
    convert_answer_to_mme,
    main,
    parse,
)

ROOT = Path(__file__).parents[2]
DATA = embedded_folder("MME")
EMBEDDED = ("existence", "count", "position", "color", "OCR")
OTHER = {"Yes": "No", "No": "Yes"}


@pytest.fixture
def folder(tmp_path):
    """Two categories of both layouts; one question with two spaces; in each image yes is right, then no."""
    release = tmp_path / RELEASE
    beside, apart = release / "color", release / "posters/questions_answers_YN"
    for path in (beside, apart, release / "posters/images"):
        path.mkdir(parents=True)
    (release / "notes.txt").write_text("not a category")
    (beside / "a.txt").write_text(f"Is it red? {PLEASE}\tYes\nIs it blue?  {PLEASE}\tNo\n")
    (beside / "b.txt").write_text(f"Is it red? {PLEASE}\tYes\r\nIs it green? {PLEASE}\tNo")
    (apart / "tt1.txt").write_text(f"Is this a film? {PLEASE}\tYes\nIs this a play? {PLEASE}\tNo\n\n")
    return tmp_path


ASKED = [
    ("color/a.png", "Is it red?"),
    ("color/a.png", "Is it blue?"),
    ("posters/images/tt1.jpg", "Is this a film?"),
    ("posters/images/tt1.jpg", "Is this a play?"),
    ("color/b.x.png", "Is it red?"),  # the text file is named by what precedes the first dot
    ("color/b.x.png", "Is it green?"),
]


def write(folder, *said, asked=ASKED):
    return write_lines(
        folder / "answers/run.jsonl",
        [answer(image, text, f"{question}\n{INSTRUCTION}") for (image, question), text in zip(asked, said, strict=False)],
    )


def score(folder, *said, asked=ASKED):
    return BENCHMARK.score(folder, write(folder, *said, asked=asked), folder / "out")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"), ("yes", "yes"), ("YES!", "yes"), ("Yes, it is", "yes"), (" yes", "yes"), ("eyes", "yes"),
        ("No", "no"), ("no", "no"), ("NO.", "no"), ("not", "no"), ("None", "no"), ("know", "no"), ("noye", "no"),
        ("  no", "no"), ("snow", "no"), ("No, yes", "no"), ("", "other"), ("  yes", "other"), ("I know", "other"),
        ("The answer is yes", "other"), ("ye", "other"), ("n o", "other"), ("maybe", "other"), ("I do not", "other"),
    ],
)  # fmt: skip
def test_parse_sees_four_characters(text, read):
    assert parse(text) == parse(f"{text}\n") == read  # the official tool reads the answer with its line's end


def embedded_truth():
    questions = lines(DATA / BENCHMARK.questions)
    truth = []
    for question in questions:
        file = (DATA / RELEASE / question["image"]).with_suffix(".txt")
        asked = question["text"].split("\n")[0]
        truth += [line.split("\t")[1] for line in file.read_text().splitlines() if line.startswith(f"{asked} Please")]
    return questions, truth


@pytest.mark.parametrize(
    ("said", "acc", "acc_plus"),
    [
        (lambda truth, at: truth, 100, 100),
        (lambda truth, at: f"{truth}, it is", 100, 100),
        (lambda truth, at: OTHER[truth], 0, 0),
        (lambda truth, at: "Yes", 50, 0),
        (lambda truth, at: "maybe", 0, 0),
        (lambda truth, at: truth if at % 4 else "", 75, 50),
    ],
)
def test_embedded_questions(tmp_path, said, acc, acc_plus):
    questions, truth = embedded_truth()
    texts = [said(right, at) for at, right in enumerate(truth)]
    result = find("mme").score(DATA, answered(tmp_path / "run.jsonl", questions, texts), tmp_path / "out")
    for name in EMBEDDED:
        assert result.details[name] == acc + acc_plus
        assert (result.details[f"{name} acc"], result.details[f"{name} acc+"]) == (acc, acc_plus)
    assert result.headline == result.details["Perception"] == 5 * (acc + acc_plus)
    assert "Cognition" not in result.details
    assert sum(result.per_answer) == len(questions) * acc / 100
    assert result.written == tuple(tmp_path / f"out/run/{name}.txt" for name in EMBEDDED)
    assert result.report.splitlines()[-1].startswith("not answered, so not in the totals: posters, celebrity")
    find("mme").check(DATA)


def test_category_files_hold_the_lines_of_the_original(folder):
    result = score(folder, "Yes", "no.", "Yes", "x", "", "No\twell")
    assert (folder / "out/run/color.txt").read_text() == (
        f"a.txt\tIs it red? {PLEASE}\tYes\tYes\n"
        f"a.txt\tIs it blue?  {PLEASE}\tNo\tno.\n"  # two spaces, as in the release
        f"b.txt\tIs it red? {PLEASE}\tYes\t\n"
        f"b.txt\tIs it green? {PLEASE}\tNo\tNo\twell\n"
    )
    assert (folder / "out/run/posters.txt").read_text() == (
        f"tt1.txt\tIs this a film? {PLEASE}\tYes\tYes\ntt1.txt\tIs this a play? {PLEASE}\tNo\tx\n"
    )
    # a tab in an answer makes five fields: that line counts for nothing, its image stays
    assert result.details["color acc"] == pytest.approx(200 / 3)
    assert result.details["color acc+"] == 50
    assert f"b.txt\tIs it green? {PLEASE}\tNo\tNo\twell" in result.report
    assert result.per_answer is None


@pytest.mark.parametrize("prompt", ["{}\n" + INSTRUCTION, "{}", "{} " + PLEASE, "{} " + PLEASE + "\n" + INSTRUCTION])
def test_prompts_with_and_without_instructions(folder, prompt):
    path = write_lines(folder / "a.jsonl", [answer("color/a.png", "Yes", prompt.format("Is it red?"))])
    line = Line("a.txt", f"Is it red? {PLEASE}", "Yes", "Yes")
    assert convert_answer_to_mme(folder / RELEASE, path) == [("color", line)]


@pytest.mark.parametrize("inner", ["MME_Benchmark", RELEASE, "x/MME_Benchmark"])
def test_newer_archives_have_more_folders(folder, inner):
    """With the tool, a readme and what a Mac leaves beside; none of these is truth."""
    (folder / RELEASE).rename(folder / "moved")
    shutil.copytree(folder / "moved", folder / RELEASE / "__MACOSX/MME_Benchmark")
    shutil.copytree(folder / "moved", folder / RELEASE / "eval_tool/MME_Benchmark")
    write_lines(folder / RELEASE / "eval_tool/Your_Results/OCR.txt", [])
    (folder / RELEASE / "readme.txt").write_text("How to use it.")
    (folder / RELEASE / inner).parent.mkdir(exist_ok=True)
    (folder / "moved").rename(folder / RELEASE / inner)
    (folder / RELEASE / inner / "color/._a.txt").write_bytes(b"\0\5")
    assert score(folder, "Yes", "No", "Yes", "No", "Yes", "No").headline == 400


def test_prints_the_lines_of_the_original(folder, capsys):
    write(folder, "Yes", "No", "No", "No", "Yes", "Yes")
    results = folder / "eval_tool/answers/run"
    (results / "extra.txt").parent.mkdir(parents=True)
    (results / "extra.txt").write_text("a file that is no category")
    (results / "code_reasoning.txt").write_text("a\tq\tNo\tno\na\tr\tYes\tno\nb\tq\tno\tNo\nb\tr\tyes\tYes\n")
    assert main(["--data", str(folder), "--experiment", "run"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["--results_dir", str(results)]) == 0
    assert capsys.readouterr().out == (
        "=========== Perception ===========\n"
        "total score: 175.0 \n\n"
        "\t color  score: 125.0\n"
        "\t posters  score: 50.0\n\n\n"
        "=========== Cognition ===========\n"
        "total score: 125.0 \n\n"
        "\t code_reasoning  score: 125.0\n\n\n"
        "not answered, so not in the totals: existence, count, position, celebrity, scene, landmark, artwork, OCR, "
        "commonsense_reasoning, numerical_calculation, text_translation\n"
    )


def test_the_answers_about_an_image_are_a_pair_in_any_order(folder):
    said = ["Yes", "No", "Yes", "No", "No", "Yes"]
    in_order = score(folder, *said)
    assert (in_order.details["color acc"], in_order.details["color acc+"]) == (50, 50)
    assert "brought together" not in in_order.report
    at = [0, 4, 2, 3, 1, 5]  # the same answers to the same questions, their lines in another order
    mixed = score(folder, *[said[i] for i in at], asked=[ASKED[i] for i in at])
    assert {key: mixed.details[key] for key in ("color acc", "color acc+")} == {"color acc": 50, "color acc+": 50}
    assert mixed.report.endswith("so their lines were brought together")
    assert (folder / "out/run/color.txt").read_text().count("a.txt") == 2
    assert mixed.per_answer == [1, 0, 1, 1, 1, 0]


def test_pairs_of_another_programs_lines_are_by_order(folder, capsys):
    (folder / "color.txt").write_text("a\tq\tNo\tno\nb\tr\tYes\tno\na\tq\tno\tNo\nb\tr\tyes\tYes\n")
    assert main(["--results_dir", str(folder)]) == 0
    assert "color: 2 pairs of lines are about two images" in capsys.readouterr().out


def test_an_answer_of_two_lines_is_two_lines_of_the_file(folder):
    with pytest.raises(FitPruneError, match="has 5 lines"):
        score(folder, "Yes\nindeed", "No", "Yes", "No", "Yes", "No")


OUTCOMES = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.sampled_from(["yes", "No", "hm"]), st.sampled_from(["yes", "No", "hm"])), min_size=1
)  # of each image: is yes right, for both questions; what was said to both


@given(OUTCOMES, st.randoms())
def test_scores_are_those_of_their_definitions(tmp_path_factory, outcomes, random):
    path = tmp_path_factory.mktemp("mme") / "count.txt"

    def scored(pictures):
        path.write_text(
            "".join(
                f"{at}.txt\tq\t{'Yes' if right else 'No'}\t{said}\n"
                for at, (one, two, first, second) in enumerate(pictures)
                for right, said in random.sample([(one, first), (two, second)], 2)  # within an image order is nothing
            )
        )
        return calculation({"count": path})["count"]

    rights = [
        [{"yes": True, "No": False}.get(said) is truth for truth, said in ((one, first), (two, second))]
        for one, two, first, second in outcomes
    ]
    category = scored(outcomes)
    assert category.acc == pytest.approx(sum(map(sum, rights)) / (2 * len(rights)))
    assert category.acc_plus == pytest.approx(sum(map(all, rights)) / len(rights))
    assert category.score == pytest.approx(100 * (category.acc + category.acc_plus))
    assert 2 * category.acc - 1 <= category.acc_plus + 1e-12 <= category.acc + 2e-12
    assert scored(outcomes[::-1]).score == category.score


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (d / "answers/run.jsonl").unlink(), "does not exist"),
        (lambda d: write(d, "yes", "no", "yes"), "answers one question about posters/tt1.txt, two of them for each image"),
        (lambda d: write(d, "yes", "no", "no", asked=[ASKED[0], ASKED[1], ASKED[0]]), "line 3 answers .* again, after line 1"),
        (lambda d: shutil.copytree(d / RELEASE, d / RELEASE / "MME_Benchmark"), "holds MME's categories more than once"),
        (lambda d: write(d, "yes", asked=[("color/c.png", "Is it red?")]), "about color/c.png, which"),
        (lambda d: write(d, "yes", asked=[("count/a.png", "Is it red?")]), "which .* does not ask"),
        (lambda d: write(d, "yes", asked=[(5, "Is it red?")]), "which .* does not ask"),
        (lambda d: write(d, "yes", asked=[("color/a.png", "Is it Red?")]), "which .* does not ask"),
        (lambda d: (d / RELEASE / "color/a.txt").write_text("Is it red?\tperhaps\n"), "a question, a tab and Yes or No"),
        (lambda d: (d / RELEASE / "color/a.txt").write_text("Is it red? Yes\n"), "a question, a tab and Yes or No"),
        (lambda d: (d / RELEASE).rename(d / "gone"), "holds no questions of MME"),
    ],
)
def test_bad_files_are_one_line_and_status_2(folder, capsys, change, says):
    write(folder, "Yes", "No")
    change(folder)
    with pytest.raises(FitPruneError, match=says):
        BENCHMARK.score(folder, folder / "answers/run.jsonl", folder / "out")
    arguments = ["--data", str(folder), "--experiment", "run", "--results_dir", str(folder / "eval_tool/answers/run")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_only_other_categories(folder):
    own = folder / RELEASE / "mine"
    own.mkdir()
    (own / "a.txt").write_text(f"Is it? {PLEASE}\tYes\nIs it not? {PLEASE}\tNo\n")
    with pytest.raises(FitPruneError, match="none of MME's categories"):
        score(folder, "yes", "no", asked=[("mine/a.png", "Is it?"), ("mine/a.png", "Is it not?")])


def test_a_wrong_truth_and_what_is_missing(folder, capsys):
    (folder / "color.txt").write_text("a\tq\tperhaps\tno\na\tr\tYes\tno\n")
    assert main(["--results_dir", str(folder)]) == 2
    assert "'perhaps' is neither yes nor no" in capsys.readouterr().err
    assert main(["--results_dir", str(folder / "nowhere")]) == 2
    assert main([]) == 2
    assert "give --experiment" in capsys.readouterr().err
    with pytest.raises(FitPruneError, match=r"llava_mme\.jsonl.*docs/evaluation\.md"):
        BENCHMARK.check(folder)


def test_as_a_script(folder):
    """As LLaVA's mme.sh does: convert in MME's folder, calculate."""
    write(folder, "Yes", "No", "Yes", "No", "Yes", "No")
    command = ["-m", "fitprune.evaluation.benchmarks.mme", "--experiment", "run", "--results_dir", "eval_tool/answers/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "total score: 400.0 " in done.stdout
