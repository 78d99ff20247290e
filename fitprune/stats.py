"""What the unpruned model attends to: all that fitting needs to know about a checkpoint.

`observe` fills it from one dense forward per sample, `fit` reads it; saved, it makes recipes for any ratio later, with
no model. It holds, per sample, layer and visual token, the attention received from the text after the image (cross)
and from the image itself (intra), each the mean over the asking tokens of the maximum over the heads. That is 288 KiB
per sample for 576 tokens and 32 layers in float32; attention maps themselves (tens of MiB per layer) are never kept.

    python -c "import torch; from fitprune.stats import AttentionStats as A; a = torch.rand(2, 4, 9); \
        A(a, a, torch.tensor([9, 9]), torch.tensor([5, 6])).save('/tmp/s'); print(A.load('/tmp/s').samples)"
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .cost import CostModel
from .errors import FitPruneError
from .files import write_atomically
from .version import __version__

SCHEMA = "fitprune.stats/1"
TENSORS = ("cross", "intra", "visual_tokens", "text_tokens")


@dataclass(eq=False, repr=False)
class AttentionStats:
    """Attention that each visual token receives in the unpruned model; N samples, L layers, n visual tokens.

    Attributes:
        cross: From the text after the image, mean over those tokens of the maximum over heads, [N, L, n] float32.
        intra: From the image's visual tokens, likewise (sum over them / their number), [N, L, n] float32.
        visual_tokens: How many of n each sample really has, [N] long; entries beyond are 0.
        text_tokens: Tokens of each sample that are not visual, before and after the image, [N] long.
        model: Name of the checkpoint.
        fingerprint: SHA-256 of the calibration set, in hex.
        cost: Cost model of the checkpoint.
        deletable: The layers in which tokens can be deleted, ascending; when made, none stands for those of the cost model, else all.
            Layers without attention have no statistics: they are 0 there.
    Raises:
        FitPruneError: for shapes that do not agree, values that are negative or not finite, and empty samples.
    """

    cross: Tensor
    intra: Tensor
    visual_tokens: Tensor
    text_tokens: Tensor
    model: str | None = None
    fingerprint: str | None = None
    cost: CostModel | None = None
    fitprune_version: str = __version__
    deletable: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.cross, self.intra = (tensor.detach().float().cpu() for tensor in (self.cross, self.intra))
        self.visual_tokens, self.text_tokens = (t.detach().long().cpu() for t in (self.visual_tokens, self.text_tokens))
        if self.cross.dim() != 3 or not self.cross.numel() or self.intra.shape != self.cross.shape:
            shapes = f"{list(self.cross.shape)} and {list(self.intra.shape)}"
            raise FitPruneError(f"statistics: cross and intra must both be [sample, layer, visual], not {shapes}")
        for name in ("visual_tokens", "text_tokens"):
            if (shape := getattr(self, name).shape) != (self.samples,):
                raise FitPruneError(f"statistics: {name} must be [{self.samples}], one per sample, not {list(shape)}")
        least, most = int(self.visual_tokens.min()), int(self.visual_tokens.max())
        if least < 1 or most > self.cross.shape[2] or int(self.text_tokens.min()) < 0:
            raise FitPruneError(
                f"statistics: samples need 1 to {self.cross.shape[2]} visual tokens (here {least} to {most}) and no "
                "negative number of others: observe questions that have an image"
            )
        beyond = torch.arange(self.cross.shape[2]) >= self.visual_tokens[:, None]  # [N, n]
        for name in ("cross", "intra"):
            values = getattr(self, name)
            if not bool(torch.isfinite(values).all()) or float(values.min()) < 0:
                raise FitPruneError(f"statistics: {name} has values that are negative or not finite: observe in float32")
            if bool((values.amax(1) * beyond).any()):
                raise FitPruneError(f"statistics: {name} must be 0 beyond each sample's visual tokens")
        if self.cost is not None and self.cost.layers != self.layers:
            raise FitPruneError(f"statistics of {self.layers} layers with a cost model of {self.cost.layers}")
        self.deletable = tuple(self.deletable or (self.cost.deletable if self.cost is not None else range(self.layers)))
        if list(self.deletable) != sorted(set(self.deletable) & set(range(self.layers))):
            raise FitPruneError(f"statistics: deletable must be layers of {self.layers}, ascending from 0, not {list(self.deletable)}")

    def __repr__(self) -> str:
        tokens = f"{int(self.visual_tokens.min())} to {int(self.visual_tokens.max())}"
        return f"AttentionStats({self.model}: {self.samples} samples, {self.layers} layers, {tokens} visual tokens)"

    @property
    def samples(self) -> int:
        """N, the number of samples observed."""
        return self.cross.shape[0]

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return self.cross.shape[1]

    def subset(self, n: int) -> AttentionStats:
        """The first n samples. The fingerprint, which stands for the whole set, is kept only if that is all of them.

        Raises:
            FitPruneError: when there are not that many.
        """
        if not 1 <= n <= self.samples:
            raise FitPruneError(f"statistics: there are {self.samples} samples, not {n}")
        return self.rows(range(n))

    def rows(self, which: Sequence[int]) -> AttentionStats:
        """These samples, by number from 0; the fingerprint is kept only if they are all of them, in order."""
        tensors = {name: getattr(self, name)[list(which)] for name in TENSORS}
        whole = list(which) == list(range(self.samples))
        return dataclasses.replace(self, **tensors, fingerprint=self.fingerprint if whole else None)

    @classmethod
    def concatenate(cls, parts: Sequence[AttentionStats]) -> AttentionStats:
        """The samples of all parts of one model, in order, padded to the largest image.

        The fingerprint is the SHA-256 of the parts' fingerprints; None if a part has none.

        Raises:
            FitPruneError: when there are none, and for parts of several models.
        """
        if not parts:
            raise FitPruneError("nothing to observe: give at least one sample with an image")
        if len({(part.model, part.cost, part.layers, part.deletable) for part in parts}) > 1:
            raise FitPruneError("statistics of several models cannot be one: concatenate those of the same model")
        widest = max(part.cross.shape[2] for part in parts)

        def joined(name: str) -> Tensor:
            found = [getattr(part, name) for part in parts]
            if found[0].ndim == 3:
                found = [torch.nn.functional.pad(one, (0, widest - one.shape[2])) for one in found]
            return torch.cat(found)

        prints = [part.fingerprint for part in parts if part.fingerprint]
        whole = hashlib.sha256(b"".join(map(bytes.fromhex, prints))).hexdigest() if len(prints) == len(parts) else None
        tensors: dict[str, Any] = {name: joined(name) for name in TENSORS}
        return dataclasses.replace(parts[0], **tensors, fingerprint=whole)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file whose metadata holds the provenance, atomically.

        Raises:
            FitPruneError: when the file cannot be written.
        """
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        metadata = {
            "schema": SCHEMA,
            "fitprune_version": self.fitprune_version,
            "model": json.dumps(self.model),
            "fingerprint": json.dumps(self.fingerprint),
            "cost": json.dumps(self.cost and self.cost.to_dict()),
        }
        if len(self.deletable) < self.layers:
            metadata["deletable"] = json.dumps(self.deletable)
        tensors = {name: getattr(self, name).clone(memory_format=torch.contiguous_format) for name in TENSORS}
        return to_safetensors(tensors, metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> AttentionStats:
        """What `to_bytes` made, from another process of the same run."""
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        return cls._read(from_safetensors(content), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttentionStats:
        """Read what `save` wrote.

        Raises:
            FitPruneError: naming the file, when it is missing, torn, of another schema, or not valid statistics.
        """
        try:
            with safe_open(Path(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("schema") != SCHEMA:
                    raise FitPruneError(f'not statistics of schema "{SCHEMA}": observe again with this version')
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            return cls._read(tensors, metadata)
        except OSError as error:
            raise FitPruneError(f"cannot read statistics {path}: {error.strerror or error}") from None
        except FitPruneError as error:
            raise FitPruneError(f"{path}: {error}") from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise FitPruneError(f"{path} is not a file of statistics, or a torn one ({error}): observe again") from None

    @classmethod
    def _read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AttentionStats:
        """From the tensors and the metadata of a safetensors file."""
        cost = json.loads(metadata["cost"])
        return cls(
            **tensors,
            model=json.loads(metadata["model"]),
            fingerprint=json.loads(metadata["fingerprint"]),
            cost=None if cost is None else CostModel.from_dict(cost),
            fitprune_version=metadata["fitprune_version"],
            deletable=tuple(json.loads(metadata.get("deletable", "[]"))),
        )
