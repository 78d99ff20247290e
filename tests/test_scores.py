"""Scores: what each ranks, on hand-made attention and, for `last` (FastV's), through `prune` on tiny models.

The yardstick of `last` is the whole softmax map of which the last row is picked; through `prune` it is the attention
that the unmodified model returns with eager attention, each row of a batch alone.
"""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import pad, removed_of
from test_prune import ROWS, image_spans, tiny_llama
from tiny import LAYERS, RECIPE, batch, dense_pruned, embedded, layers_of, prompt, spans_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

import fitprune
from fitprune import Recipe
from fitprune.decoder.upstream import pass_cache
from fitprune.errors import FitPruneError
from fitprune.kernels import TEXT, reference
from fitprune.kernels.attended import Attended
from fitprune.kernels.reference import additive
from fitprune.scores import SCORES, find_score, last, product, random


def seen(group, past=0, seed=0, layer=0):
    generator = torch.Generator().manual_seed(5)
    group = torch.tensor(group)
    rows, n = group.shape
    visual = (group > 0).any(0).nonzero()
    return Attended(
        query=torch.randn(rows, 4, n, 8, generator=generator),
        key=torch.randn(rows, 2, past + n, 8, generator=generator),
        value=torch.randn(rows, 2, past + n, 6, generator=generator),
        scaling=0.8,
        mask=None,
        token_group=group,
        images=int(group.max()),
        visual=(int(visual.min()), int(visual.max()) + 1),
        layer=layer,
        seed=seed,
    )


GROUP = [[TEXT, 1, 1, 1, TEXT, 2, 2, TEXT, TEXT], [TEXT, TEXT, 1, 1, 1, 1, TEXT, 0, 0]]


@pytest.mark.parametrize("past", [0, 6])
def test_received_is_the_reference_over_the_new_tokens(past):
    attended = seen(GROUP, past)
    group = attended.token_group
    key_group = torch.nn.functional.pad(group.clamp(min=0), (past, 0))
    wanted = reference(attended.query, attended.key, 0.8, None, group, key_group)
    for ours, theirs in zip(attended.received, wanted, strict=True):
        assert ours.shape == group.shape
        torch.testing.assert_close(ours, theirs[:, past:], rtol=1e-5, atol=1e-7)
    cross, intra = attended.received
    torch.testing.assert_close(product(attended), cross * intra)
    torch.testing.assert_close(SCORES["cross"](attended), cross)
    torch.testing.assert_close(SCORES["self"](attended), intra)
    assert (cross[group > 0] > 0).all()


def test_an_image_that_no_text_follows_is_ranked_by_its_own_tokens():
    attended = seen([[TEXT, 1, 1, TEXT, 2, 2, 2]])
    cross, intra = attended.received
    score = product(attended)
    torch.testing.assert_close(score[:, 1:3], (cross * intra)[:, 1:3])
    torch.testing.assert_close(score[:, 4:], intra[:, 4:])
    assert attended.text_follows.tolist() == [[True] * 4 + [False] * 3]


def test_padding_after_an_image_is_not_text():
    assert not seen([[TEXT, 1, 1, 0, 0]]).text_follows[0, 1:].any()


def test_random_is_the_seeds():
    a, b = random(seen(GROUP, seed=1)), random(seen(GROUP, seed=1))
    assert torch.equal(a, b)
    assert not torch.equal(a, random(seen(GROUP, seed=2)))
    assert not torch.equal(a, random(seen(GROUP, seed=1, layer=1)))
    assert a.shape == (2, 9)


def test_find_score():
    assert find_score("fitprune") is product
    own = lambda attended: attended.token_group.float()  # noqa: E731
    assert find_score(own) is own
    with pytest.raises(FitPruneError, match="cross"):
        find_score("fastest")


def test_a_new_score_is_one_function(llama):
    """The design's count: a function, and nothing else."""
    embeds, mask = tiny.embedded(24, (3, 19))

    def latest_first(attended):
        return -torch.arange(attended.token_group.shape[1]).expand_as(attended.token_group).float()

    with torch.no_grad(), fitprune.prune(llama, tiny.RECIPE, visual_mask=mask, score=latest_first) as trace:
        llama(inputs_embeds=embeds)
    assert trace.visual[-1][0].tolist() == list(range(3, 9))


# ---- last (FastV) ------------------------------------------------------------------------------------------------


