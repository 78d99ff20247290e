"""Statistics: what they refuse, and files that come back as they were or not at all."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fitprune.cost import CostModel
from fitprune.errors import FitPruneError
from fitprune.stats import AttentionStats

COST = CostModel(layers=4, hidden=64, intermediate=176, heads=4, kv_heads=2, head_dim=16)


def parts(**changes):
    generator = torch.Generator().manual_seed(0)
    visual_tokens = torch.tensor([9, 7, 1])
    present = torch.arange(9) < visual_tokens[:, None, None]
    cross, intra = torch.rand(2, 3, 4, 9, generator=generator) * present
    whole = {"cross": cross, "intra": intra, "visual_tokens": visual_tokens, "text_tokens": torch.tensor([5, 6, 0])}
    return {**whole, "model": "tiny", "fingerprint": "ab" * 32, "cost": COST, **changes}


def test_shape():
    stats = AttentionStats(**parts())
    assert (stats.samples, stats.layers) == (3, 4)
    assert stats.cross.dtype == torch.float32
    assert AttentionStats(**parts(cross=parts()["cross"].double())).cross.dtype == torch.float32


def spoiled(name, index, value):
    tensor = parts()[name].clone()
    tensor[index] = value
    return {name: tensor}


@pytest.mark.parametrize(
    "changes",
    [
        {"cross": torch.rand(4, 9)}, {"intra": torch.rand(3, 4, 8)},
        {"cross": torch.rand(0, 4, 9), "intra": torch.rand(0, 4, 9)},
        {"visual_tokens": torch.tensor([9, 7])}, {"text_tokens": torch.tensor(5)},
        {"cost": CostModel(5, 8, 8, 1, 1, 8)},
        spoiled("visual_tokens", 1, 10), spoiled("visual_tokens", 1, 0), spoiled("text_tokens", 1, -1),
        spoiled("cross", (0, 0, 0), -1e-6), spoiled("cross", (0, 1, 2), float("inf")),
        spoiled("intra", (2, 3, 0), float("nan")), spoiled("intra", (1, 2, 8), 0.1),
    ],
)  # fmt: skip
def test_refuses(changes):
    with pytest.raises(FitPruneError, match=r"^statistics") as error:
        AttentionStats(**parts(**changes))
    assert "\n" not in str(error.value)


def test_subset():
    stats = AttentionStats(**parts())
    first = stats.subset(2)
    assert torch.equal(first.cross, stats.cross[:2])
    assert first.visual_tokens.tolist() == [9, 7]
    assert (first.model, first.cost, first.fingerprint) == ("tiny", COST, None)
    assert stats.subset(3).fingerprint == stats.fingerprint
    for n in (0, 4):
        with pytest.raises(FitPruneError, match="3 samples"):
            stats.subset(n)


@pytest.mark.parametrize("plain", [{}, {"model": None, "fingerprint": None, "cost": None}])
def test_file_round_trip(tmp_path, plain):
    stats = AttentionStats(**parts(**plain)).subset(3)
    path = tmp_path / "new" / "stats.safetensors"
    stats.save(path)
    vlm = AttentionStats.load(str(path))
    for name, value in vars(stats).items():
        other = getattr(vlm, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert os.listdir(path.parent) == ["stats.safetensors"]


def test_views_of_one_tensor_can_be_saved(tmp_path):
    both = torch.rand(2, 3, 4, 9)
    counts = torch.full((3,), 9)
    AttentionStats(both[0], both[0], counts, counts).save(tmp_path / "stats")
    assert torch.equal(AttentionStats.load(tmp_path / "stats").intra, both[0])


def test_torn_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "stats.safetensors"
    stats = AttentionStats(**parts())
    stats.save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[:100], whole[:-1], b"\0" * 64, b'{"schema": "fitprune.stats/1"}', whole + b"x"):
        path.write_bytes(data)
        with pytest.raises(FitPruneError, match=r"stats\.safetensors"):
            AttentionStats.load(path)
    tensors = {name: value for name, value in vars(stats).items() if isinstance(value, torch.Tensor)}
    complete = {"schema": "fitprune.stats/1", "model": "null", "fingerprint": "null", "cost": "null", "fitprune_version": "0"}
    save_file(tensors, path, complete)
    assert AttentionStats.load(path).samples == 3
    for metadata in (None, {}, {**complete, "schema": "fitprune.stats/9"}, {**complete, "cost": "{"}, {**complete, "cost": "[1]"}):
        save_file(tensors, path, metadata)
        with pytest.raises(FitPruneError, match=r"stats\.safetensors"):
            AttentionStats.load(path)
    save_file({"cross": tensors["cross"]}, path, complete)
    with pytest.raises(FitPruneError, match=r"stats\.safetensors"):
        AttentionStats.load(path)
    save_file({**tensors, "intra": -tensors["intra"]}, path, complete)
    with pytest.raises(FitPruneError, match=r"stats\.safetensors.*negative"):
        AttentionStats.load(path)
    with pytest.raises(FitPruneError, match="nowhere"):
        AttentionStats.load(tmp_path / "nowhere")
    with pytest.raises(FitPruneError, match=r"cannot read|not a file of statistics"):
        AttentionStats.load(tmp_path)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_parts_of_any_size_concatenate(tokens: list[int]) -> None:
    """Samples come one by one, in batches or from other processes: joined they are the same."""
    parts = []
    for number, count in enumerate(tokens):
        received = torch.rand(1, 3, count, generator=torch.Generator().manual_seed(number))
        few = torch.tensor([count])
        parts.append(AttentionStats(received, received / 2, few, few + 7, model="m", fingerprint=f"{number:02x}" * 32))
    whole = AttentionStats.concatenate(parts)
    assert whole.samples == len(tokens)
    assert whole.visual_tokens.tolist() == tokens
    assert whole.cross.shape[2] == max(tokens)
    sent = [AttentionStats.from_bytes(part.to_bytes()) for part in parts]
    assert AttentionStats.concatenate(sent).fingerprint == whole.fingerprint
    assert torch.equal(AttentionStats.concatenate(sent).intra, whole.intra)
    for number, part in enumerate(parts):
        assert torch.equal(whole.cross[number, :, : tokens[number]], part.cross[0])
        assert not whole.cross[number, :, tokens[number] :].any()


def test_nothing_to_concatenate() -> None:
    with pytest.raises(FitPruneError, match="nothing to observe"):
        AttentionStats.concatenate([])


def test_statistics_of_two_models_are_not_joined() -> None:
    one = AttentionStats(**parts())
    with pytest.raises(FitPruneError, match="several models"):
        AttentionStats.concatenate([one, AttentionStats(**parts(model="other"))])
    assert AttentionStats.concatenate([one, AttentionStats(**parts(fingerprint=None))]).fingerprint is None
