"""Files that 0.1.0 wrote (files_of_0_1_0/, made by its own commands on the embedded model) are read, or refused in a line.

fitprune fit --samples 2 --reduction-ratio 0.6
fitprune sweep --limit 2 --ratios 0,60 --methods fitprune --benchmarks textvqa --samples 2 --max_new_tokens 2
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import MixtralConfig

import fitprune
from fitprune.cli import main
from fitprune.cost import CostModel
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile
from fitprune.questions import read_questions

HERE = Path(__file__).parent / "files_of_0_1_0"
ANSWERS = sorted(path.name for path in (HERE / "sweep").glob("*.jsonl"))
COUNTS = [7, 1, 1, 1]


def test_a_recipe_is_read_and_keeps_its_schedule() -> None:
    file = HERE / "embedded-r60.recipe.json"
    recipe, said = fitprune.Recipe.load(file), json.loads(file.read_text())
    assert said["fitprune_version"] == recipe.fitprune_version == "0.1.0"
    assert recipe.deletions(144) == said["counts"]
    assert recipe.ranked_by() == "fitprune"  # the paper's: it names none
    assert json.loads(recipe.to_bytes()) == said  # written again, it is the file that 0.1.0 wrote


def test_statistics_give_the_recipe_that_they_gave() -> None:
    stats, recipe = fitprune.AttentionStats.load(HERE / "statistics.safetensors"), fitprune.Recipe.load(HERE / "embedded-r60.recipe.json")
    assert stats.samples == 2
    assert fitprune.fit(stats, reduction_ratio=0.6).deletions(144) == recipe.deletions(144)


def test_a_recipe_of_a_mixture_of_experts_is_refused_by_its_model() -> None:
    recipe = fitprune.Recipe.load(HERE / "experts.recipe.json")
    assert recipe.deletions(16) == COUNTS
    experts = MixtralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with pytest.raises(FitPruneError, match=r"made for a model of other sizes.*fit one for this model"):
        recipe.check_model(CostModel.from_config(experts))


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HERE / "sweep", tmp_path / "sweep"))


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_continued_and_those_of_another_run_refused(name: str, tmp_path: Path) -> None:
    file = copied(tmp_path) / name
    before = file.read_bytes()
    questions, metadata = read_questions(embedded().questions)[:2], json.loads(before.splitlines()[0])["metadata"]
    with AnswersFile(file, questions, "embedded", metadata=metadata) as answers:
        assert answers.done == 2
    for model, other in (("another", metadata), ("embedded", {**metadata, "recipe": "0123456789ab"})):
        with pytest.raises(FitPruneError, match=name):
            AnswersFile(file, questions, model, metadata=other)
    assert file.read_bytes() == before


def test_a_sweep_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command that began it: no question is answered twice, and the accuracies are those of 0.1.0."""
    folder = copied(tmp_path)
    before = {name: (folder / name).read_bytes() for name in ANSWERS}
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    flags = "--limit 2 --ratios 0,60 --methods fitprune --benchmarks textvqa --samples 2 --max_new_tokens 2"
    assert main(["sweep", *flags.split(), "--output", str(folder)]) == 0
    capsys.readouterr()
    assert {name: (folder / name).read_bytes() for name in ANSWERS} == before
    now = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [(run["name"], run["headline"]) for run in now] == [(run["name"], run["headline"]) for run in runs]
