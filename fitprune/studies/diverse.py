"""Which of an image's visual tokens to keep, chosen once by their embeddings alone: DivPrune and CDPruner.

Both look at what the decoder is given, before its first layer, and take a token at a time, always the one that adds most:

- `divprune` (https://arxiv.org/abs/2503.02175, algorithm 1): the token farthest, by cosine, from its nearest chosen one. The first is
  the one whose nearest other token is farthest, as in the authors' code (github.com/vbdi/divprune). The question is not looked at.
- `cdpruner` (https://arxiv.org/abs/2506.10967, section 3): the token that makes the determinant of the chosen ones' kernel
  diag(r) · S · diag(r) largest (greedy MAP of a determinantal point process; https://arxiv.org/abs/1709.05135 has the way to do it
  without determinants). S is the cosine of two tokens, r how relevant a token is to the question, scaled to 0 … 1 over the image.

**Relevance.** CDPruner's code takes it from CLIP: minus the mean cosine of a patch with the question's texts, in CLIP's own space (the
sign, its authors say, is right for CLIP only: github.com/Theia-4869/CDPruner, issue 14). A LLaVA checkpoint lacks CLIP's text tower and
its projections, and for models that never had one (Qwen-VL, InternVL) there are figures in the paper but no code (issues 4, 20). So this
is the variant of OpenVINO GenAI's port: the mean cosine of a visual token with the word embeddings of the text after the image, in the
language model's input space, its sign kept. It is not what the paper's rows of LLaVA were measured with. Without text after the image,
every token is as relevant as any other.

Everything is in float64, so that neither precision nor the batch decides. Once the kernel's rank is used up no token adds anything, and
the most relevant of the others follow. Left out: a budget for each of LLaVA-NeXT's tiles, as CDPruner has (here an image has one), and its
weight of relevance, which its code has switched off.

    python -c "import torch; from fitprune.studies.diverse import *; print(divprune(torch.randn(9, 4), torch.empty(0, 4), 3))"
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

Selection = Callable[[Tensor, Tensor, int], Tensor]
"""An image's tokens [n, E], the text after it [t, E], how many to keep (1 … n) → which, [keep] ascending."""

LEAST = 1e-6  # added to relevance before it is scaled, as in CDPruner's code: none is 0
SPENT = 1e-14  # a determinant that grows by less than this factor has reached the kernel's rank, as far as float64 can tell


def divprune(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
    """Greedy max-min distance; O(n² E) and then O(n) a token."""
    distance = _distances(tokens)
    nearest = distance.min(dim=1).values  # of each token: how far the nearest other is, then the nearest chosen
    chosen: list[int] = []
    for _ in range(keep):
        best = int(nearest.argmax())
        nearest = torch.minimum(nearest, distance[best]) if chosen else distance[best].clone()
        chosen.append(best)
        nearest[chosen] = -torch.inf
    return _ascending(chosen, tokens)


def cdpruner(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
    """Greedy MAP of a DPP by one step of Cholesky's decomposition a token; O(n² E), then O(n · chosen) a token."""
    kernel, relevance = conditional_kernel(tokens, question)
    gain = kernel.diagonal().clone()  # [n] by which factor the determinant grows with each token
    rows = kernel.new_zeros(keep, len(kernel))  # of Cholesky's factor
    chosen: list[int] = []
    for step in range(keep):
        best = int(gain.argmax())
        if gain[best] <= SPENT:
            break
        rows[step] = (kernel[best] - rows[:step, best] @ rows[:step]) / gain[best].sqrt()
        gain = gain - rows[step] ** 2
        chosen.append(best)
        gain[chosen] = -torch.inf
    return _ascending(_completed(chosen, relevance, keep), tokens)


def conditional_kernel(tokens: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
    """CDPruner's kernel [n, n], and the relevance [n] in it; float64."""
    direction = normalize(tokens.double(), dim=-1)
    relevance = direction.new_ones(len(direction))
    if len(question):
        cosine = direction @ normalize(question.double(), dim=-1).mean(dim=0)  # the mean over the text's tokens
        low, high = cosine.min(), cosine.max()
        if high > low:
            relevance = (cosine - low + LEAST) / (high - low)
    return relevance[:, None] * _cosines(direction) * relevance, relevance


def _distances(tokens: Tensor) -> Tensor:
    """1 - cosine [n, n], float64; a token's from itself is infinite."""
    return (1 - _cosines(normalize(tokens.double(), dim=-1))).fill_diagonal_(torch.inf)


def _cosines(direction: Tensor) -> Tensor:
    """Of directions [n, E] with one another [n, n], the same both ways to the last bit: two nearest to each other are a tie."""
    cosines = direction @ direction.T
    return (cosines + cosines.T) / 2


def _completed(chosen: list[int], relevance: Tensor, keep: int) -> list[int]:
    """The chosen, and the most relevant of the others until there are so many."""
    taken = set(chosen)
    others = (token for token in relevance.argsort(descending=True, stable=True).tolist() if token not in taken)
    return [*chosen, *(token for token, _ in zip(others, range(keep - len(chosen)), strict=False))]


def _ascending(chosen: list[int], tokens: Tensor) -> Tensor:
    return torch.tensor(sorted(chosen), dtype=torch.long, device=tokens.device)


# ---- the same, slow and obvious: what tests compare with ---------------------------------------------------------------


def naive_divprune(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
    """`divprune` by its definition: every distance anew for every token."""

    def apart(one: int, other: int) -> float:
        return 1 - float(torch.cosine_similarity(tokens[one].double(), tokens[other].double(), dim=0))

    chosen: list[int] = []
    for _ in range(keep):
        left = [token for token in range(len(tokens)) if token not in chosen]
        among = chosen or list(range(len(tokens)))
        nearest = [min((apart(token, other) for other in among if other != token), default=0.0) for token in left]
        chosen.append(left[nearest.index(max(nearest))])
    return _ascending(chosen, tokens)


def naive_cdpruner(tokens: Tensor, question: Tensor, keep: int) -> Tensor:
    """`cdpruner` by its definition: a determinant for every set that one more token could make, until none adds anything."""
    kernel, relevance = conditional_kernel(tokens, question)
    chosen: list[int] = []
    volume = 1.0
    while len(chosen) < keep:
        left = [token for token in range(len(tokens)) if token not in chosen]
        grown = [float(torch.linalg.det(kernel[[*chosen, token]][:, [*chosen, token]])) for token in left]
        if max(grown) <= SPENT * volume:
            break
        volume = max(grown)
        chosen.append(left[grown.index(volume)])
    return _ascending(_completed(chosen, relevance, keep), tokens)
