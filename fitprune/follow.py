"""Dense and pruned runs of the same questions, side by side: what `fitprune report` measures with.

A batch is answered densely once; then each recipe answers it freely (do the greedy answers differ?) and is led along the
dense answer (how do its next-token distributions differ at every token of it?). The prompt is prefilled first and the
answer fed after it, as in generation: a prompt that held the answer would be pruned by the answer's attention as well.

    fitprune report --limit 16
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .attach import Attachment
from .drift import divergence, kept
from .evaluation.answer import encode_questions
from .evaluation.questions import Question, told_apart
from .families import Loaded
from .observe import Observation, per_image
from .prune import prune
from .ranks import ALONE, Ranks
from .recipe import Recipe
from .upstream import cache_in, pass_cache


@dataclass(frozen=True)
class Drift:
    """One question under one recipe; divergences in nats, cross and intra are the attention kept in each layer, [L]."""

    question: Question
    dense: str
    pruned: str
    first_changed: bool
    divergence_first: float
    divergence_answer: float
    visual_tokens: int
    text_tokens: int
    alive: list[int]
    cross: list[float]
    intra: list[float]


@dataclass(frozen=True)
class _Dense:
    """The dense run of a batch: texts, tokens [B, T] and their number [B], logits [B, T, V], and what each image received."""

    texts: list[str]
    tokens: Tensor
    lengths: list[int]
    logits: Tensor
    images: list[tuple[Tensor, Tensor, int, int]]


def follow(
    loaded: Loaded,
    questions: Sequence[Question],
    image_folder: str,
    recipes: Sequence[Recipe | None],
    *,
    score: str = "fitprune",
    max_new_tokens: int = 128,
    batch_size: int = 1,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> list[list[Drift]]:
    """How each recipe answers each question, measured against the dense model.

    Args:
        questions: Each has a picture.
        recipes: None runs the dense model again.
        ranks: The processes that share the batches; each gets all.
    Returns:
        [recipe][question].
    Raises:
        FitPruneError: unreadable picture, recipe for another model.
    """
    found: list[list[Drift]] = [[] for _ in recipes]
    ranks.agree("questions", told_apart(questions))
    batches = [questions[at : at + batch_size] for at in range(0, len(questions), batch_size)]

    def prepare(batch: Sequence[Question]) -> tuple[Sequence[Question], dict[str, Tensor]]:
        return batch, encode_questions(loaded, batch, image_folder)

    def work(prepared: tuple[Sequence[Question], dict[str, Tensor]]) -> list[list[dict[str, Any]]]:
        batch, inputs = prepared
        dense = _dense(loaded, inputs, max_new_tokens)
        drifts = [_against(loaded, batch, inputs, dense, recipe, score, max_new_tokens) for recipe in recipes]
        return [[{**vars(drift), "question": None} for drift in of_recipe] for of_recipe in drifts]

    with tqdm(total=len(questions), desc="following", unit="q", disable=not (progress and ranks.leads)) as bar:
        for batch, results in zip(batches, ranks.in_order(batches, prepare, work), strict=True):
            for drifts, of_recipe in zip(found, results, strict=True):
                drifts += [Drift(**{**one, "question": q}) for q, one in zip(batch, of_recipe, strict=True)]
            bar.update(len(batch))
    return found


@torch.inference_mode()
def led(model: Any, inputs: dict[str, Tensor], answer: Tensor) -> Tensor:
    """The model's logits at every token of a given answer, [B, T, V] float32 on the CPU.

    Args:
        inputs: A prompt, padded on the left.
        answer: [B, T] token ids; the last is not fed, as nothing is predicted after it.
    """
    mask = inputs["attention_mask"]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(**inputs, position_ids=places, use_cache=True, logits_to_keep=1)
    logits = [output.logits[:, -1:].float().cpu()]
    if answer.shape[1] > 1:
        fed = answer[:, :-1].to(mask.device)
        whole = torch.cat([mask, torch.ones_like(fed)], 1)
        places = whole.cumsum(-1)[:, -fed.shape[1] :] - 1
        output = model(
            input_ids=fed,
            attention_mask=whole,
            position_ids=places,
            use_cache=True,
            **pass_cache(model, cache_in(output)),
        )
        logits.append(output.logits.float().cpu())
    return torch.cat(logits, 1)


def _dense(loaded: Loaded, inputs: dict[str, Tensor], max_new_tokens: int) -> _Dense:
    with _predictions(loaded.model) as steps:
        texts = loaded.generate(inputs, max_new_tokens=max_new_tokens)
    tokens = torch.stack(steps, 1)  # [B, T]
    ended = torch.isin(tokens, torch.tensor(loaded.ends(), dtype=torch.long))
    before = ended.cumsum(1) - ended.long() == 0  # [B, T] up to the first end token, and with it
    pad = loaded.tokenizer.pad_token_id
    tokens = tokens.masked_fill(~before, pad if pad is not None else 0)
    session = Observation()
    attachment = Attachment(loaded.model, session)
    try:
        logits = led(loaded.model, inputs, tokens)
    finally:
        attachment.detach()
    assert session.frame is not None
    return _Dense(texts, tokens, before.sum(1).tolist(), logits, per_image(session.frame))


def _against(
    loaded: Loaded,
    batch: Sequence[Question],
    inputs: dict[str, Tensor],
    dense: _Dense,
    recipe: Recipe | None,
    score: str,
    max_new_tokens: int,
) -> list[Drift]:
    """One recipe on one batch."""
    with prune(loaded.model, recipe, score=score) if recipe else nullcontext() as trace:
        texts = loaded.generate(inputs, max_new_tokens=max_new_tokens)
        logits = led(loaded.model, inputs, dense.tokens)
    survivors, places = (trace.visual, trace.images) if trace else ([], [])
    found = []
    for row, (question, (cross, intra, visual, text)) in enumerate(zip(batch, dense.images, strict=True)):
        everything = [torch.arange(visual)] * len(cross)
        alive = [layer[row] - places[row][0][0] for layer in survivors] if trace else everything
        length = dense.lengths[row]
        nats = divergence(dense.logits[row, :length], logits[row, :length])  # [T]
        found.append(
            Drift(
                question=question,
                dense=dense.texts[row],
                pruned=texts[row],
                first_changed=bool(dense.logits[row, 0].argmax() != logits[row, 0].argmax()),
                divergence_first=float(nats[0]),
                divergence_answer=float(nats.mean()),
                visual_tokens=visual,
                text_tokens=text,
                alive=[len(tokens) for tokens in alive],
                cross=kept(cross, alive).tolist(),
                intra=kept(intra, alive).tolist(),
            )
        )
    return found


@contextmanager
def _predictions(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the most likely next token [B] of every forward inside the `with` block: the tokens of a greedy answer."""
    steps: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        steps.append(output.logits[:, -1].argmax(-1).cpu())

    handle = model.register_forward_hook(note)
    try:
        yield steps
    finally:
        handle.remove()
