"""Weight files of a checkpoint, read one tensor at a time: safetensors, or PyTorch's `.bin`, in one file or in shards.

Nothing is ever unpickled that could run code: `.bin` files are read by PyTorch's restricted reader, and one that holds
more than tensors is refused with its name. Files are memory-mapped, so a tensor takes no memory before it is used and
none twice. A file that is missing, cut short, or lacks what its index promises is an error before anything is loaded.

    pytest tests/checkpoints/test_checkpoint_weights.py
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import FitPruneError, first_line
from .source import Source, read_json

NAMES = ("model.safetensors", "pytorch_model.bin")  # in this order; each may come in shards, with an index
LFS = b"version https://git-lfs"
QUANTISED = re.compile(  # names that bitsandbytes, GPTQ, AWQ and fp8 give what belongs to a quantised weight
    r"\.(absmax|quant_map|nested_absmax|quant_state\..*|SCB|weight_format|qweight|qzeros|g_idx|weight_scale(_inv)?|weight_packed)$"
)


class Weights:
    """Tensors by name, in any number of files.

    files: the file of every tensor; shapes: its shape.
    """

    def __init__(self, paths: Mapping[Path, set[str]]) -> None:
        """
        Args:
            paths: Each file, with the names that an index promises in it (an empty set where there is no index).
        Raises:
            FitPruneError: for a file that is damaged, holds code, was saved empty, or lacks a promised tensor.
        """
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path, promised in paths.items():
            shapes, _ = _open(path)
            if empty := [name for name, shape in shapes.items() if 0 in shape]:
                raise FitPruneError(
                    f"{path} was saved empty ({empty[0]} is {list(shapes[empty[0]])}, {len(empty)} of {len(shapes)} tensors are so), as "
                    "DeepSpeed ZeRO-3 does without gathering: save it again with gathered weights "
                    "(stage3_gather_16bit_weights_on_model_save, zero_to_fp32.py)"
                )
            for name, shape in shapes.items():
                if not promised or name in promised:  # what an index leaves out may be there twice
                    self.files[name], self.shapes[name] = path, shape
            if lost := sorted(promised - shapes.keys()):
                raise FitPruneError(f"{path} lacks {len(lost)} tensors that its index promises, such as {lost[0]}: download it again")

    @classmethod
    def find(cls, source: Source, names: tuple[str, ...] = NAMES) -> Weights | None:
        """The weights of a checkpoint, whichever of the names they have; None if there are none.

        Raises:
            FitPruneError: as the class, and for an index that is torn or names a missing shard.
        """
        for name in names:
            if (index := source.get(f"{name}.index.json")) is not None:
                return cls(_shards(source, index))
            if (file := source.get(name)) is not None:
                return cls({file: set()})
            stem, _, ending = name.rpartition(".")
            if source.folder is not None and any(source.folder.glob(f"{stem}-*-of-*.{ending}")):
                raise FitPruneError(f"{source} is incomplete: it has shards but no {name}.index.json; download it")
        return None

    @classmethod
    def need(cls, source: Source) -> Weights:
        """As `find`, for a checkpoint that must have weights.

        Raises:
            FitPruneError: also when it has none.
        """
        weights = cls.find(source)
        if weights is None:
            raise FitPruneError(f"{source} has no weights (model.safetensors, pytorch_model.bin or shards): download them")
        return weights

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, file by file; a file is closed before the next one is opened."""
        for path in dict.fromkeys(self.files.values()):
            _, read = _open(path)
            for name in [name for name, file in self.files.items() if file == path]:
                yield name, read(name)

    def check_plain(self) -> None:
        """Raises FitPruneError for weights that were saved quantised, which are read by nothing here."""
        if odd := [name for name in self.shapes if QUANTISED.search(name)]:
            raise FitPruneError(
                f"{self.files[odd[0]]} has {odd[0]}: quantised checkpoints are not supported, give the weights in whole precision"
            )

    def dtype(self, name: str) -> torch.dtype:
        """Precision of one tensor."""
        return _open(self.files[name])[1](name).dtype


def _shards(source: Source, index: Path) -> dict[Path, set[str]]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(file, str) for file in table.values()):
        raise FitPruneError(f"{index} is no index of weight files (no weight_map): download it again")
    promised: dict[str, set[str]] = {}
    for name, file in table.items():
        promised.setdefault(file, set()).add(name)
    shards = {}
    for file, names in sorted(promised.items()):
        if Path(file).name != file or file == "..":
            raise FitPruneError(f"{index} names a file outside its folder, {file!r}: refused")
        path = source.get(file)
        if path is None:
            raise FitPruneError(
                f"{source} is incomplete: {file}, which holds {min(names)} and {len(names) - 1} more, is missing; download it"
            )
        shards[path] = names
    return shards


def check_pointer(path: Path) -> None:
    """Raises FitPruneError for what `git clone` leaves in a large file's place without git-lfs."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise FitPruneError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")


def _open(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """The shapes in a weight file, and what reads a tensor of it.

    Raises:
        FitPruneError: naming the file and what is wrong with it, as far as opening it shows.
    """
    try:
        check_pointer(path)
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt")
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.get_tensor  # noqa: SIM118
        values = _unpickled(path)
        return {name: tuple(value.shape) for name, value in values.items()}, values.__getitem__
    except FitPruneError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise FitPruneError(
            f"{path} holds Python code besides tensors, or is damaged ({found[1] if found else first_line(error)}): refused, "
            "nothing of it was run; use a copy from a source that you trust, best in safetensors"
        ) from None
    except Exception as error:  # a torn file can make a reader fail in any way
        raise FitPruneError(f"{path} is damaged or only partly downloaded ({first_line(error)}): download it again") from error


def _unpickled(path: Path) -> dict[str, Tensor]:
    """A `.bin` file: tensors by name, read without running what else a pickle can hold."""
    mapped = zipfile.is_zipfile(path)  # files of PyTorch before 1.6 cannot be mapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle's age: it is read or refused
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    if not isinstance(values, dict):
        raise FitPruneError(f"{path} holds a {type(values).__name__}, not tensors by name: not a checkpoint")
    for name, value in values.items():
        if not isinstance(name, str):
            raise FitPruneError(f"{path} has {name!r} where a tensor's name is expected: not a checkpoint")
        if not isinstance(value, Tensor) or not (value.is_floating_point() or name.endswith("position_ids")):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            quantised = ": quantised checkpoints are not supported" if isinstance(value, Tensor) else ""
            raise FitPruneError(f"{path}: {name} is {kind}, not a tensor of real numbers{quantised}")
    return values
