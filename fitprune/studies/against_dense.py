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
from transformers import LogitsProcessorList

from ..decoder.attach import Attachment, find_decoder
from ..distributed.workers import SINGLE, WorkerGroup
from ..families.vlm import GREEDY, VLM
from ..images.lengths import ImageLengths
from ..observe import Observation, per_image
from ..prune import prune
from ..questions import Question, encode_questions, questions_digest
from ..recipe import Recipe
from .drift import divergence, kept


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
    """The dense run of a batch: texts, tokens [B, T] and their number [B], logits [B, T, V], and what the images of each row received."""

    texts: list[str]
    tokens: Tensor
    lengths: list[int]
    logits: Tensor
    images: list[tuple[Tensor, Tensor, int, int]]


def compare_to_dense(
    vlm: VLM,
    questions: Sequence[Question],
    image_folder: str,
    recipes: Sequence[Recipe | None],
    *,
    score: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 1,
    progress: bool = True,
    workers: WorkerGroup = SINGLE,
) -> list[list[Drift]]:
    """How each recipe answers each question, measured against the dense model.

    Args:
        questions: Each has an image.
        recipes: None runs the dense model again. score: As `prune` takes it.
        workers: The processes that share the batches; each gets all.
    Returns:
        [recipe][question].
    Raises:
        FitPruneError: unreadable image, recipe for another model.
    """
    found: list[list[Drift]] = [[] for _ in recipes]
    workers.check_same("questions", questions_digest(questions))
    batches = [questions[at : at + batch_size] for at in range(0, len(questions), batch_size)]

    def prepare(batch: Sequence[Question]) -> tuple[Sequence[Question], dict[str, Tensor]]:
        return batch, encode_questions(vlm, batch, image_folder)

    def work(prepared: tuple[Sequence[Question], dict[str, Tensor]]) -> list[list[dict[str, Any]]]:
        batch, inputs = prepared
        dense = _dense(vlm, inputs, max_new_tokens)
        drifts = [_against(vlm, batch, inputs, dense, recipe, score, max_new_tokens) for recipe in recipes]
        return [[{**vars(drift), "question": None} for drift in of_recipe] for of_recipe in drifts]

    with tqdm(total=len(questions), desc="following", unit="q", disable=not (progress and workers.leads)) as bar:
        for batch, results in zip(batches, workers.in_order(batches, prepare, work), strict=True):
            for drifts, of_recipe in zip(found, results, strict=True):
                drifts += [Drift(**{**one, "question": q}) for q, one in zip(batch, of_recipe, strict=True)]
            bar.update(len(batch))
    return found


@torch.inference_mode()
def teacher_forced_logits(model: Any, inputs: dict[str, Tensor], answer: Tensor) -> Tensor:
    """The model's logits at every token of a given answer, [B, T, V] float32 on the CPU.

    Tokens are fed by the model's own `generate`, which knows what a model wants at each step: positions in three dimensions, token types,
    a cache of its own kind.

    Args:
        inputs: A prompt, padded on the left.
        answer: [B, T] token ids; the last is not fed, as nothing is predicted after it.
    """
    start = inputs["input_ids"].shape[1]

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter_(1, answer[:, ids.shape[1] - start, None].to(scores.device), 0.0)

    nothing = model.config.get_text_config().vocab_size  # no token: an end within the answer ends nothing
    output = model.generate(
        **inputs, **GREEDY, max_new_tokens=answer.shape[1], logits_processor=LogitsProcessorList([force]), eos_token_id=nothing,
        pad_token_id=0, use_cache=True, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack([step.float().cpu() for step in output.logits], 1)


def greedy_answers(vlm: VLM, inputs: dict[str, Tensor], max_new_tokens: int) -> tuple[list[str], Tensor, list[int]]:
    """The model's own greedy answers: texts, tokens [B, T] with their end tokens (padded behind), and how many there are of each row."""
    with _predictions(vlm.model) as steps:
        texts = vlm.generate(inputs, max_new_tokens=max_new_tokens)
    tokens = torch.stack(steps, 1)  # [B, T]
    ended = torch.isin(tokens, torch.tensor(vlm.ends(), dtype=torch.long))
    before = ended.cumsum(1) - ended.long() == 0  # [B, T] up to the first end token, and with it
    pad = vlm.tokenizer.pad_token_id
    return texts, tokens.masked_fill(~before, pad if pad is not None else 0), before.sum(1).tolist()


def _dense(vlm: VLM, inputs: dict[str, Tensor], max_new_tokens: int) -> _Dense:
    texts, tokens, lengths = greedy_answers(vlm, inputs, max_new_tokens)
    policy = Observation(find_decoder(vlm.model))
    attachment = Attachment(vlm.model, policy, lengths=ImageLengths(vlm.model.config))
    try:
        logits = teacher_forced_logits(vlm.model, inputs, tokens)
    finally:
        attachment.detach()
    assert policy.state is not None
    found = iter(per_image(policy.state))
    rows = [[next(found) for _ in images] for images in policy.state.spans]
    return _Dense(texts, tokens, lengths, logits, [_as_one(row) for row in rows])


def _as_one(images: list[tuple[Tensor, Tensor, int, int]]) -> tuple[Tensor, Tensor, int, int]:
    """All images of a row, such as the frames of a video, as `per_image` says of one."""
    cross, intra = (torch.cat([image[part] for image in images], 1) for part in (0, 1))  # type: ignore[misc]
    return cross, intra, sum(image[2] for image in images), images[-1][3]


def _against(
    vlm: VLM,
    batch: Sequence[Question],
    inputs: dict[str, Tensor],
    dense: _Dense,
    recipe: Recipe | None,
    score: str | None,
    max_new_tokens: int,
) -> list[Drift]:
    """One recipe on one batch."""
    with prune(vlm.model, recipe, score=score) if recipe else nullcontext() as trace:
        texts = vlm.generate(inputs, max_new_tokens=max_new_tokens)
        logits = teacher_forced_logits(vlm.model, inputs, dense.tokens)
    survivors = trace.visual if trace else []
    places = [torch.cat(images) for images in trace.image_tokens] if trace else []  # [n] positions, row by row
    found = []
    for row, (question, (cross, intra, visual, text)) in enumerate(zip(batch, dense.images, strict=True)):
        everything = [torch.arange(visual)] * len(cross)
        alive = [torch.isin(places[row], layer[row]).nonzero().flatten() for layer in survivors] if trace else everything
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
