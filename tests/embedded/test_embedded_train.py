"""Training: interrupted anywhere it ends with the same bits; ranks agree; other plans and damaged files are refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_embedded_network import TINY
from torch import Tensor

from embedded import batches, train
from embedded.network import SIZES, Embedded
from embedded.questions import FAMILIES
from embedded.targets import HEADS
from embedded.train import AWAY, CHECKPOINT, LOG, PATCHES, Plan, Run, load_checkpoint
from fitprune.errors import FitPruneError

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9's Muon")

PLAN = Plan("tiny", batch=2, see_steps=2, answer_steps=3)
NEVER = 1e9  # seconds
LOCK = "lock"
PATCH_FIGURES = {f"patch {head}" for head in HEADS}
ROOT = Path(__file__).parents[2]
work = train._work


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)


def run_in(folder: Path, save_seconds: float = 0, ranks: int = 1) -> Run:
    return Run(folder, "cpu", ranks, workers=0, save_seconds=save_seconds, quiet=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint of a run that nothing interrupted and that saved once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", TINY)
        return load_checkpoint(train.train(PLAN, run_in(tmp_path_factory.mktemp("whole"), NEVER)))


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Interrupting:
    """A function that does what another does but is interrupted at its n-th call, before or in the middle of it."""

    def __init__(self, inner: Any, call: int) -> None:
        self.inner, self.left = inner, call

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            if self.inner is torch.save:
                Path(args[1]).write_bytes(b"half a checkpoint")
            raise KeyboardInterrupt
        return self.inner(*args, **options)


PLACES = {
    "forward": (train, "_losses"),
    "before the optimizers": (torch.nn.utils, "clip_grad_norm_"),
    "writing": (torch, "save"),
    "replacing": (os, "replace"),
}


@pytest.mark.parametrize(
    ("place", "call"),
    [*(("forward", step) for step in range(1, PLAN.steps + 1)), *((place, step) for place in list(PLACES)[1:] for step in (1, 3))],
)
def test_a_run_interrupted_anywhere_ends_with_the_same_bits(
    place: str, call: int, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        owner, name = PLACES[place]
        patch.setattr(owner, name, Interrupting(getattr(owner, name), call))
        with pytest.raises(KeyboardInterrupt):
            train.train(PLAN, run_in(tmp_path))
    assert (tmp_path / CHECKPOINT).exists() == (call > 1)
    if call > 1:
        assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == call - 1
    assert same(load_checkpoint(train.train(PLAN, run_in(tmp_path))), whole)
    assert {path.name for path in tmp_path.iterdir()} <= {CHECKPOINT, LOG, LOCK}


def test_a_run_of_many_short_sessions_ends_with_the_same_bits(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, sessions = train._losses, 0
    while not (tmp_path / CHECKPOINT).exists() or load_checkpoint(tmp_path / CHECKPOINT)["step"] < PLAN.steps:
        monkeypatch.setattr(train, "_losses", Interrupting(inner, 2))  # one step a session
        sessions += 1
        try:
            train.train(PLAN, run_in(tmp_path))
        except KeyboardInterrupt:
            continue
    assert sessions == PLAN.steps
    assert same(load_checkpoint(tmp_path / CHECKPOINT), whole)


def test_what_was_not_saved_is_done_again(whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train, "_losses", Interrupting(train._losses, 4))
        with pytest.raises(KeyboardInterrupt):
            train.train(PLAN, run_in(tmp_path, NEVER))
    assert not (tmp_path / CHECKPOINT).exists()
    assert same(load_checkpoint(train.train(PLAN, run_in(tmp_path, NEVER))), whole)


KILLED = """
import os, signal, torch
from pathlib import Path
from embedded import network, train
network.SIZES["tiny"] = {tiny}
torch.set_num_threads(1)
save = torch.save
def torn(state, path):
    save(state, path)
    if state["step"] == {step}:
        os.truncate(path, 5000)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = torn
