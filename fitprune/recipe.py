"""A recipe: how many visual tokens are deleted in each decoder layer. Plain data, no model, no torch.

A recipe is made at a reference count of visual tokens and answers for any other (`deletions`), in one of three ways:

- `proportional`: each layer's count times n / reference, rounded down, as the authors' code scales its tables;
- `budget`: the same shape in the same layers, made deeper or shallower so that the reduction ratio asked for still holds
  at n (fitted recipes; they know their cost model);
- `fraction`: each layer's share of n, of any number of layers (`Recipe.step`, which is how FastV and VTW delete).

Which tokens go is not said here: method = schedule × score. A schedule that was fitted for a score names it (`score`), and is run with it
unless another one is asked for; one that names none is run with the paper's. Provenance travels along but does not take part in
equality: two recipes are equal when they delete the same.

    python -c "from fitprune.recipe import Recipe; print(Recipe.published('llava-v1.5-7b', 0.6))"
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cost import VICUNA_7B, CostModel, alive_after
from .errors import FitPruneError
from .files import write_atomically
from .recipes import published_names, published_ratios, published_table, schedules
from .schedule.budget import rescaled
from .schedule.merge import merge
from .schedule.ratio import parse_ratio
from .schedule.validation import checked, number
from .tables import falling
from .version import __version__

__all__ = ["Recipe", "published_names", "published_ratios"]

SCHEMA = "fitprune.recipe/1"
LATER = ("score", "absorb", "drift", "drift_error")  # fields that files of earlier versions do not have: written where they say something
PAPER = "fitprune"  # the paper's score, with which a recipe that names none is run
RECOMMENDED = "spread"  # what `fitprune report`, `serve` and `demo` rank by, unless a recipe or --score names another
MERGED = ", merged"  # at the end of `source`


@dataclass(frozen=True, eq=False)
class Recipe:
    """Visual tokens deleted per layer at a reference count, with the rule for other counts and where it comes from.

    Attributes:
        counts: Deleted in each layer, [layer]: whole tokens of `visual_tokens`; shares of 1 if scaling is "fraction".
        visual_tokens: The reference count; 1 if scaling is "fraction".
        scaling: "proportional", "budget" or "fraction" (see the module).
        num_layers: Layers of the model it is for; None when it fits any model that is deep enough.
        model, reduction_ratio, achieved, alpha, samples, fingerprint: Provenance: checkpoint, reduction ratio asked and
            achieved (the paper's, visual tokens only), the fit's alpha, size and SHA-256 of the calibration set.
        score: The score that it was fitted with, as `scores.find_score` takes it; None if any will do.
        absorb: Cosine of values above which a deleted token lives on in the survivor that it is likest to (kernels/absorb.py); None:
            deleted is deleted, as in the paper.
        drift, drift_error: How far it moves the dense model's answers, in nats per token, with its standard error over `samples`
            questions, if it was chosen by that (choose.py).
        cost: The cost model that the ratio was computed with; needed if scaling is "budget".
        source: How it came about: "given", "published", "fitted", "replayed", … with ", merged" after `merge_steps`.
    Raises:
        FitPruneError: for counts that are negative, not whole or more than there are, and for fields of a wrong type.
    """

    counts: tuple[float, ...]
    visual_tokens: int
    scaling: str = "proportional"
    num_layers: int | None = None
    model: str | None = None
    reduction_ratio: float | None = None
    achieved: float | None = None
    alpha: float | None = None
    samples: int | None = None
    fingerprint: str | None = None
    cost: CostModel | None = None
    source: str = "given"
    score: str | None = None
    absorb: float | None = None
    drift: float | None = None
    drift_error: float | None = None
    fitprune_version: str = __version__

    def __post_init__(self) -> None:
        for name, value in checked(vars(self)).items():
            object.__setattr__(self, name, value)

    # Making one.

    @classmethod
    def from_deletions(cls, deletions: Sequence[int], *, visual_tokens: int, **provenance: Any) -> Recipe:
        """A recipe from deletions per layer, [layer], at a count of visual tokens.

        Args:
            provenance: Any further field of `Recipe`, such as `model="llava-v1.5-7b"`.
        Raises:
            FitPruneError: as `Recipe`.
        """
        try:
            counts = tuple(deletions)
        except TypeError:
            raise FitPruneError(f"recipe: deletions must be a list of numbers, not {deletions!r}") from None
        return cls(**{"counts": counts, "visual_tokens": visual_tokens, "num_layers": len(counts), **provenance})

    @classmethod
    def none(cls, layers: int, visual_tokens: int = 1, **provenance: Any) -> Recipe:
        """The recipe that deletes nothing, for a model of that many layers."""
        return cls.from_deletions([0] * layers, visual_tokens=visual_tokens, **provenance)

    @classmethod
    def step(cls, *, layer: int, keep: float) -> Recipe:
        """Delete once: after `layer`'s attention (from 0) keep that fraction of the visual tokens, rounded up.

        FastV (https://arxiv.org/abs/2403.06764) is such a step with keep 0.5, VTW one with keep 0. It fits any model
        that has the layer.

        Raises:
            FitPruneError: when `layer` is negative or `keep` is outside [0, 1].
        """
        if not isinstance(layer, int) or layer < 0:
            raise FitPruneError(f"layer must be a whole number from 0, not {layer!r}")
        if not isinstance(keep, int | float) or not 0 <= keep <= 1:
            raise FitPruneError(f"keep must be a fraction from 0 to 1, not {keep!r}")
        share = round(1 - keep, 12)  # 1 - 0.9 is 0.1, not 0.09999999999999998
        return cls(counts=(0.0,) * layer + (share,), visual_tokens=1, scaling="fraction", source="step")

    @classmethod
    def published(cls, name: str, ratio: float | str) -> Recipe:
        """One of the authors' recipes.

        Args:
            name: A checkpoint, in any of its usual spellings: "llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf", a path.
            ratio: Nominal reduction ratio, as `parse_ratio` takes it. What is really saved is in `achieved`.
        Raises:
            FitPruneError: when there is no such recipe; lists those that there are.
        """
        table = published_table(name)
        wanted = parse_ratio(ratio)
        for nominal, counts in schedules(table).items():
            if math.isclose(nominal, wanted, abs_tol=1e-9):
                tokens = table["reference_visual_tokens"]
                return cls.from_deletions(
                    counts,
                    visual_tokens=tokens,
                    model=table["model"],
                    reduction_ratio=nominal,
                    achieved=VICUNA_7B.visual_reduction(counts, tokens),
                    source="published",
                )
        ratios = ", ".join(f"{value:g}" for value in published_ratios(name))
        raise FitPruneError(f"{table['model']} has no published recipe for {wanted:g}: choose from {ratios}, or fit one")

    # Using one.

    def deletions(self, visual_tokens: int, layers: int | None = None) -> list[int]:
        """Visual tokens to delete in each layer, [layer], for an image of that many.

        Args:
            layers: Layers of the model; needed to get a full list from a recipe that fits any model.
        Raises:
            FitPruneError: for a negative count, for another number of layers, and when a "budget" recipe meets a count
                at which its ratio is out of reach.
        """
        n = int(number(visual_tokens, "visual_tokens", whole=True))
        if layers is not None:
            self.check_layers(layers)
        if self.scaling == "fraction":
            gone = [math.floor(count * n + 1e-9) for count in self.counts]
        elif n == self.visual_tokens:
            gone = [int(count) for count in self.counts]
        elif self.scaling == "proportional":
            gone = [int(count * n / self.visual_tokens) for count in self.counts]
        else:
            gone = list(rescaled(self.counts, self.visual_tokens, n, self.cost, self.reduction_ratio))
        return gone + [0] * ((layers or 0) - len(gone))

    def alive(self, visual_tokens: int, layers: int | None = None) -> list[int]:
        """Visual tokens alive after each layer, [layer], for an image of that many; errors as `deletions`."""
        return alive_after(self.deletions(visual_tokens, layers), visual_tokens)

    def ranked_by(self, asked: str | None = None) -> str:
        """The name of the score that a run uses: the one asked for, else the recipe's own, else the paper's."""
        return asked or self.score or PAPER

    @property
    def digest(self) -> str:
        """Tells recipes apart by what they do, schedule and score, whatever they come from."""
        plain = dataclasses.replace(self, drift=None, drift_error=None, samples=None, source="", model=None, fingerprint=None, alpha=None)
        return hashlib.sha256(plain.to_bytes()).hexdigest()[:16]

    def check_layers(self, n_layers: int) -> None:
        """Make sure that the recipe fits a model of that many layers.

        Raises:
            FitPruneError: when it does not, naming both numbers.
        """
        if self.num_layers not in (None, n_layers):
            raise FitPruneError(f"this recipe is for {self.num_layers} layers but the model has {n_layers}: fit one for this model")
        if len(self.counts) > n_layers:
            raise FitPruneError(f"this recipe deletes in layer {len(self.counts) - 1} but the model has {n_layers} layers, from 0")

    def check_model(self, cost: CostModel) -> None:
        """Make sure that the recipe fits a model of these sizes; the vocabulary does not matter.

        Raises:
            FitPruneError: for another number of layers, for a layer that cannot delete, or when the recipe's ratio was computed for
                other sizes.
        """
        self.check_layers(cost.layers)
        if self.cost is not None and (differing := self.cost.differences(cost)):
            raise FitPruneError(f"this recipe was made for a model of other sizes ({differing}): fit one for this model")
        for layer, count in enumerate(self.counts):
            if count and layer not in cost.deletable:
                allowed = ", ".join(map(str, cost.deletable))
                raise FitPruneError(
                    f"this recipe deletes in layer {layer} but the model can only in layers {allowed}: fit one for this model"
                )

    def merge_steps(self, step_cost: float, cost: CostModel | None = None) -> Recipe:
        """The same budget in fewer steps: small deletions are folded where a step costs more than it saves (`merge`).

        Args:
            step_cost: Token-layers: how many tokens could pass one decoder layer in the time that a step takes.
            cost: The model's cost, by which as much is saved; None for the recipe's own, else for Vicuna-7B's if that
                has as many layers.
        Returns:
            A recipe with fewer steps that saves at least as much, at the same scaling; itself if nothing was folded.
        Raises:
            FitPruneError: for a negative cost of a step, no cost model or another model's, and for several steps in
                fractions, whose tokens cannot be counted.
        """
        if not (step_cost := number(step_cost, "step_cost", whole=False)):
            return self
        if self.scaling == "fraction":
            if sum(map(bool, self.counts)) > 1:
                raise FitPruneError("merging steps needs whole tokens: give Recipe.from_deletions what deletions(n) says")
            return self
        cost = cost or self.cost or (VICUNA_7B if VICUNA_7B.layers == len(self.counts) else None)
        if not isinstance(cost, CostModel):
            raise FitPruneError(f"merging steps of {len(self.counts)} layers needs a cost model: pass CostModel.from_config(...)")
        self.check_model(cost)
        deletions = self.deletions(self.visual_tokens, cost.layers)
        merged = merge(deletions, self.visual_tokens, step_cost, cost)
        if merged == deletions:
            return self
        return dataclasses.replace(
            self,
            counts=tuple(merged[: len(self.counts)]),
            achieved=cost.visual_reduction(merged, self.visual_tokens),
            source=(self.source or "given").removesuffix(MERGED) + MERGED,
        )

    # Keeping one.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, one field per line, atomically.

        Raises:
            FitPruneError: when the file cannot be written.
        """
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields = {name: value for name, value in fields.items() if value is not None or name not in LATER}
        data = {"schema": SCHEMA, **fields, "cost": self.cost and self.cost.to_dict()}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
        return f"{{\n{lines}\n}}\n".encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read what `save` wrote.

        Raises:
            FitPruneError: naming the file, when it is missing, torn, of another schema, or not a valid recipe.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes(), path)
        except OSError as error:
            raise FitPruneError(f"cannot read recipe {path}: {error.strerror or error}") from None

    @classmethod
    def from_bytes(cls, content: bytes, path: str | os.PathLike[str] = "this") -> Recipe:
        """What `to_bytes` made; path is named in errors, which are those of `load`."""
        try:
            data = json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise FitPruneError(f"{path} is not a recipe, or a torn one ({error}): fit it again") from None
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise FitPruneError(f'{path} is not a recipe of schema "{SCHEMA}": fit it again with this version')
        try:
            if data.get("cost") is not None:
                data["cost"] = CostModel.from_dict(data["cost"])
            return cls(**data)
        except TypeError as error:
            raise FitPruneError(f"{path}: fields missing or unknown ({error})") from None
        except FitPruneError as error:
            raise FitPruneError(f"{path}: {error}") from None

    # Looking at one.

    def _schedule(self) -> tuple[object, ...]:
        same = (self.counts, self.visual_tokens, self.scaling, self.num_layers)
        return (*same, self.reduction_ratio, self.cost) if self.scaling == "budget" else same

    def __eq__(self, other: object) -> bool:
        return self._schedule() == other._schedule() if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._schedule())

    def __str__(self) -> str:
        """Where it comes from, then a line per layer: tokens alive, those deleted, a bar; of 100 tokens if it is in fractions."""
        tokens = 100 if self.scaling == "fraction" else self.visual_tokens
        deletions, alive = self.deletions(tokens), self.alive(tokens)
        facts = [f"{self.source} recipe" + (f" for {self.model}" if self.model else "")]
        if self.reduction_ratio is not None:
            facts.append(f"asked {self.reduction_ratio:.1%}")
        if self.score is not None:
            facts.append(f"ranked by {self.score}")
        if self.absorb is not None:
            facts.append(f"survivors absorb what is {self.absorb:g} alike")
        if self.drift is not None:
            facts.append(f"drift {self.drift:.3g} ± {self.drift_error or 0:.2g} nats")
        if self.achieved is not None:
            facts.append(f"saves {self.achieved:.1%} of visual compute")
        depth = f"{len(alive)} layers" if self.num_layers else "any model"
        steps = sum(map(bool, deletions))
        head = f"{depth}, {steps} delete, {tokens} visual tokens, {alive[-1]} alive at the end"
        return "\n".join([", ".join(facts), head, *falling(alive, deletions, tokens)])
