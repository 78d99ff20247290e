"""The GPU kernel is the formula: interpreted on the CPU, and compiled where there is a GPU; the same tests either way."""

import os
import subprocess
import sys

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitprune import FitPruneError
from fitprune.kernels import TEXT, reference
from fitprune.kernels.reference import additive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, so nothing above may import it
compiler = pytest.importorskip("triton", reason="triton is not installed")
kernel = pytest.importorskip("fitprune.kernels.triton")
interpreted = type(kernel._receive).__name__ == "InterpretedFunction"
assert interpreted == (DEVICE == "cpu"), "something imported triton before TRITON_INTERPRET was set"

VERSION = tuple(int(part) for part in compiler.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and VERSION < (3, 3) and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0",
    reason="this Triton's interpreter reads loop bounds in a way that this numpy refuses",
)
SMALL = kernel.Tile(16, 16, 4, 1)


def case(seed, batch, groups, share, queries, past, size, dtype, images, kind, strided=False):
    """Tensors for one call, with whether a key may be seen [B, 1, Q, K] besides."""
    generator = torch.Generator().manual_seed(seed)
    keys = past + queries
    query = torch.randn(batch, queries, groups * share, size, generator=generator).to(dtype).transpose(1, 2)
    key = torch.randn(batch, groups, keys, size, generator=generator).to(dtype)
    if not strided:
        query = query.contiguous()
    query_group = torch.randint(-1, images + 1, (batch, queries), generator=generator).sort(dim=1).values
    query_group = query_group.roll(int(torch.randint(queries, (1,), generator=generator)), dims=1)  # runs, as in prompts
    key_group = torch.cat([torch.zeros(batch, past, dtype=torch.long), query_group.clamp(min=0)], dim=1)
    real = torch.rand(batch, keys, generator=generator) < 0.8
    real[:, 0] = True
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(past)
    allowed = (causal & real[:, None])[:, None] if kind != "none" else causal.expand(batch, 1, -1, -1)
    low = torch.finfo(dtype).min
    mask = {
        "none": lambda: None,
        "flash": lambda: real,
        "bool": lambda: allowed,
        "one": lambda: allowed[:1],  # one mask for all rows
        "float": lambda: torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, low),
        "infinite": lambda: torch.randn(allowed.shape, generator=generator).masked_fill(~allowed, -torch.inf),
    }[kind]()
    return tuple(None if part is None else part.to(DEVICE) for part in (query, key, mask, query_group, key_group))


def wanted(query, key, scaling, mask, *groups):
    """The reference on the numbers that the kernel is given, without bfloat16 products."""
    return reference(query.float(), key.float(), scaling, mask, *groups)


def close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def norms(query, key, scaling, mask):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling
    return (scores + additive(mask, *scores.shape[2:], query)).logsumexp(-1)


MASKS = ["none", "flash", "bool", "one", "float", "infinite"]
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=50 if DEVICE == "cpu" else 15, deadline=None)  # on a GPU nearly each is two kernels to be compiled
@given(
    st.tuples(
        st.integers(0, 10**6), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 37),
        st.integers(0, 19), st.sampled_from([8, 13, 20]), st.sampled_from(TYPES), st.integers(1, 3),
        st.sampled_from(MASKS), st.booleans(),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([SMALL, kernel.Tile(32, 16, 4, 1), kernel.Tile(16, 32, 4, 2)]),
)  # fmt: skip
def test_is_the_reference(shape, hints, with_logsumexp, itself, tile):
    query, key, mask, query_group, key_group = case(*shape)
    spans = {}
    if hints:  # the tightest that the caller may give
        visual, asking = (key_group > 0).any(0).nonzero(), (query_group != 0).any(0).nonzero()
        if len(visual) and len(asking):
            spans["columns"] = (int(visual.min()), int(visual.max()) + 1)
            spans["rows"] = (int(asking.min()), int(asking.max()) + 1)
    if with_logsumexp:
        spans["logsumexp"] = norms(query, key, 0.7, mask)
    found = kernel.received_attention(query, key, 0.7, mask, query_group, key_group, images=3, itself=itself, tile=tile, **spans)
    close(found, wanted(query, key, 0.7, mask, query_group, key_group, itself))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [16, 64, 80, 96, 128, 160, 256])
def test_every_head_size_and_type_with_its_own_tile(size, dtype):
    shape = case(size, 1, 1, 2, 45, 3, size, dtype, 2, "flash")
    found = kernel.received_attention(*shape[:2], size**-0.5, *shape[2:])
    close(found, wanted(*shape[:2], size**-0.5, *shape[2:]))


@pytest.mark.parametrize("kind", MASKS)
def test_the_normaliser_alone(kind):
    """The same sums without a log-sum-exp as with the exact one."""
    shape = case(5, 2, 2, 2, 21, 6, 16, torch.float32, 1, kind)
    query, key, mask, *_ = shape
    own = kernel.received_attention(query, key, 0.5, *shape[2:], tile=SMALL)
    padded = torch.nn.functional.pad(norms(query, key, 0.5, mask), (0, 11), value=torch.nan)  # some attention calls round up
    given_to = kernel.received_attention(query, key, 0.5, *shape[2:], tile=SMALL, logsumexp=padded)
    close(own, given_to)


