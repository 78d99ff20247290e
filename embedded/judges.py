"""Every ranking and schedule on every embedded model, at equal visual FLOPs: exact answers on held-out pictures, in one table.

The judges are the models that ship, asked about their plain pictures, and `embedded/judge`, asked about crowded ones. Recipes come from
calibration questions of the same kind, which share no picture with those asked. `drift` is the recommended method: `spread`, with the
schedule and the setting that move the model's own answers least (`fitprune fit --by drift`). All methods answer a picture's questions in
turn, so its image features are made once. Answers are kept batch by batch, a rerun goes on, and methods can be added later.

judged.py counts and draws up the table.

    python -m embedded.judges --methods fitprune "spread theta=0.5" --models embedded-qwen embedded/judge --ratios 70 90 --pictures 10
    python -m embedded.judges --output runs/judges                     # everything, hours on two cores
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fitprune
from fitprune import arguments, entry
from fitprune.calibrate import kept_statistics
from fitprune.choose import choose
from fitprune.decoder.model_hooks import put
from fitprune.decoder.upstream import FEATURES
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families import VLM
from fitprune.files import check_writable, file_name, read_journal
from fitprune.questions import Calibration
from fitprune.studies.before import Before
from fitprune.studies.judge import DriftJudge
from fitprune.studies.methods import Made, applied, cosine, find, recipes

from . import clutter
from .benchmarks import calibration as calibration_files
from .evaluate import MAX_NEW_TOKENS, Asked, about, encoded
from .judged import DRIFT, Judged, Run, summary, table
from .models import MODELS, Model

SHOWN = ("fitprune", "last", "random", "uniform", "fastv", "pyramiddrop", "vtw", "spread", DRIFT)
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


def judge(
    model: Model,
    methods: Sequence[str],
    ratios: Sequence[float],
    pictures: int,
    folder: Path,
    samples: int = 128,
    device: str | None = None,
) -> Judged:
    """Has a model answer with every method at every ratio, and densely.

    Args:
        methods: As `studies.methods.find` takes them, and `drift` (`drift absorb=0.8`).
        pictures: Held-out ones, about 15 questions each.
        folder: Keeps answers, statistics and what was judged by drift.
    """
    vlm = fitprune.load(model.name, device=device)
    calibration = _calibration(model, folder, samples)
    runs, notes = _runs(vlm, calibration, methods, ratios, folder)
    batches = (_questions(model, index) for index in range(pictures))
    kept = _Kept(folder / f"{file_name(vlm.name)}.answers.jsonl", _weights(vlm))
    right: dict[Run, list[list[bool]]] = {run: [] for run in runs}
    for index, batch in enumerate(tqdm(batches, desc=vlm.name, unit="picture", total=pictures)):
        with features_once(vlm):
            plain = functools.cache(lambda batch=batch: encoded(vlm, batch, "left"))
            for run, made in [*runs.items()]:
                if (known := kept.rows.get((_name(made), index))) is None:
                    try:
                        with applied(vlm, made) as asked:
                            inputs = plain() if asked is vlm else encoded(asked, batch, "left")
                            given = asked.generate(inputs, max_new_tokens=MAX_NEW_TOKENS)
                    except FitPruneError as error:  # this model cannot do it, whatever the picture
                        notes.append(f"{run[0]} at {run[1]:.0%}: {error}")
                        del runs[run], right[run]
                        continue
                    known = [text == question.answer for text, (_, question) in zip(given, batch, strict=True)]
                    kept.add(_name(made), index, known)
                right[run].append(known)
    return Judged(model.name, right, notes)


def _runs(
    vlm: VLM, calibration: Calibration, methods: Sequence[str], ratios: Sequence[float], folder: Path
) -> tuple[dict[Run, Made | None], list[str]]:
    """What is run; why others are not."""
    stats = kept_statistics(vlm, calibration, folder)
    assert stats is not None
    by_drift = DriftJudge(vlm, calibration, journal=folder / f"{file_name(vlm.name)}.drift.jsonl") if any(map(_drifts, methods)) else None
    inside = [name for name in methods if not _drifts(name)]
    runs: dict[Run, Made | None] = {("dense", 0.0): None}
    notes: list[str] = []
    for (name, ratio), made in recipes(stats, ["fitprune", *inside], ratios).items():
        for method in filter(_drifts, methods) if name == "fitprune" else ():
            if isinstance(made, FitPruneError):
                notes.append(f"{method}: {made}")
                continue
            assert by_drift is not None
            assert not isinstance(made, Before)
            chosen = choose(replace(made[0], absorb=_absorb(method)), by_drift)
            runs[method, ratio] = chosen.recipe, chosen.recipe.ranked_by()
            equals = f"; {len(chosen.equals)} others could not be told from it" if chosen.equals else ""
            notes.append(f"{method} at {ratio:.0%}: {chosen.recipe.source}, {chosen.recipe.score}{equals}")
        if isinstance(made, FitPruneError):
            notes.append(str(made))
        elif name in inside:
            runs[name, ratio] = made
    order = ["dense", *methods]
    return dict(sorted(runs.items(), key=lambda run: (run[0][1], order.index(run[0][0])))), notes


def _drifts(method: str) -> bool:
    return method.split()[:1] == [DRIFT]


def _absorb(method: str) -> float | None:
    """The setting that `drift` may have."""
    _, *settings = method.split()
    if not settings:
        return None
    if len(settings) > 1 or not settings[0].startswith("absorb="):
        raise FitPruneError(f"{method}: {DRIFT} takes absorb=COSINE and nothing else")
    return cosine(settings[0].removeprefix("absorb="), method)


def _name(made: Made | None) -> str:
    """What answers are kept under."""
    if made is None:
        return "dense"
    return json.dumps(made.settings) if isinstance(made, Before) else replace(made[0], score=made[1]).digest


def _questions(model: Model, index: int) -> list[Asked]:
    """What is asked about a held-out picture."""
    return about("held-out", index, draw=model.draw)


def _calibration(model: Model, folder: Path, samples: int) -> Calibration:
    """What ships, or drawn now for a model that is asked about other pictures."""
    if model.draw is not clutter.scene:
        return Calibration(embedded().calibration, embedded().calibration_images, samples, 8)
    made = folder / "calibration-cluttered"
    for name, content in calibration_files.build(draw=model.draw).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return Calibration(made / calibration_files.QUESTIONS, made / calibration_files.IMAGES, samples, 8)


@contextmanager
def features_once(vlm: VLM) -> Iterator[None]:
    """Image features that were made of the same pixels are not made again in here."""
    base: Any = vlm.model.base_model
    original: Callable[..., Any] = getattr(base, FEATURES["image"])
    known: dict[str, Any] = {}

    @functools.wraps(original)  # `generate` reads its signature
    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = hashlib.sha256()
        for value in (*args, *(kwargs[name] for name in sorted(kwargs))):
            key.update(value.numpy(force=True).tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
        if (name := key.hexdigest()) not in known:
            known[name] = original(*args, **kwargs)
        return known[name]

    with ExitStack() as undo:
        put(base, FEATURES["image"], remembered, undo)
        yield


class _Kept:
    """Right answers by run and picture, on disk as they come."""

    def __init__(self, path: Path, about: str) -> None:
        self.path = path
        self.rows = {(name, picture): [bool(one) for one in right] for name, picture, right in read_journal(path, {"weights": about})}

    def add(self, name: str, picture: int, right: Sequence[bool]) -> None:
        self.rows[name, picture] = list(right)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, picture, list(map(int, right))]) + "\n")


def _weights(vlm: VLM) -> str:
    """Tells checkpoints apart."""
    found = hashlib.sha256()
    for name, value in vlm.model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.double().sum().item():.9e}".encode())
    return found.hexdigest()[:16]


def run(args: argparse.Namespace) -> int:
    """Judges and prints; returns the exit code."""
    for name in args.methods:
        if _drifts(name):
            _absorb(name)
        else:
            find(name)
    known = {model.name: model for model in MODELS.values()}
    if unknown := [name for name in args.models if name not in known]:
        raise FitPruneError(f"unknown model {unknown[0]}: use some of {', '.join(known)}")
    check_writable(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    if not (ratios := [ratio for ratio in dict.fromkeys(args.ratios) if ratio]):
        raise FitPruneError("no ratio above 0 to judge at: give --ratios some")
    found = []
    for name in args.models:
        found.append(judge(known[name], list(dict.fromkeys(args.methods)), ratios, args.pictures, args.output, args.samples, args.device))
        print(table(found[-1]), flush=True)
    if {"fitprune", DRIFT} <= set(args.methods):
        print(summary(found))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="embedded.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [model.name for model in MODELS.values()]
    parser.add_argument("--models", nargs="+", default=names, metavar="NAME", help=f"some of {', '.join(names)}; default all")
    parser.add_argument("--methods", nargs="+", default=list(SHOWN), help="as `fitprune sweep` takes them, and drift")
    parser.add_argument("--ratios", nargs="+", type=arguments.ratio, default=list(RATIOS), help="shares of visual compute to save")
    parser.add_argument("--pictures", type=arguments.positive, default=30, help="held-out ones of each model, about 15 questions each")
    parser.add_argument("--samples", type=arguments.positive, default=128, help="calibration questions")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 …; default a GPU if there is one")
    parser.add_argument("--output", type=Path, default=Path("runs/judges"), help="folder for everything; a rerun continues there")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
