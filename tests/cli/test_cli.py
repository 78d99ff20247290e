"""The `fitprune` command, in process: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fitprune import load
from fitprune.cli import COMMANDS, main
from fitprune.cli.fit import statistical_analysis
from fitprune.embedded import embedded
from fitprune.evaluation.benchmark import Benchmark, Result
from fitprune.evaluation.benchmarks import BENCHMARKS
from fitprune.evaluation.loader import main as loader
from fitprune.recipe import Recipe
from fitprune.stats import AttentionStats


def test_show_prints_published_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "llava-v1.5-7b", "60"]) == 0
    assert "127 alive at the end" in capsys.readouterr().out
    assert main(["show", "llava-v1.5-7b"]) == 0
    assert "0.55" in capsys.readouterr().out
    assert main(["show", "llava-v1.6-vicuna-7b", "0.4", "--visual-tokens", "1440"]) == 0
    assert "[3, 36, 81," in capsys.readouterr().out


def test_fit_prints_the_scheme_and_saves_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = tmp_path / "s.safetensors"
    flags = ["--samples", "4", "--output", str(tmp_path), "--stats", str(stats), "--reduction_ratio", "0.6"]
    assert main(["fit", "--by", "mass", *flags]) == 0
    out = capsys.readouterr().out
    recipe = Recipe.load(tmp_path / "embedded-r60.recipe.json")
    assert str(list(recipe.counts)) in out
    assert 0.6 <= (recipe.achieved or 0) <= 0.601
    assert recipe.samples == AttentionStats.load(stats).samples == 4
    assert main(["fit", "--from-stats", str(stats), "--output", str(tmp_path / "again.json"), "--reduction_ratio", "60"]) == 0
    assert Recipe.load(tmp_path / "again.json") == recipe
    assert capsys.readouterr().out.startswith("by mass, the paper's way, as --from-stats runs no model\n")
    assert main(["fit", *flags]) == 2  # by drift, if nothing is said
    assert "4 questions cannot tell schedules apart: give at least 8, or fit by mass" in capsys.readouterr().err


def test_statistical_analysis_takes_the_authors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model-path", "embedded", "--samples", "3", "--reduction_ratio", "0.6", "--num-chunks", "1", "--chunk-idx", "0"]
    assert statistical_analysis(flags) == 0
    recipe = Recipe.load("embedded-r60.recipe.json")
    assert recipe.num_layers == load("embedded", device="cpu").cost.layers
    assert (recipe.drift, recipe.score, recipe.source) == (None, None, "fitted")
    assert capsys.readouterr().out.splitlines()[0] == str(list(recipe.counts))


def test_replay_is_the_released_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--replay", "--samples", "2", "--output", str(tmp_path), "--reduction-ratio", "0.5"]) == 0
    assert Recipe.load(tmp_path / "embedded-r50-replayed.recipe.json").source == "replayed"
    assert "by mass, the paper's way, as --replay is" in capsys.readouterr().out


def test_eval_compares_dense_and_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["eval", "--output", str(tmp_path), "--limit", "12", "--samples", "8", "--reduction-ratio", "0.5"]
    assert main([*flags, "--scores", "fitprune", "random"]) == 0
    out = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == ["dense", "50%", "50% random"]
    assert rows["dense"]["headline"] > 80
    assert {row["questions"] for row in rows.values()} == {12}
    assert rows["dense"]["details"] == {"samples": 12, "accuracy": rows["dense"]["headline"]}
    assert f"dense:\nembedded-dense-first12\nSamples: 12\nAccuracy: {rows['dense']['headline']:.2f}%\n" in out
    assert "accuracy, %" in out
    assert 0.5 <= rows["50%"]["visual_reduction"] <= 0.501
    assert rows["50%"]["alive"] == rows["50% random"]["alive"]
    assert "visual tokens alive after each layer, 50%:" in out
    assert main(flags) == 0  # everything was answered: scored again, nothing asked again
    assert "resumed" in capsys.readouterr().out


def test_a_benchmark_is_scored_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, dict[str, int], Path]] = []
    rehearsed: list[int] = []

    def score(data: Path, answers: Path, out: Path) -> Result:
        line = json.loads(answers.read_text())
        if "metadata" not in line:  # the rehearsal, before the model is loaded
            assert (data, line["text"], line["prompt"], out.is_relative_to(tmp_path)) == (folder, "", "what is a star ?", False)
            rehearsed.append(len(seen))
            return Result(None)
        seen.append((data, line["metadata"], out))
        return Result(1.0)

    made = Benchmark("made", "Made", "its folder", "q.jsonl", "pictures", "points", ("key.txt",), score, max_new_tokens=2)
    monkeypatch.setitem(BENCHMARKS, "made", made)
    folder = tmp_path / "eval" / "its folder"
    (folder / "pictures").mkdir(parents=True)
    (folder / "q.jsonl").write_text(json.dumps({"question_id": 1, "text": "what is a star ?"}) + "\n")
    flags = ["eval", "--benchmark", "made", "--playground", str(tmp_path / "eval")]
    assert main(flags) == 2  # there is no key
    (folder / "key.txt").write_text("")
    assert main(flags) == 0
    assert seen == [(folder, {"max_new_tokens": 2}, folder / "answers" / "upload")]
    assert main([*flags, "--max_new_tokens", "3", "--data", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert seen[1:] == [(folder, {"max_new_tokens": 3}, tmp_path / "out" / "upload")]
    other = tmp_path / "other.jsonl"
    other.write_text("\n" + (folder / "q.jsonl").read_text())
    assert main([*flags, "--question-file", str(other), "--output", str(tmp_path / "other")]) == 0
    assert seen[2][0] == folder
    assert rehearsed == [0, 1, 2]  # once before each run


def test_textvqa_with_other_annotations(tmp_path: Path) -> None:
    flags = ["eval", "--limit", "3", "--samples", "2", "--no-dense", "--output", str(tmp_path)]
    known = json.loads(embedded().annotations.read_text())
    for entry in known["data"]:
        entry["answers"] = ["never said"] * 10
    (tmp_path / "hard.json").write_text(json.dumps(known))
    scores = []
    for file in (embedded().annotations, tmp_path / "hard.json"):
        assert main([*flags, "--annotation-file", str(file)]) == 0
        scores += [row["headline"] for row in json.loads((tmp_path / "results.json").read_text())]
    assert scores[0] > 0
    assert scores[1] == 0
    files = ["--question-file", str(embedded().questions), "--image-folder", str(embedded().images)]
    assert main([*flags, *files, "--annotation-file", str(embedded().annotations)]) == 0
    assert json.loads((tmp_path / "results.json").read_text())[0]["headline"] == scores[0]
    assert main([*flags, *files]) == 0  # nothing says how to score one's own questions
    assert json.loads((tmp_path / "results.json").read_text())[0]["headline"] is None


def test_recipes_can_be_fitted_before_the_processes_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["eval", "--limit", "3", "--samples", "2", "--output", str(tmp_path), "--num-chunks", "2", "--overwrite"]
    assert main([*flags, "--fit-only"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["embedded-r60.recipe.json"]
    assert "recipe fitted now" in capsys.readouterr().out
    assert main([*flags, "--chunk-idx", "1"]) == 0
    assert "recipe fitted earlier" in capsys.readouterr().out  # and so all processes prune alike, also with --overwrite
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl")) == [
        "embedded-60-first3/2_1.jsonl",
        "embedded-dense-first3/2_1.jsonl",
    ]


def test_the_loader_answers_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-chunks", "70", "--reduction_ratio", "60", "--samples", "4", "--temperature", "0", "--batch-size", "5"]
    assert loader([*flags, "--chunk-idx", "1", "--answers-file", str(tmp_path / "a.jsonl")]) == 0
    assert "recipe fitted now" in capsys.readouterr().out
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 5
    assert Recipe.load(tmp_path / "a.jsonl.r60.recipe.json").reduction_ratio == 0.6


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "no-such-model", "0.6"], "no recipe is published"),
        (["show", "missing.json"], "missing.json"),
        (["eval", "--question-file", "missing.jsonl"], "missing.jsonl"),
        (["eval", "--model-path", "/no/such"], "playground/data/eval/textvqa/llava_textvqa_val_v051_ocr.jsonl"),
        (["eval", "--model-path", "/no/such", "--data", str(embedded().data / "textvqa")], "no checkpoint at"),
        (["eval", "--benchmark", "nonsense"], "choose from"),
        (["eval", "--benchmark", "gqa", "--annotation-file", "x.json"], "--annotation-file is for TextVQA"),
        (["eval", "--benchmark", "vizwiz", "--model-path", "/no/such"], "VizWiz needs playground/data/eval/vizwiz/llava_test.jsonl"),
        (["eval", "--benchmark", "gqa", "--image-folder", "none"], "none, which does not exist"),
        (["eval", "--limit", "4", "--samples", "2", "--num-chunks", "2"], "--chunk-idx 0 to its end first"),
        (["eval", "--recipe", "missing.json"], "missing.json"),
        (["eval", "--recipe", "missing.json", "--by", "drift"], "leave one of them out"),
        (["report", "--recipe", "missing.json", "--by", "mass"], "leave one of them out"),
        (["report", "--by", "drift", "--samples", "7"], "7 questions cannot tell schedules apart"),
        (["eval", "--model-base", "x"], "leave out --model-base"),
        (["convert", "/no/such", "target"], "no checkpoint at"),
        (["fit", "--from-stats", "missing.safetensors"], "missing.safetensors"),
        (["fit", "--output", "one.json", "--reduction-ratio", "0.5", "0.6", "--samples", "1"], "name a folder"),
        (["fit", "--samples", "7", "--model-path", "/no/such"], "7 questions cannot tell schedules apart"),
        (["fit", "--replay", "--criterion", "cross", "--model-path", "/no/such"], "which has no --criterion: leave one"),
        (["fit", "--replay", "--stats", "kept.safetensors", "--model-path", "/no/such"], "which has no --stats: leave one"),
        (["fit", "--replay", "--from-stats", "kept.safetensors"], "which has no --from-stats: leave one"),
        (["bench", "--recipe", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fitprune: error: ")
    assert message in error


@pytest.mark.parametrize("ratio", ["1.7", "-0.1", "abc", "100", "1"])
def test_ratios_that_mean_nothing_are_refused(ratio: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", f"--reduction_ratio={ratio}"])
    assert stopped.value.code == 2
    assert "ratio" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--help"], ["fit", "--help"], ["eval", "--help"], ["show", "--help"], ["bench", "--help"]])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    assert "fitprune " in capsys.readouterr().out


def test_settings_that_do_nothing_or_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--temperature", "-1"], ["--temperature", "nan"], ["--top_p", "5", "--temperature", "1"]):
        with pytest.raises(SystemExit) as stopped:
            loader(flags)
        assert stopped.value.code == 2
    assert loader(["--top_p", "0.5"]) == 2
    assert main(["eval", "--scores", "random", "--score", "cross"]) == 2
    assert main(["fit", "--device", "nonsense", "--samples", "8"]) == 2
    assert "cannot use device" in capsys.readouterr().err


def test_a_recipe_kept_for_other_settings_is_fitted_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = str(tmp_path / "a.jsonl")
    flags = ["--num-chunks", "200", "--answers-file", answers, "--reduction_ratio", "60"]
    assert loader([*flags, "--samples", "3"]) == 0
    assert loader([*flags, "--samples", "3"]) == 0
    assert "fitted earlier on 3 samples" in capsys.readouterr().out
    kept = tmp_path / "a.jsonl.r60.recipe.json"
    kept.write_text("{ torn")
    assert loader([*flags, "--samples", "4", "--overwrite"]) == 0
    assert "fitted now on 4 samples" in capsys.readouterr().out
    assert Recipe.load(kept).samples == 4


def test_questions_without_pictures_run_unpruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question_id": 1, "text": "what is a star ?"}) + "\n")
    assert loader(["--question-file", str(file), "--answers-file", str(tmp_path / "a"), "--reduction_ratio", "60"]) == 0
    assert "no pruning" in capsys.readouterr().out
    assert main(["eval", "--question-file", str(file), "--output", str(tmp_path / "out")]) == 0


def test_what_cannot_be_kept_or_scored_is_found_out_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["fit", "--output", str(tmp_path / "file" / "x.json"), "--model-path", "/no/such"]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err
    assert main(["eval", "--output", str(tmp_path), "--annotation-file", str(tmp_path / "none.json")]) == 2
    assert not list(tmp_path.glob("*.jsonl"))


def test_equal_ratios_are_run_once(tmp_path: Path) -> None:
    flags = ["eval", "--output", str(tmp_path), "--limit", "2", "--samples", "2", "--reduction-ratio", "0.6", "60", "--no-dense"]
    assert main(flags) == 0
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())] == ["60%"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["nonsense"],
        *([name, "--help"] for name in COMMANDS),
        ["eval", "--reduction-ratio", "1.7"],
        ["fit", "--criterion", "wish"],
        ["sweep", "--ablate", "score=wish"],
        ["bench", "--shape", "wish"],
        ["draw", "--score", "wish"],
    ],
    ids=" ".join,
)
def test_help_and_usage_errors_come_without_torch(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, where importing any of these fails."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "matplotlib", "gradio", "fastapi")))
from fitprune.cli import COMMANDS, main
sys.exit(main({argv!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    helping = argv[-1] in ("--help", "--version")
    assert done.returncode == (0 if helping else 2), done.stderr
    assert (done.stdout if helping else done.stderr).strip()
    assert helping or len(done.stderr.splitlines()) == 1