def last_by_the_map(seen):
    """All of softmax(scaling · q·k + mask), the row of the last token with a group, the mean over heads."""
    key = seen.key.repeat_interleave(seen.query.shape[1] // seen.key.shape[1], dim=1)
    logits = (seen.query @ key.transpose(-1, -2)).float() * seen.scaling
    weights = (logits + additive(seen.mask, *logits.shape[2:], seen.query)).softmax(-1)  # [B, H, n, K]
    rows = []
    for row, group in enumerate(seen.token_group.tolist()):
        asking = max(at for at, member in enumerate(group) if member != 0)
        rows.append(weights[row, :, asking].mean(0)[-len(group) :])
    return torch.stack(rows)


@st.composite
def cases(draw):
    rows, groups, share = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size, n, past = draw(st.sampled_from([1, 3, 8, 13])), draw(st.integers(1, 37)), draw(st.integers(0, 19))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    query = torch.randn(rows, groups * share, n, size, generator=generator).to(dtype)
    key = torch.randn(rows, groups, past + n, size, generator=generator).to(dtype)
    if draw(st.booleans()):  # as attention modules make them: heads are the third dimension in memory
        query, key = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (query, key))
    kind = draw(st.sampled_from(["none", "bool", "float", "flash", "shared"]))
    group = torch.randint(1, 4, (rows, n), generator=generator)
    group[torch.rand(rows, n, generator=generator) < 0.4] = TEXT
    real = torch.ones(rows, past + n, dtype=torch.bool)
    if kind in ("bool", "float", "flash"):  # padding on either side, fillers in between, holes in the past
        for row in range(rows):
            before, after = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
            real[row, past : past + before], real[row, past + n - after :] = False, False
        real &= torch.rand(rows, past + n, generator=generator) < 0.8
        real[~real[:, past:].any(1), past + n // 2] = True  # a row has a token
        group[~real[:, past:]] = 0
    fewer = group.clone()
    fewer[:, n - draw(st.integers(0, n - 1)) :] = 0  # tokens that do not count, whether or not they are masked
    group = torch.where((fewer != 0).any(1, keepdim=True), fewer, group)
    allowed = (torch.ones(n, past + n, dtype=torch.bool).tril(past) & real[:, None]).unsqueeze(1)
    mask = {"none": None, "bool": allowed, "flash": real, "shared": allowed[:1]}.get(kind)
    if kind == "float":
        low = draw(st.sampled_from([torch.finfo(dtype).min, -torch.inf]))
        mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, low)
    lse = torch.full((rows, groups * share, n), torch.nan) if kind == "none" and draw(st.booleans()) else None
    return Attended(query, key, key.flip(2), 0.7, mask, group, 3, (0, n), layer=0, logsumexp=lse)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_last_is_the_last_row_of_the_map(attended):
    """The log-sum-exp, where there is one, is not a number here: whatever it says, nothing changes."""
    before = [part.clone() for part in (attended.query, attended.key)]
    score = last(attended)
    assert score.dtype == torch.float32
    assert score.shape == attended.token_group.shape
    exact = attended.query.dtype == torch.float32
    tolerance = {"rtol": 2e-5, "atol": 1e-7} if exact else {"rtol": 2e-2, "atol": 1e-4}
    torch.testing.assert_close(score, last_by_the_map(attended), **tolerance)
    assert "received" not in vars(attended)
    assert torch.equal(attended.query, before[0])
    assert torch.equal(attended.key, before[1])


def test_last_by_hand():
    """Two rows, left- and right-padded; one key head for two heads; one cached key."""
    attended = Attended(
        query=torch.tensor([[[[9.0], [1.0], [2.0]], [[9.0], [1.0], [0.0]]], [[[9.0], [1.0], [9.0]], [[9.0], [-1.0], [9.0]]]]),
        key=torch.tensor([[[[0.5], [7.0], [1.0], [2.0]]], [[[0.5], [1.0], [2.0], [7.0]]]]),
        value=torch.zeros(2, 1, 4, 1),
        scaling=0.5,
        mask=torch.tensor([[True, False, True, True], [True, True, True, False]]),
        token_group=torch.tensor([[0, 1, TEXT], [1, TEXT, 0]]),
        images=1,
        visual=(0, 2),
        layer=0,
    )  # fmt: skip
    padded_left = (torch.tensor([0.5, 1.0, 2.0]).softmax(0) + torch.full((3,), 1 / 3)) / 2
    padded_right = (torch.tensor([0.25, 0.5, 1.0]).softmax(0) + torch.tensor([-0.25, -0.5, -1.0]).softmax(0)) / 2
    wanted = torch.tensor([[0.0, *padded_left[1:]], [*padded_right[1:], 0.0]])
    torch.testing.assert_close(last(attended), wanted)
    assert attended.from_last.shape == (2, 2, 3)


