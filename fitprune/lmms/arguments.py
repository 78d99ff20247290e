"""What `--model_args` names: a checkpoint, a recipe to prune it with, and where it runs.

The arguments are those of `fitprune eval` by the same names. The recipe comes from where every command's comes
(`calibrate.choose`): the file named, else a published one, else one kept by an earlier run, else one fitted now. Questions
to fit on have to be named then, as a task's own are not ours to look at; embedded models have an embedded set.

With accelerate or torchrun every process is a worker with a model of its own on its own GPU. The first makes the recipe
and hands it to the others, so that all prune alike.

    python -m lmms_eval --model fitprune --model_args pretrained=embedded,reduction_ratio=60,score=last --tasks …
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..calibrate import SAMPLES, Calibration, choose
from ..embedded import MODELS, embedded
from ..errors import FitPruneError, first_line
from ..evaluation.questions import Question
from ..families import Loaded, load
from ..ratio import parse_ratio
from ..recipe import Recipe
from ..scores import find_score


@dataclass(frozen=True)
class Worker:
    """This process among those that share the questions."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Worker:
        """As accelerate and torchrun tell it."""
        return cls(*(int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))))  # fmt: skip

    def device(self, named: str | None, device_map: Any) -> str | None:
        """The device of this worker: a GPU of its own where there are several workers, unless one is named.

        Raises:
            FitPruneError: for a device_map with several workers.
        """
        if self.count == 1:
            return named
        if device_map is not None:
            raise FitPruneError(
                f"device_map spreads one model over the GPUs, but {self.count} processes run: start one"
            )
        own_gpu = torch.cuda.is_available() and named in (None, "cuda")
        return f"cuda:{self.local_rank}" if own_gpu else named


@dataclass(frozen=True)
class Arguments:
    """`--model_args`, with `batch_size` and `device` from lmms-eval's own flags.

    pretrained: An embedded model, a folder or a hub name, in either layout; the next seven as in `families.load`.
    reduction_ratio: 0.6 or 60; 0 prunes nothing. recipe: A file to use instead. score: How tokens are ranked.
    keep_recipe: Where a recipe that is fitted is kept, and looked for by the next run.
    calibration_file, calibration_images, samples: What is fitted on where there is no recipe yet.
    """

    pretrained: str
    model_base: str | None = None
    vision_tower: str | None = None
    conv_mode: str | None = None
    device: str | None = None
    device_map: str | None = None
    dtype: str | None = None
    attn: str | None = None
    reduction_ratio: float | str = 0.0
    recipe: str | None = None
    score: str = "fitprune"
    keep_recipe: str | None = None
    calibration_file: str | None = None
    calibration_images: str | None = None
    samples: int = SAMPLES
    batch_size: int | str = 1
    worker: Worker = field(default_factory=Worker.here)

    @classmethod
    def read(cls, given: dict[str, Any]) -> Arguments:
        """The arguments as lmms-eval parsed them: numbers where a text looks like one.

        Raises:
            FitPruneError: unknown or missing names, values that cannot be.
        """
        known = [item.name for item in fields(cls) if item.name != "worker"]
        if unknown := sorted(set(given) - set(known)):
            raise FitPruneError(f"unknown model_args {', '.join(unknown)}: use {', '.join(known)}")
        if "pretrained" not in given:
            raise FitPruneError("name a checkpoint: --model_args pretrained=embedded, a folder or a hub name")
        arguments = cls(**given)
        parse_ratio(arguments.reduction_ratio)
        find_score(arguments.score)
        if (arguments.calibration_file is None) != (arguments.calibration_images is None):
            raise FitPruneError("calibration_file and calibration_images go together: give both")
        for name, value in (("batch_size", arguments.batch_size), ("samples", arguments.samples)):
            if not str(value).isdigit() or int(value) < 1:
                raise FitPruneError(f"{name} {value} is not a whole number of at least 1")
        return arguments

    def load(self) -> Loaded:
        """The checkpoint, on this worker's device; errors as `families.load`."""
        return load(
            str(self.pretrained),
            model_base=self.model_base,
            vision_tower=self.vision_tower,
            template=self.conv_mode,
            device=self.worker.device(self.device, self.device_map),
            dtype=self.dtype,
            attn=self.attn,
            device_map=self.device_map,
        )

    def choose(self, loaded: Loaded) -> tuple[Recipe | None, str]:
        """The recipe, None for no pruning, and a line that says where it came from; the same for every worker.

        Raises:
            FitPruneError: as `calibrate.choose`; and if there is nothing named to fit on.
        """
        return shared(
            self.worker,
            lambda: choose(
                loaded,
                parse_ratio(self.reduction_ratio),
                self._calibration(),
                recipe_file=self.recipe,
                keep_at=self.keep_recipe,
            ),
        )

    def _calibration(self) -> Calibration:
        size = max(int(self.batch_size), 8)
        if self.calibration_file is not None:
            return Calibration(self.calibration_file, str(self.calibration_images), self.samples, size)
        if self.pretrained in MODELS:
            return Calibration(embedded().calibration, embedded().calibration_images, self.samples, size)
        return Calibration("", "", self.samples, size, self._nothing_to_fit_on)

    def _nothing_to_fit_on(self, path: Path) -> list[Question]:
        raise FitPruneError(
            f"no recipe of {self.pretrained} is published for {self.reduction_ratio}: name one with recipe=FILE "
            "(fitprune fit makes it), or questions to fit on with calibration_file=FILE,calibration_images=FOLDER"
        )


def shared(worker: Worker, make: Callable[[], Any]) -> Any:
    """What the first worker makes, for all of them; an error there is an error everywhere, so that none waits for ever.

    Raises:
        FitPruneError: from `make`; on the other workers for whatever went wrong on the first.
    """
    if worker.count == 1 or not torch.distributed.is_initialized():
        return make()
    made: list[Any] = [None, None]
    if worker.rank == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = first_line(error)
            torch.distributed.broadcast_object_list(made)
            raise
    torch.distributed.broadcast_object_list(made)
    if made[1] is not None:
        raise FitPruneError(f"the first process stopped: {made[1]}")
    return made[0]
