"""Which kernel runs: GPU kernels are tried once against the formula, and what fails is not used. No GPU needed to know that."""

import logging

import pytest
import torch

from fitprune import kernels
from fitprune.kernels import TEXT, chunked, flash_cpu, flash_cuda, reference, trust
from fitprune.kernels.trust import matches_formula, trusted


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU: the choice of a kernel asks nothing else."""

    is_cuda = True


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(trust, "_known", {})


def test_a_check_runs_once_and_its_answer_is_kept():
    calls = []
    for answer in (True, False):
        for _ in range(3):
            assert trusted(("kernel", answer), lambda answer=answer: calls.append(answer) or answer) is answer
    assert calls == [True, False]


def test_a_failing_check_is_a_no_and_is_logged_once(caplog):
    def check():
        raise RuntimeError("no kernel image is available")

    with caplog.at_level(logging.WARNING):
        assert not trusted(("a kernel", torch.float16), check)
        assert not trusted(("a kernel", torch.float16), check)
    (record,) = caplog.records
    assert "a kernel is not right or does not run for torch.float16" in record.message
    assert "no kernel image is available" in record.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_example_tells_right_from_wrong(dtype):
    like = torch.empty(1, 1, 1, 16, dtype=dtype)

    def per_head_sums(query, key, scaling, mask, query_group, key_group, **hints):
        """What public kernels give: the sum over queries first, then the maximum over heads."""
        parts = [
            reference(query[:, h : h + 1], key[:, h // 2 : h // 2 + 1], scaling, mask, query_group, key_group)
            for h in range(query.shape[1])
        ]
        return tuple(torch.stack(part).amax(0) for part in zip(*parts, strict=True))

    def without_mask(query, key, scaling, mask, *groups, **hints):
        return reference(query, key, scaling, None, *groups, hints["itself"])

    def one_image(*args, images, **hints):
        return chunked(*args, images=1, **hints)

    before = torch.get_rng_state()
    assert matches_formula(chunked, like)
    assert torch.equal(torch.get_rng_state(), before)  # nobody's random numbers are used up

    def with_itself(*args, itself, **hints):
        return chunked(*args, **hints)

    for wrong in (per_head_sums, without_mask, one_image, with_itself):
        assert not matches_formula(wrong, like)


@pytest.mark.parametrize("right", [True, False])
def test_the_gpu_kernel_runs_where_it_is_right(monkeypatch, caplog, right):
    used = []

    class Kernel:
        @staticmethod
        def applies(query):
            return True

        @staticmethod
        def received_attention(*args, **hints):
            used.append(hints)
            cross, intra = chunked(*args, **hints)
            return (cross, intra) if right else (intra, cross)

    monkeypatch.setattr(kernels, "_triton", lambda: Kernel)
    query, key = torch.randn(1, 2, 9, 8), torch.randn(1, 1, 9, 8)
    group = torch.tensor([[TEXT, 1, 1, 1, 1, TEXT, TEXT, TEXT, TEXT]])
    found = kernels.received_attention(query.as_subclass(OnGpu), key, 0.3, None, group, group.clamp(min=0), images=1)
    for ours, theirs in zip(found, reference(query, key, 0.3, None, group, group.clamp(min=0)), strict=True):
        torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs)
    assert len(used) == (7 if right else 1)  # three masks, with and without the diagonal, then the call; or the first, and no more
    assert bool(caplog.records) is not right
    kernels.received_attention(query, key, 0.3, None, group, group.clamp(min=0))
    assert len(used) == (7 if right else 1)  # not for a tensor on the CPU


def test_without_triton_chunked_serves(monkeypatch, caplog):
    import builtins

    real_import = builtins.__import__

    def fails(name, globals=None, locals=None, fromlist=(), level=0):
        if level and "triton" in (fromlist or ()):
            raise ImportError("No module named 'triton'")
        return real_import(name, globals, locals, fromlist, level)

    kernels._triton.cache_clear()
    monkeypatch.setattr(builtins, "__import__", fails)
    with caplog.at_level(logging.WARNING):
        assert kernels._triton() is None
        assert kernels._triton() is None
    assert "pip install triton" in caplog.text
    assert len(caplog.records) == 1
    kernels._triton.cache_clear()


@pytest.mark.parametrize("share", [1, 3])
def test_the_check_of_fused_attention_tells_right_from_wrong(monkeypatch, share):
    """The GPU's operator is not there; the CPU's, which has the same contract, stands in, and is then spoilt."""
    like = torch.empty(1, 1, 1, 16, dtype=torch.bfloat16)
    monkeypatch.setattr(flash_cuda, "attend", flash_cpu.attend)
    query, key = like.new_zeros(1, share, 4, 16), like.new_zeros(1, 1, 4, 16)
    assert flash_cuda._right(like, share) == flash_cpu.applies(query, key, key, None)  # older ones take no grouped heads

    def no_scaling(query, key, value, scaling):
        return flash_cpu.attend(query, key, value, 1.0)

    def other_logarithm(query, key, value, scaling):
        output, logsumexp = flash_cpu.attend(query, key, value, scaling)
        return output, logsumexp * 1.4426950408889634  # of base 2

    for wrong in (no_scaling, other_logarithm):
        monkeypatch.setattr(flash_cuda, "attend", wrong)
        assert not flash_cuda._right(like, share)