def test_last_survives_a_row_of_padding_alone():
    attended = seen([[TEXT, 1, 1, TEXT], [0, 0, 0, 0]])
    for mask in (None, attended.token_group != 0, torch.full((2, 1, 4, 4), -torch.inf)):
        assert last(replace(attended, mask=mask)).isfinite().all()


@pytest.mark.parametrize("mask", ["none", "flash", "4d"])
def test_last_costs_one_row(mask):
    """One dot product per head and key; nothing is made that is larger than the keys or a row of all heads."""
    rows, heads, groups, n, size = 2, 8, 2, 300, 8
    real = torch.ones(rows, n, dtype=torch.bool)
    whole = real[:, None, None, :].expand(rows, 1, n, n).tril()
    attended = Attended(
        torch.randn(rows, heads, n, size), torch.randn(rows, groups, n, size), torch.randn(rows, groups, n, size), 0.3,
        {"none": None, "flash": real, "4d": whole}[mask], torch.full((rows, n), TEXT), 0, (0, 0), layer=0,
    )  # fmt: skip
    given_storage = {part.untyped_storage().data_ptr() for part in (attended.query, attended.key, attended.mask) if part is not None}

    class Largest(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given_storage:
                self.made = max(self.made, out.untyped_storage().nbytes())
            return out

    with FlopCounterMode(display=False) as flops:
        last(attended)
    assert flops.get_total_flops() == 2 * rows * heads * n * size
    del attended.from_last
    with Largest() as largest:
        last(attended)
    assert 0 < largest.made <= 4 * rows * max(heads * n, groups * n * size) < 4 * n * n


def fastv(model, inputs, spans, recipe, start=0, removed=None):
    """As `tiny.dense_pruned`, tokens ranked by the attention that the unmodified, eager model pays from its last token."""
    length = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]).shape[1]
    gone = torch.full((length,), tiny.NEVER)
    if removed is not None:
        gone[: len(removed)] = removed
    for index, layer in enumerate(layers_of(model)):
        found = []
        hook = layer.self_attn.register_forward_hook(lambda _m, _a, out, found=found: found.append(out[1]))
        dense_pruned(model, inputs, [], None, removed=gone)
        hook.remove()
        (weights,) = found  # [1, H, S, S]
        asking = max(at for at in range(length) if gone[at] >= index)
        received = weights[0, :, asking].double().mean(0)
        for first, end in spans:
            members = [k for k in range(first, end) if gone[k] >= index]
            members.sort(key=lambda k: (float(received[k]), k))
            for k in members[: recipe.deletions(end - first, LAYERS)[index]]:
                gone[k] = index
    return dense_pruned(model, inputs, [], None, start=start, removed=gone)