train.train(train.{plan}, train.Run(Path({folder!r}), "cpu", 1, 0, save_seconds=0, quiet=True))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_process_killed_while_it_saves_after_the_phase_border(whole: dict[str, Any], tmp_path: Path) -> None:
    code = KILLED.format(tiny=TINY, step=PLAN.see_steps + 1, plan=PLAN, folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == PLAN.see_steps
    assert (tmp_path / CHECKPOINT).with_suffix(".new").stat().st_size == 5000
    assert same(load_checkpoint(train.train(PLAN, run_in(tmp_path))), whole)


def tiny_work(rank: int, plan: Plan, run: Run, meeting: str) -> None:
    """`_work` in a new process, which has to be told the tiny size; leaves the weights of its rank behind."""
    SIZES["tiny"] = TINY
    made: list[Embedded] = []
    make = train.optimizers
    train.optimizers = lambda model: make(made.append(model) or model)  # type: ignore[func-returns-value, assignment]
    work(rank, plan, run, meeting)
    torch.save(made[0].state_dict(), run.folder / f"rank {rank}.pt")


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, batch=4)
    start = torch.cat([value.flatten() for value in Embedded("tiny").state_dict().values()])

    def moved(state: dict[str, Tensor]) -> Tensor:
        return torch.cat([value.flatten() for value in state.values()]) - start

    alone = moved(load_checkpoint(train.train(plan, run_in(tmp_path / "one", NEVER)))["model"])
    half = moved(load_checkpoint(train.train(replace(plan, batch=2), run_in(tmp_path / "half", NEVER)))["model"])
    monkeypatch.setattr(train, "_work", tiny_work)
    together = load_checkpoint(train.train(plan, run_in(tmp_path / "two", NEVER, ranks=2)))
    first, second = (torch.load(tmp_path / "two" / f"rank {rank}.pt", weights_only=True) for rank in range(2))
    assert same(first, second)
    assert same(first, together["model"])
    near, far = (moved(first) - alone).norm() / alone.norm(), (half - alone).norm() / alone.norm()
    assert near < 0.3 * far, (near, far)
    assert near < 0.2, (near, far)


def test_the_language_model_is_untouched_while_the_tower_learns_to_see(tmp_path: Path) -> None:
    plan = replace(PLAN, answer_steps=0)
    learned = load_checkpoint(train.train(plan, run_in(tmp_path)))["model"]
    for name, before in Embedded("tiny").state_dict().items():
        text = "language_model" in name or "lm_head" in name
        unused = "post_layernorm" in name  # the picture's class token, which LLaVA does not read
        assert torch.equal(learned[name], before) == (text or unused), name


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    path = train.train(replace(PLAN, answer_steps=1), run_in(tmp_path))
    before = path.read_bytes()
    assert train.train(replace(PLAN, answer_steps=1), run_in(tmp_path)) == path
    assert path.read_bytes() == before


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    plan = replace(PLAN, answer_steps=0)
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FitPruneError, match=r"another process is training in .*: wait for it, or give another folder"):
            train.train(plan, run_in(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {LOCK}
    assert train.train(plan, run_in(tmp_path)).exists()


def test_a_process_whose_parent_is_gone_stops_without_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    monkeypatch.setattr(train, "parent_process", lambda: SimpleNamespace(is_alive=lambda: False))
    train.train(PLAN, run_in(tmp_path))
    assert len((tmp_path / LOG).read_text().splitlines()) == 1
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("change", [{"size": "small"}, {"batch": 4}, {"see_steps": 1}, {"seed": 1}], ids=lambda change: next(iter(change)))
def test_a_run_of_another_plan_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = train.train(replace(PLAN, answer_steps=0), run_in(tmp_path))
    before = path.read_bytes()
    with pytest.raises(FitPruneError, match=r"checkpoint\.pt belongs to a run of another plan .*give another folder"):
        train.train(replace(PLAN, **change), run_in(tmp_path))
    assert path.read_bytes() == before


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    train.train(replace(PLAN, answer_steps=1), run_in(tmp_path))
    state = load_checkpoint(train.train(replace(PLAN, answer_steps=2), run_in(tmp_path)))
    assert state["step"] == PLAN.see_steps + 2
    assert Plan(**state["plan"]) == replace(PLAN, answer_steps=2)


def test_a_run_is_not_made_shorter_than_it_is(tmp_path: Path) -> None:
    path = train.train(replace(PLAN, answer_steps=2), run_in(tmp_path))
    before = path.read_bytes()
    with pytest.raises(FitPruneError, match=rf"has {PLAN.see_steps + 2} steps, this plan {PLAN.see_steps + 1}"):
        train.train(replace(PLAN, answer_steps=1), run_in(tmp_path))
    assert path.read_bytes() == before


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"state": 1}, tmp_path / CHECKPOINT)
    with pytest.raises(FitPruneError, match="not a checkpoint of this training"):
        train.train(PLAN, run_in(tmp_path))


