"""Reading weight files: shards, both formats, and everything that can be wrong with them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multimodal import PARITY
from safetensors.torch import save_file

from fitprune.checkpoints.source import Source
from fitprune.checkpoints.weights import Weights
from fitprune.errors import FitPruneError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4, dtype=torch.bfloat16)}


def written(folder: Path, kind: str, shards: bool) -> Path:
    """`TENSORS` as files of that kind, alone or in two shards with an index."""
    name, save = ("model.safetensors", save_file) if kind == "safetensors" else ("pytorch_model.bin", torch.save)
    if not shards:
        save(TENSORS, folder / name)
        return folder
    table = {}
    for number, (key, value) in enumerate(TENSORS.items(), 1):
        file = f"{Path(name).stem}-0000{number}-of-00002{Path(name).suffix}"
        save({key: value}, folder / file)
        table[key] = file
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


def found(folder: Path) -> Weights:
    weights = Weights.find(Source(folder))
    assert weights is not None
    return weights


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_tensors_come_back_as_they_were(tmp_path: Path, kind: str, shards: bool) -> None:
    weights = found(written(tmp_path, kind, shards))
    assert weights.shapes == {"a.weight": (2, 3), "b.bias": (4,)}
    read = dict(weights.tensors())
    assert read.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert torch.equal(read[key], value)
        assert weights.dtype(key) == value.dtype
    assert len(set(weights.files.values())) == (2 if shards else 1)


def test_files_of_the_format_before_zip_are_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(dict(found(tmp_path).tensors())["a.weight"], TENSORS["a.weight"])


def test_safetensors_go_before_pickles_and_nothing_is_none(tmp_path: Path) -> None:
    assert Weights.find(Source(tmp_path)) is None
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert found(tmp_path).shapes.keys() == {"new"}


class Evil:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "ran"
    contents = {"a": torch.ones(1), "evil": Evil(trace)}
    if zipped:
        torch.save(contents, tmp_path / "pytorch_model.bin")
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(FitPruneError, match=r"pytorch_model\.bin") as error:
        found(tmp_path)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    if zipped:
        assert "system" in str(error.value)
        assert "nothing of it was run" in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_file_cut_short_anywhere_is_named(tmp_path_factory: pytest.TempPathFactory, kind: str, share: float) -> None:
    folder = written(tmp_path_factory.mktemp("cut"), kind, shards=False)
    file = next(folder.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FitPruneError, match=file.name) as error:
        found(folder)
    assert "\n" not in str(error.value)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(FitPruneError, match="git lfs pull"):
        found(tmp_path)


def test_a_missing_shard_a_lost_tensor_and_a_torn_index(tmp_path: Path) -> None:
    folder = written(tmp_path, "safetensors", shards=True)
    second = folder / "model-00002-of-00002.safetensors"
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(FitPruneError, match=r"model-00002-of-00002\.safetensors, which holds b\.bias"):
        found(folder)
    save_file({"another": torch.ones(1)}, second)
    with pytest.raises(FitPruneError, match=r"model-00002-of-00002\.safetensors lacks 1 tensors .* b\.bias"):
        found(folder)
    second.write_bytes(kept)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-4])
    with pytest.raises(FitPruneError, match=r"index\.json: not JSON, or torn"):
        found(folder)
    index.write_text("{}")
    with pytest.raises(FitPruneError, match="no weight_map"):
        found(folder)
    index.write_text(json.dumps({"weight_map": {"a.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(FitPruneError, match="outside its folder"):
        found(folder)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({"a": {"b": torch.ones(1)}}, "a is dict"),
        ({"a": torch.ones(2, dtype=torch.int8)}, r"a is torch\.int8"),
    ],
)
def test_a_bin_that_is_no_state_dict(tmp_path: Path, contents: object, message: str) -> None:
    torch.save(contents, tmp_path / "pytorch_model.bin")
    with pytest.raises(FitPruneError, match=message):
        found(tmp_path)


def test_the_recorded_checkpoint_reads_whole(tmp_path: Path) -> None:
    shutil.copytree(PARITY / "llava15" / "checkpoint", tmp_path / "copy")
    weights = found(tmp_path / "copy")
    assert weights.shapes["model.embed_tokens.weight"] == (400, 64)
    assert len(weights.files) == len(list(weights.tensors()))


def test_the_index_decides_which_copy_of_a_tensor_counts(tmp_path: Path) -> None:
    folder = written(tmp_path, "safetensors", shards=True)
    stale = {"a.weight": torch.zeros(2, 3), "b.bias": TENSORS["b.bias"]}
    save_file(stale, folder / "model-00002-of-00002.safetensors")
    read = dict(found(folder).tensors())
    assert torch.equal(read["a.weight"], TENSORS["a.weight"])
    assert len(read) == 2


def test_shards_without_their_index_and_names_that_are_no_names(tmp_path: Path) -> None:
    folder = written(tmp_path, "bin", shards=True)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(FitPruneError, match=r"it has shards but no pytorch_model\.bin\.index\.json"):
        found(folder)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": ".."}}')
    with pytest.raises(FitPruneError, match="outside its folder"):
        found(folder)
    (folder / "pytorch_model.bin.index.json").unlink()
    torch.save({3: torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(FitPruneError, match="has 3 where a tensor's name is expected"):
        found(folder)
