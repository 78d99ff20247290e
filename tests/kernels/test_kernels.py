"""Received attention: the chunked kernel is the formula, whatever the shape, mask, grouping and block size."""

import sys

import pytest
import torch
from counted import peak_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fitprune.kernels import TEXT, chunked, flash_cpu, received_attention, reference
from fitprune.kernels.chunked import PANEL_BYTES
from fitprune.kernels.reference import additive


@st.composite
def cases(draw):
    batch, groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size, queries, past = draw(st.sampled_from([1, 3, 8, 13])), draw(st.integers(1, 37)), draw(st.integers(0, 19))
    images = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    keys = past + queries
    query = torch.randn(batch, groups * share, queries, size, generator=generator).to(dtype)
    key = torch.randn(batch, groups, keys, size, generator=generator).to(dtype)
    if draw(st.booleans()):  # as attention modules make them: heads are the third dimension in memory
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    query_group = torch.randint(-1, images + 1, (batch, queries), generator=generator)
    key_group = torch.cat([torch.zeros(batch, past, dtype=torch.long), query_group.clamp(min=0)], dim=1)

    kind = draw(st.sampled_from(["none", "bool", "float", "flash"]))
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(past)
    real = torch.rand(batch, keys, generator=generator) < 0.8
    real[:, 0] = True
    allowed = (causal & real[:, None]).unsqueeze(1)  # [B, 1, Q, K]
    if kind == "none":
        mask = None
    elif kind == "bool":
        mask = allowed
    elif kind == "float":
        low = torch.finfo(dtype).min
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, low)
        if draw(st.booleans()):
            mask = mask[:1]  # one mask for all rows
    else:
        mask = real
    return query, key, mask, query_group, key_group, images, past, draw(st.sampled_from([1, 200, 4096, None]))


