"""Training: first the vision tower learns what its patches show, then everything learns to answer.

A run is a folder. It can be interrupted at any moment and goes on, bit for bit, from its last checkpoint (weights, both
optimizers, step), which is replaced whole or not at all; batches depend on the step alone. On a CPU one process per
core, with one all-reduce a step, beats one process with as many threads. Checkpoints are read as data, never as code.

    python -m embedded.train /tmp/run                         # CPU: about two hours on two cores
    python -m embedded.train /tmp/run --size large            # for a GPU; not tried yet
    python -m embedded.train /tmp/run --answer-steps 4000     # shorten a run, also one under way, before its decay
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import parent_process
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp
from tqdm import tqdm

from fitprune import arguments, entry
from fitprune.errors import FitPruneError

from .batches import stream_of
from .models import MODELS
from .network import SIZES, Embedded
from .optimise import Optimizers, optimizers, set_rates
from .questions import FAMILIES

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
PATCHES, FADE = 0.5, 0.15  # weight of the patch loss beside the answers'; share of the end over which it fades out
AWAY = 0.1  # weight of the attention that visual tokens pay to others than themselves: looking around has to pay
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Plan:
    """What is trained, and for how long. `batch`: pictures per step, over all ranks."""

    size: str = "small"
    batch: int = 16
    see_steps: int = 2400
    answer_steps: int = 3200
    seed: int = 0
    family: str = "llava"

    @property
    def steps(self) -> int:
        return self.see_steps + self.answer_steps

    def phase(self, step: int) -> tuple[str, int, int]:
        """Phase of a step, the step within it, and its length."""
        if step < self.see_steps:
            return "see", step, self.see_steps
        return "answer", step - self.see_steps, self.answer_steps


@dataclass(frozen=True)
class Run:
    """How it is carried out: this changes the time it takes, and rounding, but not what is learned."""

    folder: Path
    device: str
    ranks: int
    workers: int
    save_seconds: float = 120
    compiled: bool = False
    quiet: bool = False


def train(plan: Plan, run: Run) -> Path:
    """Trains, or goes on training; returns the checkpoint's path.

    Raises:
        FitPruneError: if the batch cannot be divided among the ranks, the folder holds a run of another plan, or another
            process is training in it.
    """
    if plan.see_steps and not MODELS[plan.family].see_steps:
        raise FitPruneError(f"a {plan.family} begins with a tower that sees: leave out --see-steps")
    if plan.batch % run.ranks:
        raise FitPruneError(f"a batch of {plan.batch} cannot be shared by {run.ranks} processes: change --ranks")
    run.folder.mkdir(parents=True, exist_ok=True)
    _begun(run.folder / CHECKPOINT, plan)  # what is wrong with it is said here, not by every rank
    with _alone(run.folder), tempfile.TemporaryDirectory() as meeting:
        if run.ranks == 1:
            _work(0, plan, run, "")
        else:
            mp.spawn(_work, (plan, run, f"file://{meeting}/store"), nprocs=run.ranks)
    return run.folder / CHECKPOINT


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder; the lock goes with the process, however that ends (POSIX only)."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FitPruneError(f"another process is training in {folder}: wait for it, or give another folder") from None
        yield


def _work(rank: int, plan: Plan, run: Run, meeting: str) -> None:
    """One process of a run."""
    if run.ranks > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=run.ranks)
    kind = MODELS[plan.family]
    model = kind.network(plan.size, plan.seed).to(run.device)
    made = optimizers(model)
    step = _resume(run.folder / CHECKPOINT, plan, model, made)
    if run.compiled:
        for block in model.modules():
            if hasattr(block, "self_attn"):
                block.compile()
    bar = tqdm(total=plan.steps, initial=step, unit="step", disable=rank > 0 or run.quiet, dynamic_ncols=True)
    saved, notes = time.monotonic(), _Notes(run.folder / LOG if rank == 0 else None)
    while step < plan.steps:
        phase, first, last = plan.phase(step)
        share = plan.batch // run.ranks
        for batch in stream_of(phase, first, last, share, rank, run.ranks, run.workers, kind.look, kind.prompts, kind.draw):
            progress = plan.phase(step)[1] / last
            factor = set_rates(made, phase, progress)
            batch = {key: value.to(run.device, non_blocking=True) for key, value in batch.items()}
            with torch.autocast(run.device.split(":")[0], torch.bfloat16):
                loss, figures = _losses(model, batch, phase, progress)
            loss.backward()
            _share(model, run.ranks)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            for optimizer in made.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            notes.add(step, phase, factor, figures, bar)
            if (parent := parent_process()) and not parent.is_alive():
                return  # killed without a word: leave the folder to the next run
            if rank == 0 and (time.monotonic() - saved > run.save_seconds or step == plan.steps):
                _save(run.folder / CHECKPOINT, plan, step, model, made)
                saved = time.monotonic()
    bar.close()
    if run.ranks > 1:
        dist.destroy_process_group()


def _losses(model: Embedded, batch: dict[str, Tensor], phase: str, progress: float) -> tuple[Tensor, dict[str, Any]]:
    """The loss of a batch, and what is worth noting: loss by kind, patches read rightly, exact answers by family."""
    figures: dict[str, Any]
    outputs = model.see(batch)
    patch_loss, figures = model.see_loss(outputs, batch)
    if phase == "see":
        return patch_loss, figures
    loss, away, right = model.loss(outputs, batch)
    rows = torch.arange(len(batch["ids"]), device=right.device)[:, None].expand_as(batch["ids"])
    exact = torch.ones_like(batch["family"], dtype=torch.int64)
    at = (rows[batch["answer"]] * exact.shape[1] + batch["slot"][batch["answer"]] - 1).long()
    exact = exact.view(-1).scatter_reduce(0, at, right.long(), "amin").view_as(exact)
    figures |= {"answer loss": loss.item(), "away": away.item()}
    for number, family in enumerate(FAMILIES):
        if len(hits := exact[batch["family"] == number]):
            figures[family] = hits.float().mean().item()
    return loss + AWAY * away + PATCHES * min(1.0, (1 - progress) / FADE) * patch_loss, figures


def _share(model: Embedded, ranks: int) -> None:
    """Averages the gradients over ranks, in one exchange."""
    if ranks == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= ranks
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _save(path: Path, plan: Plan, step: int, model: Embedded, made: Optimizers) -> None:
    """Writes a checkpoint beside the old one and then takes its place: there is a whole one at every moment."""
    state = {"model": model.state_dict(), **{name: optimizer.state_dict() for name, optimizer in made.items()}}
    torch.save({"plan": asdict(plan), "step": step, **state}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as data.

    Raises:
        FitPruneError: if there is none, or it is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FitPruneError(f"no checkpoint {path}: train first (python -m embedded.train {path.parent})") from None
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise FitPruneError(f"cannot read {path} ({type(error).__name__}): remove it to start anew") from None
    if not isinstance(state, dict) or not {"plan", "step", "model"} <= state.keys():
        raise FitPruneError(f"{path} is not a checkpoint of this training: give another folder")
    return state


def _begun(path: Path, plan: Plan) -> dict[str, Any] | None:
    """The checkpoint that this plan goes on from; None where there is none."""
    if not path.exists():
        return None
    state = load_checkpoint(path)
    old = Plan(**state["plan"])
    if replace(old, answer_steps=plan.answer_steps) != plan:
        raise FitPruneError(f"{path} belongs to a run of another plan ({old}): give another folder")
    if state["step"] > plan.steps:
        raise FitPruneError(f"{path} has {state['step']} steps, this plan {plan.steps}: raise --answer-steps")
    return state


def _resume(path: Path, plan: Plan, model: Embedded, made: Optimizers) -> int:
    """Puts a checkpoint's state into model and optimizers; returns the steps done, 0 where there is no checkpoint."""
    state = _begun(path, plan)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    for name, optimizer in made.items():
        optimizer.load_state_dict(state[name])
    return int(state["step"])


