"""`--model_args`: a checkpoint, a recipe to prune it with, and where it runs.

The arguments are those of `fitprune eval` by the same names. The recipe is found as by every command (`resolve.resolve`): the file named,
else a published one, else one kept by an earlier run, else one fitted now. Questions to fit on have to be named then, since a task's
own must not be used; embedded models have an embedded set.

With accelerate or torchrun every process has a model of its own on its own GPU. They observe together and prune with one recipe
(distributed/workers.py).

    python -m lmms_eval --model fitprune --model_args pretrained=embedded,reduction_ratio=60,score=last --tasks …
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..distributed.launch import existing_group, own_device, started
from ..embedded import MODELS
from ..errors import FitPruneError
from ..families import VLM, load
from ..questions import SAMPLES, Calibration
from ..resolve import Choice, resolve
from ..schedule.ratio import parse_ratio
from ..scores import find_score


@dataclass(frozen=True)
class Arguments:
    """`--model_args`, with `batch_size` and `device` from lmms-eval's own flags.

    pretrained: An embedded model, a folder or a hub name, in either layout; the next seven as in `families.load`.
    reduction_ratio: 0.6 or 60; 0 prunes nothing. recipe: A file to use instead. score: How tokens are ranked, default as the recipe says.
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
    score: str | None = None
    keep_recipe: str | None = None
    calibration_file: str | None = None
    calibration_images: str | None = None
    samples: int = SAMPLES
    batch_size: int | str = 1

    @classmethod
    def read(cls, given: dict[str, Any]) -> Arguments:
        """The arguments as lmms-eval parsed them (numbers where a text looks like one); FitPruneError for unknown names and bad values."""
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise FitPruneError(f"unknown model_args {', '.join(unknown)}: use {', '.join(known)}")
        if "pretrained" not in given:
            raise FitPruneError("name a checkpoint: --model_args pretrained=embedded, a folder or a hub name")
        arguments = cls(**given)
        parse_ratio(arguments.reduction_ratio)
        if arguments.score is not None:
            find_score(str(arguments.score))
        if (arguments.calibration_file is None) != (arguments.calibration_images is None):
            raise FitPruneError("calibration_file and calibration_images go together: give both")
        for name, value in (("batch_size", arguments.batch_size), ("samples", arguments.samples)):
            if not str(value).isdigit() or int(value) < 1:
                raise FitPruneError(f"{name} {value} is not a whole number of at least 1")
        return arguments

    def load(self) -> VLM:
        """The checkpoint, on this process's own GPU where there are several; errors as `families.load`, and a device_map for several."""
        if self.device_map is not None and started() > 1:
            raise FitPruneError(f"device_map spreads one model over the GPUs, but {started()} processes run: start one")
        return load(
            str(self.pretrained), model_base=self.model_base, vision_tower=self.vision_tower, template=self.conv_mode,
            device=self.device if self.device not in (None, "cuda") else own_device() or self.device,
            dtype=self.dtype, attn=self.attn, device_map=self.device_map,
        )  # fmt: skip

    def resolve(self, vlm: VLM) -> Choice:
        """The recipe, the same for every process; errors as `resolve.resolve`."""
        keep = self.keep_recipe
        return resolve(
            vlm, [parse_ratio(self.reduction_ratio)], self._calibration(), recipe_file=self.recipe,
            keep_at=None if keep is None else lambda *_: keep, workers=existing_group(),
        )[0]  # fmt: skip

    def _calibration(self) -> Calibration:
        size = max(int(self.batch_size), 8)
        if self.calibration_file is not None:
            return Calibration(self.calibration_file, str(self.calibration_images), self.samples, size)
        if self.pretrained in MODELS:
            return Calibration.shipped(self.samples, size)
        return Calibration.nothing(
            f"no recipe of {self.pretrained} is published for {self.reduction_ratio}: name one with recipe=FILE "
            "(fitprune fit makes it), or questions to fit on with calibration_file=FILE,calibration_images=FOLDER"
        )