@settings(max_examples=250, deadline=None)
@given(cases(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1, 100, 8 << 20]))
def test_chunked_is_the_reference(case, hints, with_logsumexp, itself, panel):
    query, key, mask, query_group, key_group, images, past, block = case
    wanted = reference(query, key, 0.7, mask, query_group, key_group, itself=itself)
    spans = {}
    if hints:  # the tightest that the caller may give
        visual_keys, asking = (key_group > 0).any(0).nonzero(), (query_group != 0).any(0).nonzero()
        if len(visual_keys) and len(asking):
            spans["columns"] = (int(visual_keys.min()), int(visual_keys.max()) + 1)
            first = max(int(asking.min()), 0 if mask is not None and mask.ndim == 4 else int(visual_keys.min()) - past)
            spans["rows"] = (max(first, 0), query.shape[2])
    if mask is None and with_logsumexp:
        repeated = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query.float() @ repeated.transpose(-1, -2) * 0.7
        spans["logsumexp"] = (scores + additive(None, *scores.shape[2:], query)).logsumexp(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["fitprune.kernels.chunked"], "PANEL_BYTES", panel)  # of keys in bfloat16
        found = chunked(query, key, 0.7, mask, query_group, key_group, images=images, block_bytes=block, itself=itself, **spans)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_reference_is_the_formula_by_hand():
    torch.manual_seed(3)
    heads, queries, past = 4, 7, 2
    keys = queries + past
    query, key = torch.randn(1, heads, queries, 5), torch.randn(1, 2, keys, 5)
    group = torch.tensor([[TEXT, 1, 1, 0, 2, TEXT, TEXT]])
    key_group = torch.cat([torch.zeros(1, past, dtype=torch.long), group.clamp(min=0)], 1)
    cross, intra = reference(query, key, 0.3, None, group, key_group)
    for k in range(keys):
        want_cross = want_intra = 0.0
        for q in range(queries):
            best = 0.0
            for h in range(heads):
                row = [float(query[0, h, q] @ key[0, h // 2, j]) * 0.3 for j in range(q + past + 1)]
                if k <= q + past:
                    best = max(best, float(torch.tensor(row).softmax(0)[k]))
            want_cross += best * bool(group[0, q] == TEXT)
            want_intra += best * bool(group[0, q] == key_group[0, k])
        visual = key_group[0, k] > 0
        assert float(cross[0, k]) == pytest.approx(want_cross if visual else 0.0, abs=1e-6)
        assert float(intra[0, k]) == pytest.approx(want_intra if visual else 0.0, abs=1e-6)


def test_no_attention_leaves_a_masked_key_anything():
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    group = torch.tensor([[1, 1, 1, TEXT, TEXT, TEXT]])
    real = torch.tensor([[True, False, True, True, True, True]])
    four = (torch.ones(6, 6, dtype=torch.bool).tril() & real[:, None])[:, None]
    for mask in (real, four, torch.zeros(1, 1, 6, 6).masked_fill(~four, -torch.inf)):
        for kernel in (reference, chunked):
            cross, intra = kernel(query, key, 1.0, mask, group, group.clamp(min=0))
            assert cross[0, 1] == 0
            assert intra[0, 1] == 0
            assert torch.isfinite(cross).all()


def test_peak_memory_is_a_block():
    """The largest tensor that is ever made is a block's scores, not the map."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.seen = max(self.seen, out.numel() * out.element_size())
            return out

    query, key = torch.randn(1, 8, 512, 8), torch.randn(1, 2, 512, 8)
    group = torch.full((1, 512), TEXT)
    group[:, 10:400] = 1
    with Largest() as largest:
        received_attention(query, key, 1.0, None, group, group.clamp(min=0), block_bytes=1 << 18)
    assert largest.seen <= 1 << 18 < 8 * 512 * 512 * 4


@pytest.mark.parametrize("given_logsumexp", [True, False])
def test_no_copy_of_all_keys_in_another_precision(given_logsumexp):
    query, key = (torch.randn(1, 16, 1500, 128).bfloat16() for _ in range(2))
    group = torch.ones(1, 1500, dtype=torch.long)
    logsumexp = torch.full((1, 16, 1500), 9.0) if given_logsumexp else None
    peak = peak_bytes(lambda: chunked(query, key, 0.1, None, group, group, logsumexp=logsumexp))
    assert peak < 2 * PANEL_BYTES + (6 << 20)
    assert key.numel() * 4 * 2 > 2 * PANEL_BYTES + (6 << 20)


def test_additive_understands_every_kind_of_mask():
    like = torch.zeros(1)
    causal = additive(None, 2, 3, like)[0, 0]
    assert (causal == 0).tolist() == [[True, True, False], [True, True, True]]
    real = additive(torch.tensor([[False, True, True]]), 2, 3, like)[0, 0]
    assert (real == 0).tolist() == [[False, True, False], [False, True, True]]
    floats = additive(torch.tensor([[[[0.0, -torch.inf]]]], dtype=torch.float16), 1, 2, like)
    assert torch.isfinite(floats).all()


def attention_tensors(batch, heads, groups, queries, keys, size, dtype):
    """As attention modules make them: heads are the third dimension in memory."""
    shapes = (queries, heads), (keys, groups), (keys, groups)
    return [torch.randn(batch, length, n, size, dtype=dtype).transpose(1, 2) for length, n in shapes]


@pytest.mark.parametrize("kind", ["none", "bool", "one for all rows", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "queries", "keys", "size"),
    [(1, 4, 4, 67, 67, 16), (3, 2, 2, 130, 130, 7), (2, 1, 1, 2, 2, 64), (2, 6, 2, 33, 33, 8), (2, 4, 4, 9, 40, 16)],
)
def test_the_cpu_kernel_is_what_sdpa_runs_and_its_logsumexp_is_right(batch, heads, groups, queries, keys, size, dtype, kind):
    """Against transformers' own call of sdpa, which repeats grouped heads or not as it sees fit."""
    query, key, value = attention_tensors(batch, heads, groups, queries, keys, size, dtype)
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).repeat(batch, 1, 1, 1)
    allowed[-1, ..., :2] = False  # padding on the left: rows of the map that see nothing
    allowed[-1, ..., 0, 0] = keys == queries
    mask = {
        "none": None,
        "bool": allowed,
        "one for all rows": allowed[-1:],
        "float": torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min),
    }[kind]
    if mask is None and queries != keys:
        assert not flash_cpu.applies(query, key, value, None)
        return
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, heads // groups
    expected = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, scaling=0.3)[0]
    if not flash_cpu.applies(query, key, value, mask):
        assert heads != groups  # older PyTorch runs another kernel for grouped heads
        return
    output, logsumexp = flash_cpu.attend(query, key, value, 0.3, mask)
    assert torch.equal(output.transpose(1, 2), expected)
    scores = (query.float() @ key.float().repeat_interleave(heads // groups, 1).transpose(-1, -2)) * 0.3
    scores += additive(mask, queries, keys, query)
    sees = (additive(mask, queries, keys, query) == 0).any(-1).expand(batch, heads, queries)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(logsumexp[sees], scores.logsumexp(-1)[sees], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_from_the_cpu_kernels_logsumexp_under_padding(dtype):
    """Masked, grouped, with a past and rows that see nothing: chunked gets the number instead of making it."""
    torch.manual_seed(1)
    query, key, value = attention_tensors(2, 6, 6, 21, 29, 8, dtype)
    group = torch.full((2, 21), TEXT)
    group[:, 5:15], group[1, :3] = 1, 0
    key_group = torch.nn.functional.pad(group.clamp(min=0), (8, 0))
    allowed = torch.ones(21, 29, dtype=torch.bool).tril(8).repeat(2, 1, 1, 1)
    allowed[1, ..., :11] = False  # the past and the first three: queries 0 to 2 of row 1 see nothing
    _, logsumexp = flash_cpu.attend(query * 40, key, value, 0.3, allowed)  # large scores: exp must not overflow
    found = chunked(query * 40, key, 0.3, allowed, group, key_group, logsumexp=logsumexp)
    for ours, theirs in zip(found, reference(query * 40, key, 0.3, allowed, group, key_group), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_the_cpu_kernel_is_left_alone_where_sdpa_would_run_another():
    query = torch.randn(1, 4, 9, 8)
    assert flash_cpu.applies(query, query, query, None)
    assert not flash_cpu.applies(query, query, query, None, causal=False)
    assert not flash_cpu.applies(query[:, :, :1], query[:, :, :1], query[:, :, :1], None)
    assert not flash_cpu.applies(query[:, :, :4], query, query, None)
    assert not flash_cpu.applies(query.double(), query.double(), query, None)
    with sdpa_kernel(SDPBackend.MATH):
        assert not flash_cpu.applies(query, query, query, None)
