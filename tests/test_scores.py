"""Scores on hand-made attention: what each ranks, and that text never enters the ranking."""

import pytest
import torch

from fitprune.errors import FitPruneError
from fitprune.kernels import TEXT, reference
from fitprune.scores import SCORES, Attended, find_score, product, random


def seen(group, past=0, seed=0, layer=0):
    generator = torch.Generator().manual_seed(5)
    group = torch.tensor(group)
    rows, n = group.shape
    visual = (group > 0).any(0).nonzero()
    return Attended(
        query=torch.randn(rows, 4, n, 8, generator=generator),
        key=torch.randn(rows, 2, past + n, 8, generator=generator),
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
    import tiny

    import fitprune

    embeds, mask = tiny.embedded(24, (3, 19))

    def latest_first(attended):
        return -torch.arange(attended.token_group.shape[1]).expand_as(attended.token_group).float()

    with torch.no_grad(), fitprune.prune(llama, tiny.RECIPE, visual_mask=mask, score=latest_first) as trace:
        llama(inputs_embeds=embeds)
    assert trace.visual[-1][0].tolist() == list(range(3, 9))