class _Notes:
    """Means of the figures since the last note, to log.jsonl and the progress bar."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.sums, self.counts = path, dict[str, float](), dict[str, int]()

    def add(self, step: int, phase: str, factor: float, figures: dict[str, float], bar: Any) -> None:
        if self.path is None:
            return
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        bar.update()
        if step % LOG_EVERY:
            return
        means = {name: round(total / self.counts[name], 4) for name, total in self.sums.items()}
        line = {"step": step, "phase": phase, "rate": round(factor, 4), "time": round(time.time()), **means}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        bar.set_postfix({name: means[name] for name in ("patch loss", "answer loss", "number") if name in means})
        self.sums.clear()
        self.counts.clear()


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of a run; the defaults fit the machine."""
    gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    parser.add_argument("folder", type=Path, help="the run: its checkpoint and its log")
    parser.add_argument("--family", choices=MODELS, default="llava", help="all but llava start from the embedded llava")
    parser.add_argument("--size", choices=SIZES, default="small", help="of a llava; others have that of the llava")
    parser.add_argument("--batch", type=arguments.positive, default=128 if gpu else Plan.batch, help="pictures per step")
    parser.add_argument("--see-steps", type=arguments.positive, help="of the vision tower alone; default by family")
    parser.add_argument("--answer-steps", type=arguments.positive, help="of everything; default by family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--ranks", type=arguments.positive, default=None, help="processes; default 1 on a GPU, else one per core")
    parser.add_argument("--workers", type=int, default=cores if gpu else 0, help="drawing processes, per rank")
    parser.add_argument("--save-seconds", type=float, default=120, help="time between checkpoints")
    parser.add_argument("--compile", action="store_true", help="compile each block (needs a C++ compiler)")


def settings(args: argparse.Namespace) -> tuple[Plan, Run]:
    """What the flags of `add_options` say."""
    kind = MODELS[args.family]
    see_steps, answer_steps = args.see_steps or kind.see_steps, args.answer_steps or kind.answer_steps
    plan = Plan(args.size, args.batch, see_steps, answer_steps, args.seed, args.family)
    cores = 1 if args.device != "cpu" else os.cpu_count() or 1
    ranks = args.ranks or max(share for share in range(1, cores + 1) if plan.batch % share == 0)
    return plan, Run(args.folder, args.device, ranks, args.workers, args.save_seconds, args.compile)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, 2 with one line on stderr for bad input, 130 when interrupted."""
    parser = arguments.Parser(prog="embedded.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)

    def run(args: argparse.Namespace) -> int:
        print(train(*settings(args)))
        return 0

    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