class Harmful:
    """What must not be run when a checkpoint is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "code"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = train.train(replace(PLAN, see_steps=1, answer_steps=0), run_in(tmp_path))
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    content = {"cut": path.read_bytes()[:9000], "empty": b"", "text": b"not a checkpoint", "code": pickle.dumps(Harmful(), 2)}  # fmt: skip
    path.write_bytes(content[damage])
    with pytest.raises(FitPruneError, match=r"cannot read .*checkpoint\.pt .*remove it to start anew") as error:
        train.train(PLAN, run_in(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()
    assert path.read_bytes() == content[damage]


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match=r"no checkpoint .*checkpoint\.pt: train first"):
        load_checkpoint(tmp_path / CHECKPOINT)


@given(see=st.integers(0, 9), answer=st.integers(1, 9))
def test_phases_follow_one_another(see: int, answer: int) -> None:
    plan = Plan("tiny", 2, see, answer)
    phases = [plan.phase(step) for step in range(plan.steps)]
    assert phases == [("see", at, see) for at in range(see)] + [("answer", at, answer) for at in range(answer)]


def test_every_line_of_the_log_is_json_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOG_EVERY", 1)
    train.train(PLAN, run_in(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, PLAN.steps + 1))
    assert [line["phase"] for line in lines] == ["see"] * PLAN.see_steps + ["answer"] * PLAN.answer_steps
    answered = set[str]()
    for at, line in enumerate(lines):
        patches, answers = ({name: line[name] for name in known if name in line} for known in (PATCH_FIGURES, FAMILIES))
        assert set(patches) == PATCH_FIGURES
        assert all(0 <= share <= 1 for share in [*patches.values(), *answers.values()])
        assert line["patch loss"] > 0
        if line["phase"] == "answer":
            assert line["answer loss"] > 0
            start = (at - PLAN.see_steps) * PLAN.batch
            numbers = set(batches.answering(start, PLAN.batch)["family"].flatten().tolist())
            assert set(answers) == {list(FAMILIES)[number] for number in numbers}
        else:
            assert not answers
        answered.update(answers)
    assert len(answered) > 10


def test_notes_are_means_since_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for every, folder in ((1, "all"), (2, "pairs")):
        monkeypatch.setattr(train, "LOG_EVERY", every)
        train.train(replace(PLAN, see_steps=2, answer_steps=0), run_in(tmp_path / folder))
    one, two = (json.loads(line)["patch loss"] for line in (tmp_path / "all" / LOG).read_text().splitlines())
    (pair,) = (json.loads(line)["patch loss"] for line in (tmp_path / "pairs" / LOG).read_text().splitlines())
    assert one != two
    assert pair == pytest.approx((one + two) / 2, abs=2e-4)


class Fixed:
    """A model with given losses and a given set of tokens that it gets right."""

    def __init__(self, right: Tensor) -> None:
        self.right = right

    def see(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["pixels"], batch["pixels"]

    def see_loss(self, outputs: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        return torch.tensor(3.0), dict.fromkeys(PATCH_FIGURES, 0.25)

    def loss(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(2.0), torch.tensor(0.5), self.right


def test_an_answer_counts_only_if_all_its_tokens_are_right() -> None:
    batch = batches.answering(20, 3)
    right = torch.rand(int(batch["answer"].sum()), generator=torch.Generator().manual_seed(2)) < 0.8
    _, figures = train._losses(Fixed(right), batch, "answer", 0.0)  # type: ignore[arg-type]
    tokens = iter(right.tolist())
    exact: dict[str, list[bool]] = {}
    for row in range(3):
        for slot in range(1, batches.SLOTS + 1):
            number = int((batch["answer"][row] & (batch["slot"][row] == slot)).sum())
            hits = [next(tokens) for _ in range(number)]
            exact.setdefault(list(FAMILIES)[int(batch["family"][row, slot - 1])], []).append(all(hits))
    expected = {family: sum(of_family) / len(of_family) for family, of_family in exact.items()}
    assert 0 < sum(map(sum, exact.values())) < 3 * batches.SLOTS
    assert {family: figures[family] for family in FAMILIES if family in figures} == pytest.approx(expected)
    assert (figures["answer loss"], figures["away"]) == (2, 0.5)
    assert {figures[name] for name in PATCH_FIGURES} == {0.25}


def test_the_patch_loss_fades_out_at_the_end() -> None:
    batch = batches.answering(0, 1)
    model: Any = Fixed(torch.ones(int(batch["answer"].sum()), dtype=torch.bool))
    rest = 2 + AWAY * 0.5  # of the answers and of attention away from home
    losses = {done: train._losses(model, batch, "answer", done)[0].item() for done in (0.0, 0.5, 0.85, 0.925, 1.0)}
    expected = {0.0: 1.5, 0.5: 1.5, 0.85: 1.5, 0.925: 0.75, 1.0: 0.0}
    assert losses == pytest.approx({done: rest + patch for done, patch in expected.items()})
    assert PATCHES == 0.5
    assert train._losses(model, batch, "see", 0.99)[0].item() == 3


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps, place = ["--see-steps", "1", "--answer-steps", "1"], ["--device", "cpu", "--workers", "0", "--ranks"]
    options = ["--size", "tiny", "--batch", "2", *steps, *place]
    folder = tmp_path / "run"
    assert train.main([str(folder), *options, "3"]) == 2
    assert "error: a batch of 2 cannot be shared by 3 processes: change --ranks" in capsys.readouterr().err
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(train, "_losses", Interrupting(train._losses, 2))
        assert train.main([str(folder), *options, "1"]) == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    assert train.main([str(folder), *options, "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / CHECKPOINT)
    assert train.main([str(folder), *options, "1", "--seed", "7"]) == 2
    assert "another plan" in capsys.readouterr().err