@pytest.mark.parametrize("programs", [1, 6, 10, 264])  # one share of five row blocks, two, two or more, five
def test_sums_are_split_over_programs_and_come_out_the_same_every_time(programs, monkeypatch):
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    shape = case(8, 1, 2, 2, 70, 0, 16, torch.float32, 1, "none")
    found = [kernel.received_attention(*shape[:2], 0.5, *shape[2:], tile=SMALL) for _ in range(2)]
    close(found[0], wanted(*shape[:2], 0.5, *shape[2:]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["flash", "bool", "infinite"])
def test_padding_on_the_left_fills_whole_blocks(kind):
    padding, query, key = 37, torch.randn(1, 2, 70, 16, device=DEVICE), torch.randn(1, 1, 70, 16, device=DEVICE)
    group = torch.tensor([[0] * padding + [TEXT] * 4 + [1] * 20 + [TEXT] * 9], device=DEVICE)
    real = group != 0
    four = (torch.ones(70, 70, dtype=torch.bool, device=DEVICE).tril() & real[:, None])[:, None]
    mask = {"flash": real, "bool": four, "infinite": torch.zeros(four.shape, device=DEVICE).masked_fill(~four, -torch.inf)}
    found = kernel.received_attention(query, key, 0.5, mask[kind], group, group.clamp(min=0), tile=SMALL)
    group, query, key = group[:, padding:], query[:, :, padding:], key[:, :, padding:]
    close([part[:, padding:] for part in found], wanted(query, key, 0.5, None, group, group.clamp(min=0)))
    assert not any(part[:, :padding].any() for part in found)


@pytest.mark.parametrize("past", [0, 1, 15, 16, 17])
def test_the_diagonal_wherever_it_meets_the_blocks(past):
    shape = case(past, 1, 1, 2, 32, past, 16, torch.float32, 1, "none")
    close(kernel.received_attention(*shape[:2], 0.5, *shape[2:], tile=SMALL), wanted(*shape[:2], 0.5, *shape[2:]))


def test_a_query_that_sees_nothing_gives_nothing_and_a_hidden_key_gets_nothing():
    query, key, _, _, _ = case(2, 1, 1, 2, 6, 0, 16, torch.float32, 1, "none")
    group = torch.tensor([[1, 1, TEXT, 1, TEXT, TEXT]], device=DEVICE)
    real = torch.tensor([[False, False, False, True, True, True]], device=DEVICE)  # queries 0 to 2 see no key
    four = (torch.ones(6, 6, dtype=torch.bool, device=DEVICE).tril() & real[:, None])[:, None]
    masks = [real, four, torch.zeros(1, 1, 6, 6, device=DEVICE).masked_fill(~four, -torch.inf)]
    expected = wanted(query[:, :, 3:], key[:, :, 3:], 0.5, None, group[:, 3:], group[:, 3:].clamp(min=0))
    for mask in masks:
        for sums, rest in zip(
            kernel.received_attention(query, key, 0.5, mask, group, group.clamp(min=0), tile=SMALL), expected, strict=True
        ):
            assert (sums[0, :3] == 0).all()
            torch.testing.assert_close(sums[:, 3:], rest, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numbers_of_queries_that_do_not_count_are_never_used():
    """A tile may hold such queries beside others: whatever stands there stays out of the sums."""
    query, key, mask, _, _ = case(4, 1, 1, 2, 20, 0, 16, torch.float32, 1, "none")
    group = torch.tensor([[0] * 5 + [1] * 8 + [0] * 3 + [TEXT] * 4], device=DEVICE)
    expected = wanted(query, key, 0.5, mask, group, group.clamp(min=0))
    lse = norms(query, key, 0.5, mask)
    lse[:, :, :5], query[:, :, :5] = torch.nan, 1e30
    lse[:, :, 13:16] = -torch.inf
    for more in ({"logsumexp": lse}, {}):
        close(kernel.received_attention(query, key, 0.5, mask, group, group.clamp(min=0), tile=SMALL, **more), expected)


def test_nothing_to_do():
    query, key, mask, group, key_group = case(1, 1, 1, 1, 5, 0, 16, torch.float32, 1, "none")
    for spans in ({"columns": (2, 2)}, {"rows": (5, 5)}):
        sums = kernel.received_attention(query, key, 0.5, mask, group, key_group, **spans)
        assert [part.shape for part in sums] == [(1, 5), (1, 5)]
        assert not any(part.any() for part in sums)


def test_refuses_what_it_cannot_read():
    query, key, mask, group, key_group = case(1, 1, 1, 1, 5, 0, 16, torch.float32, 1, "none")
    wide = torch.zeros(1, 1, 5, 512, device=DEVICE)
    for q, k in ((query.double(), key.double()), (query, key.half()), (wide, wide)):
        with pytest.raises(FitPruneError, match="chunked"):
            kernel.received_attention(q, k, 0.5, mask, group, key_group)
    apart = torch.empty_strided((1, 1, 5, 16), (0, 0, 1 << 30, 1), device="meta")
    with pytest.raises(FitPruneError, match="2\\^31"):
        kernel.received_attention(apart, key, 0.5, mask, group, key_group)
    assert not kernel.applies(query.cpu())
    assert kernel.applies(query) == (DEVICE == "cuda")


def test_tiles_fit_and_shrink_with_the_work():
    least = 99 << 10
    for size, width in kernel.TILES:
        assert kernel.choose(1, 10, 10, size, width, least, True).shared(size, width, True) <= least
    much, little = (kernel.choose(8, n, n, 128, 2, 227 << 10) for n in (2944, 70))
    assert much == kernel.TILES[128, 2][0]
    assert little == kernel.TILES[128, 2][-1]
    assert kernel.choose(8, 2944, 2944, 16, 4, least) == kernel.TILES[64, 4][0]


def test_no_map_no_question_to_the_device():
    """Between the kernels nothing is made that grows with queries × keys, and no operation waits for a number."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        names, largest = set(), 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.names.add(str(func))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.untyped_storage().nbytes())
            return out

    shape = case(9, 1, 1, 4, 120, 0, 16, torch.float32, 1, "flash")
    limit = max(part.untyped_storage().nbytes() for part in shape if part is not None)
    with Watch() as watch:
        kernel.received_attention(*shape[:2], 0.5, *shape[2:], tile=kernel.Tile(64, 64, 4, 1))
    assert watch.names
    assert not {name for name in watch.names if "local_scalar" in name or "nonzero" in name or "masked_select" in name}
    assert watch.largest <= limit < 4 * 120 * 120 * 4


COMPILE = """
from itertools import product
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fitprune.kernels import triton as kernel

tile = kernel.TILES[128, 2][-1]
fixed = dict(HEADS=4, SHARE=2, SIZE=96, PADDED=128, ROWS=tile.queries, COLUMNS=tile.keys, WIDEN=False)
types = dict.fromkeys(["query", "key"], "*bf16") | dict.fromkeys(["logsumexp", "sums"], "*fp32") | {"scale": "fp32"}
types |= dict.fromkeys(["query_group", "key_group"], "*i64")
for function in (kernel._normalise, kernel._receive):
    itself = [{"ITSELF": True}, {"ITSELF": False}] if function is kernel._receive else [{}]
    for (kind, pointer), own in product(enumerate(["*bf16", "*u8", "*u8", "*bf16"]), itself):
        known = fixed | {"MASK": kind} | own
        signature = {name: "constexpr" if name in known else (types | {"mask": pointer}).get(name, "i32")
                     for name in function.arg_names}
        source = ASTSource(fn=function, signature=signature, constexprs=known)
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert built.metadata.shared <= tile.shared(128, 2, kind > 1), (function, kind, built.metadata.shared)
        print(len(built.asm["cubin"]))
"""


@pytest.mark.skipif(VERSION < (3, 3), reason="compiling without a GPU is asked for in another way here")
@pytest.mark.rest  # half a minute of compiling
def test_compiles_for_a_gpu_that_is_not_there(tmp_path):
    """The interpreter lets pass what the compiler does not. Both kernels, every kind of mask."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout.split()) == 12


@pytest.mark.gpu
def test_runs_inside_a_graph():
    shape = case(3, 2, 2, 2, 150, 7, 64, torch.bfloat16, 2, "flash")
    eager = kernel.received_attention(*shape[:2], 0.1, *shape[2:])  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernel.received_attention(*shape[:2], 0.1, *shape[2:])
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(captured, eager, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_takes_the_logsumexp_of_flash_attention(dtype):
    query, key, mask, group, key_group = case(6, 2, 4, 1, 333, 0, 64, dtype, 1, "none", strided=True)
    found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, key, 0.0, True, False, scale=0.1)
    sums = kernel.received_attention(query, key, 0.1, mask, group, key_group, logsumexp=found[1])
    close(sums, wanted(query, key, 0.1, mask, group, key_group))


@pytest.mark.gpu
@pytest.mark.parametrize("length", [675, 2979])
@pytest.mark.parametrize("given", [True, False])
def test_at_the_size_of_a_7b_layer(length, given):
    """Shapes that fill a device, as `fitprune bench` has them: 32 heads of 128, with the log-sum-exp of flash attention and without."""
    query, key, _, _, _ = case(length, 1, 32, 1, length, 0, 128, torch.bfloat16, 1, "none", strided=True)
    group = torch.full((1, length), TEXT, device=DEVICE)
    group[:, 35:-64] = 1
    hints = {"rows": (35, length), "columns": (35, length - 64), "images": 1}
    if given:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, key, 0.0, True, False, scale=128**-0.5)
        hints["logsumexp"] = found[1]
    sums = kernel.received_attention(query, key, 128**-0.5, None, group, group.clamp(min=0), **hints)
    for ours, theirs in zip(sums, wanted(query, key, 128**-0.5, None, group, group.clamp(min=0)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