def same(trace, output, dense, row=0, shift=0, past=0):
    for layer in range(LAYERS):
        kept = [at for at in dense.alive(layer) if at >= past]
        assert (trace.alive[layer][row] - shift).tolist() == kept, f"row {row}, layer {layer}"
    where = trace.positions[row]
    ours, theirs = output.logits[row][where >= 0], dense.logits[where[where >= 0] - shift]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("recipe", [Recipe.step(layer=1, keep=0.5), RECIPE], ids=["step", "every layer"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", [("llava", "sdpa"), ("llava", "eager")], indirect=True)
def test_last_prunes_a_batch_as_fastv_prunes_its_rows(implementation, side, recipe):
    """One to two images, a row that ends with an image, a text-only row, padding on either side, grouped heads."""
    rows = [*ROWS, prompt(2, "image", seed=6)]
    inputs = batch(rows, side)
    with torch.no_grad(), fitprune.prune(implementation, recipe, score="last") as trace:
        output = implementation(**inputs)
    for number, row in enumerate(rows):
        dense = fastv(implementation, row, image_spans(row), recipe)
        same(trace, output, dense, number, pad(inputs, number))


def test_the_step_is_fastv(llama):
    """FastV with K = 2, R = 50%, from nothing but what transformers returns: the best half by layer 1's attention."""
    embeds, mask = embedded(26, (3, 19))
    with torch.no_grad(), fitprune.prune(llama, Recipe.step(layer=1, keep=0.5), visual_mask=mask, score="last") as trace:
        llama(inputs_embeds=embeds)
    before = llama.config._attn_implementation
    llama.set_attn_implementation("eager")
    with torch.no_grad():
        attention = llama(inputs_embeds=embeds, output_attentions=True).attentions
    llama.set_attn_implementation(before)
    kept = attention[1].mean(1)[0, -1, 3:19].topk(8).indices + 3
    assert trace.visual[0][0].tolist() == list(range(3, 19))
    assert trace.visual[1][0].tolist() == trace.visual[-1][0].tolist() == sorted(kept.tolist())
    with torch.no_grad(), fitprune.prune(llama, Recipe.step(layer=1, keep=0.5), visual_mask=mask, score="cross") as other:
        llama(inputs_embeds=embeds)
    assert other.visual[1][0].tolist() != trace.visual[1][0].tolist()  # scores differ on this prompt


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_batch_by_last(data):
    """Rows of any length, with any images, padded on either side, any recipe."""
    model, rows, left = tiny_llama(), data.draw(st.integers(1, 3)), data.draw(st.booleans())
    lengths = [data.draw(st.integers(3, 24)) for _ in range(rows)]
    width = max(lengths)
    counts = data.draw(st.lists(st.integers(0, 8), min_size=LAYERS, max_size=LAYERS).filter(lambda c: sum(c) <= 16))
    recipe = Recipe.from_deletions(counts, visual_tokens=16)
    embeds, mask = torch.zeros(rows, width, tiny.HIDDEN), torch.zeros(rows, width, dtype=torch.bool)
    real, singles = torch.zeros(rows, width, dtype=torch.long), []
    for row, length in enumerate(lengths):
        shift = width - length if left else 0
        ends = sorted(data.draw(st.lists(st.integers(1, length), max_size=4, unique=True)))  # text comes first
        visual = torch.zeros(length, dtype=torch.bool)
        for first, end in zip(ends[::2], ends[1::2], strict=False):
            visual[first:end] = True
        here = embedded(length, seed=data.draw(st.integers(0, 99)))[0]
        embeds[row, shift : shift + length], real[row, shift : shift + length] = here[0], 1
        mask[row, shift : shift + length] = visual
        singles.append((here, visual, shift))
    padding = {} if bool(real.all()) and data.draw(st.booleans()) else {"attention_mask": real}
    with torch.no_grad(), fitprune.prune(model, recipe, visual_mask=mask, score="last") as trace:
        output = model(inputs_embeds=embeds, position_ids=(real.cumsum(1) - 1).clamp(min=0), **padding)
    assert (len(trace) > 0) == bool(mask.any())
    for row, (here, visual, shift) in enumerate(singles):
        if mask.any():
            same(trace, output, fastv(model, {"inputs_embeds": here}, spans_of(visual), recipe), row, shift)


@pytest.mark.parametrize("rows", [1, 2])
def test_last_in_a_later_turn(llava, rows):
    """A new image on a pruned cache: more keys than queries, cached padding and fillers among them."""
    firsts = [prompt(3, "image", 5, seed=5), prompt(6, "image", 1, "image", 2, seed=6)][:rows]
    turns = [prompt(2, "image", 4, seed=8), prompt("image", 1, "image", 5, seed=10)][:rows]
    one, two = batch(firsts), batch(turns)
    mask = torch.cat([one["attention_mask"], two["attention_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    width, cache = one["input_ids"].shape[1], DynamicCache()
    with torch.no_grad(), fitprune.prune(llava, RECIPE, score="last") as trace:
        llava(**one, position_ids=positions[:, :width], **pass_cache(llava, cache))
        sizes = [row["input_ids"].shape[1] for row in firsts]
        removed = [removed_of(trace, row, width - size, size) for row, size in enumerate(sizes)]
        second = {**two, "attention_mask": mask, "position_ids": positions[:, width:]}
        output = llava(**second, **pass_cache(llava, cache))
    for row, (first, turn) in enumerate(zip(firsts, turns, strict=True)):
        whole = {name: torch.cat([first[name], turn[name]], dim=int(name == "input_ids")) for name in first}
        spans = [span for span in image_spans(whole) if span[0] >= sizes[row]]
        dense = fastv(llava, whole, spans, RECIPE, start=sizes[row], removed=removed[row])
        same(trace, output, dense, row, shift=width + pad(two, row) - sizes[row], past=sizes[row])
